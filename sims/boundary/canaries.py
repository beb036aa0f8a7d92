"""Canaries: marked images in each party's data, and a search for them in everything that leaves a process.

Real node processes do a whole round, over a relay that keeps everything that it carries. The search covers the bytes
before Flower encrypts its connection; the only sealed part, the learngene, is opened first.
"""

import base64
import contextlib
import io
import os
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protocol.encoding import blob as blobs
from protocol.errors import RunFailedError
from protocol.exchange import content_keys
from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.learngene.images import Normalisation
from protocol.messages import sealing
from protocol.pictures.arrays import read_array
from sims.boundary.acts.expectation import protocol
from sims.boundary.attempt import Attack, Escaped, Found, Refusal
from sims.boundary.recording_relay import DATABASE, DONE
from sims.boundary.search import SURELY_FOUND, Pieces, holding, memory_can_be_read, memory_of
from sims.boundary.sites import Sites, make_sites, started
from sims.data.images import draw_stand_in
from sims.data.world_plan import WorldPlan
from sims.data.worlds import COLLECTIVE, individual_name, make_world

Images = NDArray[np.uint8]

#: Number of canaries of each party.
CANARIES = 3
_SIZE = 32
#: Distance in rows from one canary to the next in a party's images.
_EVERY = 8
#: Number of colour values in a canary: few enough that compression does not simply copy it.
_COLOURS = 64
_COLLECTIVE = {
    "width": 0.0625,
    "tasks": 2,
    # Enough images for a Fisher diagonal that may leave the site.
    "classes_per_task": 32,
    "epochs": 0.1,
    "cycles": 0,
    "forms": ["condensed"],
    "condense_epochs": 0.1,
    "condense_budget": "own",
}
_INDIVIDUAL = {"methods": ["condensed"], "epochs": 1, "curve_tasks": 1}
_WINDOWS = 8
#: Expected outcome of a search: nothing is refused, and nothing is found.
NOTHING = "nothing found"


@dataclass(frozen=True)
class Canary:
    """A marked image ``[H, W, 3]`` of a party."""

    party: str
    number: int
    image: Images

    @property
    def name(self) -> str:
        """Its owner and number."""
        return f"{self.party}'s canary {self.number}"


