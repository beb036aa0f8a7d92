"""A private evolution: where each released tensor comes from, that images reach it by sampling alone, and once."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from collective_node.collective_images import CollectiveImages
from collective_node.differential_privacy import accounting
from collective_node.differential_privacy.evolution import PrivatelyEvolved, evolve_privately
from collective_node.differential_privacy.randomness import PrivateRandomness
from collective_node.differential_privacy.release import assembled, provenance
from collective_node.evolution import Evolution
from collective_node.pipeline import Evolved, check_privacy, evolve
from collective_node.settings import CollectiveSettings
from protocol.errors import InputError
from protocol.learngene.architecture import Block
from protocol.node.events import Events
from tests.collective_node.differential_privacy.test_randomness import source

CLASSES = ("ant", "bee", "cat", "dog", "elk")
SETTINGS = CollectiveSettings(
    width=0.0625,
    condense_budget="own",
    tasks=2,
    classes_per_task=2,
    forms=("condensed",),
    cycles=0,
    privacy_epsilon=4.0,
    privacy_epochs=1.5,
    privacy_batch_size=30,
    fisher_samples=60,
)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def planned_once() -> Iterator[None]:
    """A noise multiplier that was found is not sought again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounting, "calibrated", functools.cache(accounting.calibrated))
        yield


def made_images(seed: int = 0, per_class: int = 24) -> CollectiveImages:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(CLASSES)), per_class)
    pixels = rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    return CollectiveImages(CLASSES, pixels, rng.permutation(labels), pixels[::4], labels[::4])


IMAGES = made_images()


