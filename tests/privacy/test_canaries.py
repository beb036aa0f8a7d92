"""Canaries: marked images are found wherever and however they are planted, and nowhere after a real round."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from protocol.learngene.images import Normalisation
from protocol.node import confine
from sims.boundary.attempt import make
from sims.boundary.canaries import (
    CANARIES,
    Canary,
    Place,
    Round,
    Search,
    attack_on,
    draw_canary,
    encodings,
    places,
    played,
    png_of,
)
from sims.boundary.recording_relay import DATABASE
from sims.boundary.search import memory_can_be_read, memory_of

NORMALISATION = Normalisation(np.array([0.4, 0.5, 0.6], np.float32), np.array([0.2, 0.25, 0.3], np.float32))
RNG = np.random.default_rng(5)
HERS, HIS = Canary("hers", 1, draw_canary(RNG)), Canary("his", 1, draw_canary(RNG))


@pytest.fixture(scope="module")
def over(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Round]:
    with played(tmp_path_factory.mktemp("c"), unconfined=not confine.offered()) as over:
        yield over


@pytest.fixture(scope="module")
def searched(over: Round) -> list[Place]:
    return [place for place in places(over) if not place.lacks]


@pytest.mark.slow
def test_no_canary_leaves_a_process(searched: list[Place]) -> None:
    made = [make(attack_on(place)) for place in searched]
    assert len(made) >= 8
    assert [attempt for attempt in made if not attempt.holds] == []


@pytest.mark.slow
def test_a_round_took_place_with_the_canaries_in_it(over: Round) -> None:
    """A search in a round in which nothing crossed, or in which no canary was, would show nothing."""
    with closing(sqlite3.connect(over.folder / DATABASE)) as database:
        names = {row[0] for row in database.execute("SELECT DISTINCT name FROM carried")}
    assert names >= {"request", "release", "grant", "blob", "receipt"}
    sites = over.sites
    for site, name in ((sites.collective, "train_images"), (sites.individual, "support_images")):
        assert (site.node.state / "metrics.json").exists()
        rows = np.load(site.data / f"{name}.npy")
        images = over.canaries[site.party]
        assert len(images) == CANARIES
        for canary in images:
            assert sum(np.array_equal(row, canary.image) for row in rows) >= len(rows) // 10
            assert (site.data / f"canary-{canary.number}.png").read_bytes() == png_of(canary.image)
    every = [canary.image.tobytes() for canaries in over.canaries.values() for canary in canaries]
    assert len(set(every)) == 2 * CANARIES


@pytest.mark.slow
def test_the_learngene_that_crossed_is_what_was_opened(over: Round) -> None:
    (opened,) = over.opened()
    assert max(map(len, over.carried("collective"))) == len(opened) + 16
    assert opened not in b"".join(over.carried("collective"))


@pytest.mark.slow
def test_a_nodes_own_canaries_are_found_in_its_memory(over: Round) -> None:
    """So the search of a real node's memory finds what is there; what a node has freed may be gone."""
    if not memory_can_be_read():
        pytest.skip("the memory of other processes cannot be read here")
    searches = {party: Search(canaries, over.normalisation) for party, canaries in over.canaries.items()}
    assert any(
        name.endswith("(raw by pixels)")
        for party, search in searches.items()
        for chunk in memory_of(over.processes[party])
        for name in search.found_in([chunk])
    )


def test_every_part_of_every_encoding_is_found_by_itself() -> None:
    search = Search([HERS, HIS], NORMALISATION)
    samples = list(search.samples())
    assert len(encodings(HERS.image, NORMALISATION)) >= 9
    assert {name for name, _ in samples} == {
        f"{canary.name} ({encoding})" for canary in (HERS, HIS) for encoding in encodings(canary.image, NORMALISATION)
    }
    for name, part in samples:
        assert name in search.found_in([b"!" + part + b"!"])


def test_one_partys_canaries_are_not_the_others() -> None:
    search = Search([HERS], NORMALISATION)
    assert search.found_in([HIS.image.tobytes(), png_of(HIS.image)]) == set()
    assert search.found_in([bytes(100_000), RNG.bytes(100_000)]) == set()


def test_encodings_are_those_of_the_networks_own_images() -> None:
    """The bytes that torch makes of an image on its way into a network."""
    torch = pytest.importorskip("torch")
    from protocol.learngene.images import DeviceImages

    images = DeviceImages.load(HERS.image[None], np.zeros(1, np.int64), NORMALISATION, torch.device("cpu"))
    batch, _ = images.batch(torch.zeros(1, dtype=torch.int64))
    found = encodings(HERS.image, NORMALISATION)
    assert batch.contiguous().numpy().tobytes() == found["normalised by channels"]
    assert batch.permute(0, 2, 3, 1).contiguous().numpy().tobytes() == found["normalised by pixels"]


def test_a_canary_in_a_file_of_arrays_or_an_archive_is_found(tmp_path: Path) -> None:
    search = Search([HERS], NORMALISATION)
    np.save(tmp_path / "one.npy", HERS.image)
    np.savez_compressed(tmp_path / "two.npz", image=HERS.image.transpose(2, 0, 1))
    np.savez(tmp_path / "three.npz", image=HERS.image.astype(np.float32) / 255)
    assert "hers's canary 1 (raw by pixels)" in search.found_in([(tmp_path / "one.npy").read_bytes()])
    assert "hers's canary 1 (float by pixels)" in search.found_in([(tmp_path / "three.npz").read_bytes()])
    # What no search for encodings finds: another beginning of the same compressed stream.
    assert search.found_in([(tmp_path / "two.npz").read_bytes()]) == set()