def draw_canary(rng: np.random.Generator) -> Images:
    """An image ``[32, 32, 3]`` of random pixels; no two are alike."""
    return (rng.integers(0, _COLOURS, (_SIZE, _SIZE, 3)) * (256 // _COLOURS)).astype(np.uint8)


def encodings(image: Images, normalisation: Normalisation) -> dict[str, bytes]:
    """An image in every encoding that is searched for; each is found by any ``SURELY_FOUND`` bytes of it.

    Args:
        normalisation: of the run, as the learngene carries it.
    """
    found: dict[str, bytes] = {}
    for side, turned in (("", image), (", mirrored", image[:, ::-1])):
        # The same operations as for the networks' images.
        scaled = turned.astype(np.float32) / np.float32(255)
        normalised = (scaled - normalisation.mean) / normalisation.std
        arrays: dict[str, NDArray[np.generic]] = {
            "raw": turned,
            "float": scaled,
            "normalised": normalised,
            "half": scaled.astype(np.float16),
            "normalised half": normalised.astype(np.float16),
        }
        for name, array in arrays.items():
            found[f"{name} by pixels{side}"] = array.tobytes()
            found[f"{name} by channels{side}"] = array.transpose(2, 0, 1).tobytes()
    raw, png = image.tobytes(), png_of(image)
    found["PNG"] = png
    for level in (1, 6, 9):
        found[f"deflated {level}"] = zlib.compress(raw, level)[2:-4]
    for name, data in (("raw", raw), ("PNG", png)):
        found[f"hexadecimal of {name}"] = data.hex().encode()
        found[f"HEXADECIMAL of {name}"] = data.hex().upper().encode()
        for start in range(3):
            whole = data[start : start + (len(data) - start) // 3 * 3]
            found[f"base64 of {name}, from {start}"] = base64.b64encode(whole)
    return found


def png_of(image: Images) -> bytes:
    """The image as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


class Search:
    """A search for every encoding of some canaries."""

    def __init__(self, canaries: Iterable[Canary], normalisation: Normalisation) -> None:
        self._texts = {canary.name: encodings(canary.image, normalisation) for canary in canaries}
        self._pieces = Pieces({name: name.encode() for name in self._texts}, lambda name: self._texts[name.decode()])

    def found_in(self, chunks: Iterable[bytes]) -> set[str]:
        """The canaries that stand in these bytes, with their encoding."""
        return {name for chunk in chunks for name in self._pieces.found_in(chunk)}

    def samples(self) -> Iterator[tuple[str, bytes]]:
        """Several parts of every encoding of every canary, each with the name under which the search must find it."""
        for name, texts in self._texts.items():
            for encoding, text in texts.items():
                last = len(text) - SURELY_FOUND
                for start in sorted({number * last // (_WINDOWS - 1) for number in range(_WINDOWS)}):
                    yield f"{name} ({encoding})", text[start : start + SURELY_FOUND]


#: Makes a place for the search in which the given bytes stand.
Planting = Callable[[bytes], contextlib.AbstractContextManager[Iterable[bytes]]]


@dataclass(frozen=True)
class Place:
    """A place that is searched.

    Attributes:
        search: the search, for the canaries of one party.
        content: its bytes, in chunks, read again each time.
        with_planted: the same kind of place, with these bytes in it.
    """

    name: str
    tries: str
    search: Search
    content: Callable[[], Iterable[bytes]]
    with_planted: Planting
    lacks: str = ""


@dataclass(frozen=True)
class Round:
    """A finished round whose processes are all still running.

    Attributes:
        folder: the relay's.
        processes: by party, and ``relay``: process numbers.
        canaries: by party.
    """

    sites: Sites
    folder: Path
    processes: Mapping[str, int]
    canaries: Mapping[str, tuple[Canary, ...]]

    def carried(self, party: str) -> list[bytes]:
        """Everything that came out of a party's node, before any encryption of a connection."""
        node = list(self.canaries).index(party)
        database = sqlite3.connect(f"file:{self.folder / DATABASE}?mode=ro", uri=True)
        with contextlib.closing(database):
            rows = database.execute(
                "SELECT data FROM carried WHERE node = ? AND direction = 'from'", (node,)
            ).fetchall()
        return [bytes(row[0]) for row in rows]

    def opened(self) -> list[bytes]:
        """The plaintexts of the learngenes that crossed."""
        site = self.sites.collective
        ledger = CollectiveLedger(site.node.state)
        try:
            return [
                sealing.decrypt(
                    content_keys.reopen(site.keys.signing, release.closed_key, release.digest), ledger.blob(release)
                )
                for release in ledger.releases(self.sites.run_id)
            ]
        finally:
            ledger.close()

    @property
    def normalisation(self) -> Normalisation:
        """Of all images of the run."""
        tensors = blobs.decode(self.opened()[0])
        return Normalisation(tensors["input.mean"], tensors["input.std"])


@contextlib.contextmanager
def played(folder: Path, *, unconfined: bool = False) -> Iterator[Round]:
    """A round between two node processes whose images hold canaries.

    Args:
        folder: new or empty, and short: sockets lie in it.
        unconfined: start the node processes unconfined, on a kernel that cannot confine them.

    Raises:
        RunFailedError: it did not finish.
    """
    source = draw_stand_in("canaries", train_per_class=20, test_per_class=12)
    world = make_world(source, source.division, WorldPlan(target_tasks={10: 1}), 0, folder / "world")
    parties = {COLLECTIVE: world.folder_of(COLLECTIVE), individual_name(1): world.folder_of(individual_name(1))}
    rng = np.random.default_rng()
    canaries = {party: _plant(party, data, rng) for party, data in parties.items()}
    sites = make_sites(
        folder / "sites",
        data={"collective": parties[COLLECTIVE], "individual": parties[individual_name(1)]},
        tables={"collective": _COLLECTIVE, "individual": _INDIVIDUAL},
    )
    relay = folder / "relay"
    (relay / "tmp").mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        processes: dict[str, int] = {}
        for site in (sites.collective, sites.individual):
            node = stack.enter_context(started(site, unconfined=unconfined))
            processes[site.party] = node.process.pid
        processes["relay"] = stack.enter_context(_relay(relay, sites))
        yield Round(sites, relay, processes, canaries)


def _plant(party: str, data: Path, rng: np.random.Generator) -> tuple[Canary, ...]:
    """Put a party's canaries among all of its images, and beside them as PNG files."""
    images = [draw_canary(rng) for _ in range(CANARIES)]
    for path in data.glob("*_images.npy"):
        rows = read_array(path)
        for number, image in enumerate(images):
            rows[number * _EVERY // CANARIES :: _EVERY] = image
        np.save(path, rows)
    for number, image in enumerate(images, start=1):
        (data / f"canary-{number}.png").write_bytes(png_of(image))
    return tuple(Canary(party, number, image) for number, image in enumerate(images, start=1))


@contextlib.contextmanager
def _relay(folder: Path, sites: Sites) -> Iterator[int]:
    """The relay's process, when its round is over."""
    doors = [f"{site.node.socket}={site.node.secret}" for site in (sites.collective, sites.individual)]
    command = [sys.executable, "-m", "sims.boundary.recording_relay", str(folder), *doors]
    environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
    with (
        (folder / "errors.log").open("wb") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, cwd=folder
        ) as process,
    ):
        assert process.stdout is not None
        try:
            if process.stdout.readline().strip() != DONE.encode():
                logs = "".join((site.node.state / "node.log").read_text()[-1500:] for site in sites.all[:2])
                raise RunFailedError(f"the round failed: {(folder / 'errors.log').read_text()[-1500:]}{logs}")
            yield process.pid
        finally:
            process.kill()


def places(over: Round) -> list[Place]:
    """Everything that is searched after a round."""
    normalisation = over.normalisation
    theirs = {party: Search(canaries, normalisation) for party, canaries in over.canaries.items()}
    every = Search((canary for canaries in over.canaries.values() for canary in canaries), normalisation)
    lacks = "" if memory_can_be_read() else "the memory of other processes cannot be read here"
    return [
        *_crossing_places(over, theirs),
        *_relay_places(over, every, lacks),
        *_log_places(over, theirs),
        *_node_places(over, theirs, lacks),
    ]


def _crossing_places(over: Round, theirs: Mapping[str, Search]) -> list[Place]:
    """Places with what crossed."""
    collective, individual = over.sites.collective, over.sites.individual

    def carried(party: str) -> Callable[[], Iterable[bytes]]:
        return lambda: over.carried(party)

    return [
        *(
            Place(
                f"canaries in what leaves the {site.role}",
                "all bytes out of its socket, before any connection encrypts them",
                theirs[site.party],
                carried(site.party),
                _in_message(carried(site.party)),
            )
            for site in (collective, individual)
        ),
        Place(
            "canaries in the opened learngene",
            "the blob that crossed, as it was before it was sealed",
            theirs[collective.party],
            over.opened,
            _in_message(over.opened),
        ),
    ]


def _relay_places(over: Round, every: Search, lacks: str) -> list[Place]:
    """Places with what the relay holds and has written."""
    return [
        Place(
            "canaries in the relay's memory",
            "all memory of the relay's process, which still holds what it carried",
            every,
            _memory(over, "relay"),
            _in_memory,
            lacks,
        ),
        Place(
            "canaries in the relay's database, logs and temporary files",
            "all files that the relay has written",
            every,
            _files(over.folder, "*"),
            _in_file(over.folder),
        ),
    ]


def _log_places(over: Round, theirs: Mapping[str, Search]) -> list[Place]:
    """Places with the nodes' own logs."""
    written = ("*.log", "*.jsonl", "*.json", "ledger.db*", "temporary/**/*", "cache/**/*")
    return [
        Place(
            f"canaries in the {site.role}'s logs",
            "its log, figures, events, ledger, log of crossings, temporary files",
            theirs[site.party],
            _files(site.node.state, *written),
            _in_file(over.folder),
        )
        for site in (over.sites.collective, over.sites.individual)
    ]


def _node_places(over: Round, theirs: Mapping[str, Search], lacks: str) -> list[Place]:
    """Places with what each node holds of the other party."""
    collective, individual = over.sites.collective, over.sites.individual
    found: list[Place] = []
    for site, other in ((collective, individual), (individual, collective)):
        found += [
            Place(
                f"the {other.role}'s canaries in the {site.role}'s memory",
                "all memory of a node process, for images of the other party",
                theirs[other.party],
                _memory(over, site.party),
                _in_memory,
                lacks,
            ),
            Place(
                f"the {other.role}'s canaries in the {site.role}'s state",
                "all files of a node, for images of the other party",
                theirs[other.party],
                _files(site.node.state, "*"),
                _in_file(over.folder),
            ),
        ]
    return found


def _files(top: Path, *patterns: str) -> Callable[[], Iterator[bytes]]:
    return lambda: (path.read_bytes() for pattern in patterns for path in sorted(top.rglob(pattern)) if path.is_file())


def _memory(over: Round, party: str) -> Callable[[], Iterable[bytes]]:
    return lambda: memory_of(over.processes[party])


def _in_message(content: Callable[[], Iterable[bytes]]) -> Planting:
    """The same messages, one of them extended by the planted bytes."""

    def plant(planted: bytes) -> contextlib.AbstractContextManager[Iterable[bytes]]:
        first, *others = content()
        middle = len(first) // 2
        return contextlib.nullcontext([first[:middle] + planted + first[middle:], *others])

    return plant


def _in_file(folder: Path) -> Planting:
    @contextlib.contextmanager
    def plant(planted: bytes) -> Iterator[Iterable[bytes]]:
        path = folder / "planted.log"
        path.write_bytes(b"a line of a log: " + planted + b"\n")
        try:
            yield [path.read_bytes()]
        finally:
            path.unlink()

    return plant


@contextlib.contextmanager
def _in_memory(planted: bytes) -> Iterator[Iterable[bytes]]:
    with holding(b"held: " + planted) as pid:
        yield memory_of(pid)


@contextlib.contextmanager
def canary_attacks(folder: Path, *, unconfined: bool = False) -> Iterator[list[Attack]]:
    """The searches, when a round is over; the control of each is that it finds what is planted, in every encoding.
    Arguments as of :func:`played`."""
    with played(folder, unconfined=unconfined) as over:
        yield [attack_on(place) for place in places(over)]


def attack_on(place: Place) -> Attack:
    """The search of a place; its control is the search of the same kind of place, with everything planted in it."""

    def control() -> bool:
        samples = list(place.search.samples())
        # Separated, so that none is found because of its neighbour.
        with place.with_planted(b"".join(b"\0" * 16 + part for _, part in samples)) as content:
            return place.search.found_in(content) >= {name for name, _ in samples}

    def confined() -> Found:
        size, found = 0, set[str]()
        for chunk in place.content():
            size += len(chunk)
            found |= place.search.found_in([chunk])
        if not size:
            raise RunFailedError("there was nothing to search")
        return Escaped(", ".join(sorted(found))) if found else Refusal("search", NOTHING, f"{size} bytes")

    return Attack(place.name, "canaries", place.tries, protocol("search", NOTHING), control, confined, place.lacks)