def evolved(
    folder: Path,
    images: CollectiveImages = IMAGES,
    settings: CollectiveSettings = SETTINGS,
    random: PrivateRandomness | None = None,
    seed: int = 0,
) -> PrivatelyEvolved:
    folder.mkdir(exist_ok=True)
    return evolve_privately(
        images,
        settings,
        seed=seed,
        device=CPU,
        checkpoints=folder / "checkpoint",
        events=Events(folder / "events.jsonl"),
        randomness=random or PrivateRandomness(source()),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> PrivatelyEvolved:
    return evolved(tmp_path_factory.mktemp("private"))


def tensors(found: PrivatelyEvolved) -> dict[str, NDArray[np.float32]]:
    return dict(found.learngenes["condensed"].tensors)


def equal(first: PrivatelyEvolved, second: PrivatelyEvolved) -> bool:
    one, other = tensors(first), tensors(second)
    return set(one) == set(other) and all(np.array_equal(one[name], other[name]) for name in one)


def test_every_tensor_of_the_release_is_trained_noised_or_constant(made: PrivatelyEvolved) -> None:
    learngene = made.learngenes["condensed"]
    origins = provenance(learngene.architecture)
    assert set(origins) == set(learngene.tensors)
    assert {block.norm for block in learngene.architecture.blocks} == {"group"}
    assert not any("running" in name for name in learngene.tensors)
    assert set(learngene.architecture.tensors(fisher=True)) == set(origins)
    assert set(origins.values()) == {"trained", "noised", "constant"}
    np.testing.assert_array_equal(learngene.tensors["input.mean"], np.full(3, 0.5, np.float32))
    np.testing.assert_array_equal(learngene.tensors["input.std"], np.full(3, 0.25, np.float32))


def test_a_tensor_without_a_private_origin_is_refused(made: PrivatelyEvolved, monkeypatch: pytest.MonkeyPatch) -> None:
    """A running statistic, and whatever a later version adds to a block."""
    architecture = made.learngenes["condensed"].architecture
    blocks = architecture.blocks
    with_statistics = architecture.model_copy(
        update={"blocks": (*blocks[:-1], blocks[-1].model_copy(update={"norm": "batch"}))}
    )
    with pytest.raises(ValueError, match="running_mean would be released"):
        provenance(with_statistics)
    before = Block.tensors
    monkeypatch.setattr(Block, "tensors", lambda block: before(block) | {"norm.gain": (block.out_channels,)})
    with pytest.raises(ValueError, match=r"norm\.gain would be released"):
        provenance(architecture)


def test_a_tensor_that_was_not_trained_is_refused(made: PrivatelyEvolved) -> None:
    """What is assembled comes from the three sources and from nowhere else."""
    learngene = made.learngenes["condensed"]
    assert learngene.fisher is not None
    assert learngene.privacy is not None
    origins = provenance(learngene.architecture)
    kinds: tuple[Literal["trained", "noised", "constant"], ...] = ("trained", "noised", "constant")
    sources = {kind: {n: a for n, a in learngene.tensors.items() if origins[n] == kind} for kind in kinds}
    again = assembled(learngene.architecture, sources, learngene.fisher, learngene.privacy)
    assert again.tensors == learngene.tensors
    for kind, names in sources.items():
        name = sorted(names)[0]
        short = {**sources, kind: {n: a for n, a in names.items() if n != name}}
        with pytest.raises(ValueError, match=f"{name} is not among those that are {kind}"):
            assembled(learngene.architecture, short, learngene.fisher, learngene.privacy)


class Nobody(PrivateRandomness):
    """Draws the same noise as another, and nobody to take part."""

    def sample(self, rows: torch.Tensor, rate: float) -> torch.Tensor:
        return super().sample(rows, rate)[:0]


def test_images_reach_the_release_by_sampling_alone(tmp_path: Path) -> None:
    """With nobody drawn, collectives with wholly different images and labels release the same bytes."""
    other = made_images(seed=7)
    alone = [
        evolved(tmp_path / f"nobody-{number}", images, random=Nobody(source()))
        for number, images in enumerate((IMAGES, other))
    ]
    assert equal(*alone)
    drawn = [
        evolved(tmp_path / f"drawn-{number}", images, random=PrivateRandomness(source()))
        for number, images in enumerate((IMAGES, other))
    ]
    assert not equal(*drawn)  # the control: the same noise, and the images are in there
    assert alone[0].mechanism == drawn[0].mechanism


def test_what_hides_images_does_not_follow_from_the_seed(tmp_path: Path) -> None:
    first, second = (evolved(tmp_path / name, random=PrivateRandomness()) for name in ("first", "second"))
    assert not equal(first, second)
    same = [evolved(tmp_path / name, random=PrivateRandomness(source())) for name in ("third", "fourth")]
    assert equal(*same)  # the control: nothing else is drawn


def test_asked_again_it_is_the_same_learngene(tmp_path: Path) -> None:
    """Made a second time it would be a second release from the same images."""
    first = evolved(tmp_path, random=PrivateRandomness())
    again = evolved(tmp_path, random=PrivateRandomness())
    assert equal(first, again)
    assert (again.mechanism, again.condensed_accuracy) == (first.mechanism, first.condensed_accuracy)
    assert again.learngenes["condensed"].fisher == first.learngenes["condensed"].fisher
    assert again.learngenes["condensed"].privacy == first.learngenes["condensed"].privacy


@pytest.mark.parametrize("change", ["epsilon", "images", "seed"])
def test_a_folder_serves_one_private_evolution(tmp_path: Path, change: str) -> None:
    evolved(tmp_path)
    with pytest.raises(InputError, match="adds its epsilon to the first's"):
        evolved(
            tmp_path,
            made_images(seed=3) if change == "images" else IMAGES,
            SETTINGS.model_copy(update={"privacy_epsilon": 5.0}) if change == "epsilon" else SETTINGS,
            seed=1 if change == "seed" else 0,
        )


def test_what_was_kept_and_changed_since_is_refused(tmp_path: Path) -> None:
    evolved(tmp_path)
    path = tmp_path / "checkpoint" / "private" / "private.json"
    document = json.loads(path.read_bytes())
    path.write_text(json.dumps({**document, "more": 1}))
    with pytest.raises(InputError, match="cannot be read"):
        evolved(tmp_path)


def test_the_release_states_the_guarantee_and_the_clip(made: PrivatelyEvolved, tmp_path: Path) -> None:
    """All the way: published, sealed, verified and opened by an individual."""
    learngene = made.learngenes["condensed"]
    privacy = learngene.privacy
    assert privacy == made.mechanism.guarantee
    assert privacy is not None
    assert (privacy.epsilon_micro, privacy.delta_exponent) == (4_000_000, SETTINGS.privacy_delta_exponent)
    assert (privacy.relation, privacy.scope) == ("add-or-remove", "weights-and-fisher")
    assert learngene.fisher is not None
    assert learngene.fisher.clip_micro == round(SETTINGS.privacy_fisher_clip * 1e6)
    assert learngene.fisher.samples == SETTINGS.fisher_samples


def test_narrow_weights_are_rounded_after_everything_that_is_accounted_for(
    made: PrivatelyEvolved, tmp_path: Path
) -> None:
    """With the same noise the learngene is the same, whatever dtype it is going to be sent in."""
    narrow = evolved(tmp_path, settings=SETTINGS.model_copy(update={"blob_dtype": "int8"}))
    assert narrow.learngenes["condensed"].architecture.dtype == "int8"
    assert narrow.mechanism.guarantee == made.mechanism.guarantee
    assert equal(narrow, made)
    # What is kept is the whole learngene, so that asking again gives it again.
    again = evolved(tmp_path, settings=SETTINGS.model_copy(update={"blob_dtype": "int8"}))
    assert again.learngenes["condensed"].architecture.dtype == "int8"
    assert equal(again, narrow)


def test_only_known_classes_are_learned_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings' tasks name four of the five classes; images of the fifth are never drawn."""
    drawn: set[int] = set()
    sample = PrivateRandomness.sample

    def recorded(self: PrivateRandomness, rows: torch.Tensor, rate: float) -> torch.Tensor:
        drawn.update(rows.tolist())
        return sample(self, rows, rate)

    monkeypatch.setattr(PrivateRandomness, "sample", recorded)
    found = evolved(tmp_path)
    assert found.known == 4
    assert len(set(IMAGES.train_labels[sorted(drawn)])) == 4
    assert len(drawn) == 4 * 24


def plainly(folder: Path, settings: CollectiveSettings) -> Evolved:
    folder.mkdir(exist_ok=True)
    return evolve(
        IMAGES, settings, seed=0, device=CPU, checkpoints=folder / "checkpoint", events=Events(folder / "events.jsonl")
    )


def test_the_fisher_diagonal_alone_can_be_private_given_the_weights(tmp_path: Path) -> None:
    """The weights stay bit by bit what they were; the Fisher diagonals of all forms share the one epsilon."""
    ordinary = CollectiveSettings(
        width=0.0625,
        tasks=2,
        classes_per_task=2,
        cycles=0,
        epochs=0.3,
        condense_epochs=0.3,
        condense_budget="own",
        fisher_samples=60,
    )
    private = ordinary.model_copy(update={"privacy_epsilon": 4.0, "privacy_scope": "fisher-given-weights"})
    without, found = plainly(tmp_path / "without", ordinary), plainly(tmp_path / "with", private)
    assert without.mechanism is None
    assert found.mechanism is not None
    assert found.mechanism.training is None
    assert found.mechanism.fisher.times == 2
    for form, learngene in found.learngenes.items():
        plain = without.learngenes[form]
        assert plain.privacy is None
        assert learngene.privacy is not None
        assert learngene.privacy.scope == "fisher-given-weights"
        for name, array in learngene.tensors.items():
            assert np.array_equal(array, plain.tensors[name]) != name.startswith("fisher.")
    again = plainly(tmp_path / "with", private)  # goes on from what was kept: no second draw
    for form, learngene in found.learngenes.items():
        for name, array in learngene.tensors.items():
            np.testing.assert_array_equal(array, again.learngenes[form].tensors[name])


def test_a_delta_too_large_for_the_images_is_refused_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """96 images: 1 / 960 at most. Where the weights are trained without noise, it is refused before that."""
    large = {"privacy_delta_exponent": 2}
    with pytest.raises(InputError, match=r"delta 1e-2 .* privacy_delta_exponent to [34]"):  # of a noisy number
        evolved(tmp_path / "weights", settings=SETTINGS.model_copy(update=large))
    assert not (tmp_path / "weights" / "checkpoint" / "private").exists()
    monkeypatch.setattr(Evolution, "run", lambda _: pytest.fail("trained for a delta that is refused"))
    with pytest.raises(InputError, match=r"delta 1e-2 .* privacy_delta_exponent to 3"):
        plainly(tmp_path / "fisher", SETTINGS.model_copy(update=large | {"privacy_scope": "fisher-given-weights"}))


def test_evolve_leaves_private_weights_to_the_other(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="evolve_privately"):
        plainly(tmp_path, SETTINGS)


@pytest.mark.parametrize("name", ["opacus", "dp_accounting"])
def test_without_the_extra_privacy_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("collective_node.pipeline.find_spec", lambda module: None if module == name else object())
    with pytest.raises(InputError, match=rf"{name}; pip install 'learngene\[privacy\]'"):
        check_privacy(SETTINGS)
    check_privacy(SETTINGS.model_copy(update={"privacy_epsilon": None}))
