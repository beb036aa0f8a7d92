"""All that lies in a state folder is hostile input to the next start: whatever a taken-over node left there is refused
in one line or passed over; nothing hangs, nothing of it is followed, and no other party's file changes."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import BaseModel

from collective_node import checkpoint
from collective_node.annotation import labels, unknown_set
from collective_node.differential_privacy.release import Finished
from protocol.errors import LearngeneError
from protocol.exchange.audit import Crossings, read_chain, summarise
from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.exchange.individual_ledger import IndividualLedger
from protocol.node import confine
from protocol.node.events import Events
from protocol.node.metrics import read_metrics, write_metrics
from protocol.transport.frame import Frame
from sims.boundary.sites import Site, Sites, make_sites
from sims.boundary.sites import started as start_node
from sims.run.progress import RunWatcher, Tail
from tests.collective_node.made_unknown_set import unknown_set as made_unknown_set
from tests.protocol.hostile_files import ANY, NO_FILE, plant, within
from tests.protocol.parties import NOW, RUN, Answer, content_key, learngene
from tests.protocol.parties import Site as Party

VICTIM = b"another party's picture"
CYCLE = "open-world/cycle-0001"


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """Another party's file; it is as it was at the end."""
    path = tmp_path / "victim"
    path.write_bytes(VICTIM)
    before = path.stat()
    yield path
    after = path.stat()
    assert path.read_bytes() == VICTIM
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)


class Figures(BaseModel):
    """Stands for a party's model of its figures."""

    seconds: dict[str, float]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder in which both parties and their evolution left all kinds of files."""
    site = Party(tmp_path / "state")
    collective, other = site.collective(), Party(tmp_path / "other")
    individual = other.individual()
    collective.publish(learngene(), NOW, content_key(0))
    answer = collective.answer_request(individual.request("condensed", NOW, b"n" * 16), NOW)
    assert isinstance(answer, Answer)
    individual.inherit(*answer, NOW)
    for ledger in (*site.opened, *other.opened):
        ledger.close()
    (other.folder / "learngenes").rename(site.folder / "learngenes")
    Events(site.folder / "events.jsonl").append("task", 1, 2, "a task")
    write_metrics(site.folder, Figures(seconds={}))
    cycle = site.folder / CYCLE
    unknown_set.store(cycle, made_unknown_set())
    with labels.LabelBook(cycle, images=48, known=()) as book:
        book.decide(labels.Decision(id="decision", verdict="named", images=(1, 2), name="moth"))
    (site.folder / "checkpoint").mkdir(mode=0o700)
    return site.folder


def label_book(state: Path) -> None:
    labels.LabelBook(state / CYCLE, images=48, known=()).close()


def blob_of(state: Path) -> None:
    ledger = CollectiveLedger(state)
    try:
        (release,) = ledger.releases(RUN)
        ledger.blob(release)
    finally:
        ledger.close()


def learngene_of(state: Path) -> None:
    """The individual's own database lies beside its files."""
    with contextlib.closing(IndividualLedger(state.parent / "other")) as ledger:
        found = ledger.latest(RUN, "condensed")
        assert found is not None
        with contextlib.suppress(FileExistsError):
            (state.parent / "other" / "learngenes").rmdir()
            (state / "learngenes").rename(state.parent / "other" / "learngenes")
        ledger.load(found)


#: Whatever opens a file of a state folder: which file (``*``: the one there is), and what it does with it.
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "the log of crossings, to show": ("crossings.jsonl", lambda state: read_chain(state / "crossings.jsonl")),
    "the log of crossings, to verify": ("crossings.jsonl", lambda state: summarise(state / "crossings.jsonl")),
    "the log of crossings, to write": (
        "crossings.jsonl",
        lambda state: Crossings(state / "crossings.jsonl", "p", lambda: NOW).append("in", "q", "blob", b""),
    ),
    "the figures": ("metrics.json", lambda state: read_metrics(state, Figures)),
    "the labels": (f"{CYCLE}/labels.jsonl", lambda state: labels.read(state / CYCLE)),
    "the labels, to write": (f"{CYCLE}/labels.jsonl", label_book),
    "which cycle waits": (f"{CYCLE}/labels.jsonl", labels.waiting_folder),
    "the unknown set's description": (f"{CYCLE}/unknown.json", lambda state: unknown_set.load(state / CYCLE)),
    "the unknown images": (f"{CYCLE}/images.npy", lambda state: unknown_set.load(state / CYCLE)),
    "their features": (f"{CYCLE}/features.npy", lambda state: unknown_set.load(state / CYCLE)),
    "a release's blob": ("releases/*.blob", blob_of),
    "an inherited learngene's grant": ("learngenes/*/grant.json", learngene_of),
    "an inherited learngene's blob": ("learngenes/*/blob.sealed", learngene_of),
}
WRITERS = {
    "events": ("events.jsonl", lambda state: Events(state / "events.jsonl").append("task", 2, 2, "the end")),
}


def place(state: Path, name: str) -> Path:
    (found,) = state.glob(name)
    return found


@pytest.mark.parametrize("reader", READERS | WRITERS)
def test_the_control_every_reader_reads_what_was_written(state: Path, reader: str) -> None:
    (READERS | WRITERS)[reader][1](state)


@pytest.mark.parametrize("kind", ANY)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_planted_is_one_line(state: Path, victim: Path, reader: str, kind: str) -> None:
    name, read = READERS[reader]
    path = place(state, name)
    plant(kind, path, victim)
    if path.name == "labels.jsonl" and kind in ("garbage", "deep JSON"):
        # Without an end, it would be what a power cut left of the last line.
        path.write_bytes(path.read_bytes() + b"\n{}\n")
    with within(30), pytest.raises(LearngeneError) as refused:
        read(state)
    text = str(refused.value)
    assert "\n" not in text
    assert VICTIM.decode() not in text


@pytest.mark.parametrize("kind", NO_FILE)
@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_is_written_through_what_is_planted(state: Path, victim: Path, writer: str, kind: str) -> None:
    name, write = WRITERS[writer]
    plant(kind, place(state, name), victim)
    with within(30), pytest.raises(LearngeneError) as refused:
        write(state)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ANY)
def test_progress_is_shown_from_logs_alone(tmp_path: Path, victim: Path, kind: str) -> None:
    """A run's own command reads its nodes' logs, and is not confined."""
    states = [tmp_path / "nodes" / party / "state" for party in ("collective", "individual-1")]
    for folder in states:
        folder.mkdir(parents=True)
        for name in ("events.jsonl", "crossings.jsonl"):
            plant(kind, folder / name, victim)
    watcher = RunWatcher(tmp_path, from_end=True)
    with within(30):
        for _ in range(3):
            assert watcher.poll() == []
        assert RunWatcher(tmp_path).poll() == []


def test_a_log_is_read_in_pieces_and_what_is_no_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lines = [b'{"event": "task"}', b"x" * (3 << 20), b'{"a": NaN}', b'{"a": 1, "a": 2}', b'{"a":' * 9999, b'{"b": 1}']
    path.write_bytes(b"\n".join(lines) + b"\n")
    tail, found = Tail(path), []
    for _ in range(10):
        found += tail.poll()
    assert found == [{"event": "task"}, {"b": 1}]


@pytest.mark.parametrize(
    "line",
    [
        {"time": 1e300, "event": "task", "done": 1, "total": 2},
        {"time": 1, "event": "task", "done": -1, "total": 2},
        {"time": 1, "event": "\x1b[2J", "done": 1, "total": 2},
        {"time": 1, "event": "k" * 99, "done": 1, "total": 2},
        {"time": 1, "event": "task", "done": 1, "total": 1e16},
        {"time": True, "event": "task"},
    ],
)
def test_numbers_and_kinds_that_mean_nothing_are_passed_over(tmp_path: Path, line: dict[str, object]) -> None:
    log = tmp_path / "nodes" / "collective" / "state" / "events.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps(line) + "\n")
    assert RunWatcher(tmp_path).poll() == []


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"id": "decision", "verdict": "undone"}, {"id": "decisiom", "verdict": "finished"}], "line 1 is damaged"),
        ([{"id": "decision", "verdict": "named", "images": [1], "name": "n" * 5000}, {}], "line 1 is damaged"),
        ([{"id": "decision", "verdict": "named", "images": [48], "name": "moth"}], "not there"),
        ([{"id": "decision", "verdict": "dismissed", "images": [-1]}], "not there"),
        ([{"id": "decision", "verdict": "dismissed", "images": [2**53]}, {}], "line 1 is damaged"),
    ],
)
def test_labels_that_nobody_gave_are_one_line(state: Path, lines: list[dict[str, object]], said: str) -> None:
    (state / CYCLE / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(LearngeneError, match=said) as refused:
        label_book(state)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999, 8, 8, 3), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999,), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (48, 8, 8, 3), 'more': " + "-" * 3000 + "1, }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (48,), }",
        "(" * 5000,
    ],
)
def test_an_array_that_asks_for_more_than_it_holds_is_one_line(state: Path, header: str) -> None:
    (state / CYCLE / "images.npy").write_bytes(npy(header) + bytes(48 * 8 * 8 * 3))
    with within(20), pytest.raises(LearngeneError, match="not a whole unknown set") as refused:
        unknown_set.load(state / CYCLE)
    assert "\n" not in str(refused.value)


def test_an_array_that_is_as_endless_as_it_says_is_not_read(state: Path) -> None:
    images = (1 << 40) // (8 * 8 * 3)
    head = npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({images}, 8, 8, 3), }}")
    with (state / CYCLE / "images.npy").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + images * 8 * 8 * 3)
    with within(20), pytest.raises(LearngeneError, match="more than"):
        unknown_set.load(state / CYCLE)


def npy(header: str) -> bytes:
    """The beginning of an array's file, with this header."""
    text = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("kind", ANY)
@pytest.mark.parametrize("name", ["", "/state-0001", "/state-0001/progress.json", "/private", "/private/private.json"])
def test_a_checkpoint_that_was_planted_is_one_line(state: Path, victim: Path, name: str, kind: str) -> None:
    if (name == "/private" and kind == "a folder") or (name == "" and kind == "a folder"):
        return  # that is what should be there
    plant(kind, Path(f"{state / 'checkpoint'}{name}"), victim)
    read = (lambda: Finished.kept(state / "checkpoint", "")) if "private" in name else None
    with within(30), pytest.raises(LearngeneError) as refused:
        read() if read is not None else checkpoint.latest(state / "checkpoint")
    assert "\n" not in str(refused.value)


def test_a_chain_of_crossings_is_verified_in_little_memory(tmp_path: Path) -> None:
    """One that is too long to be kept is not shown, and verified all the same."""
    path = tmp_path / "crossings.jsonl"
    Crossings(path, "p", lambda: NOW).append("in", "q", "blob", b"")
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with within(20):
        for read in (read_chain, summarise):
            with pytest.raises(LearngeneError):
                read(path)
    path.write_bytes(whole)
    assert summarise(path).lines == 1


# Real nodes and commands.


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    """Two parties that were set up and never started; short, as sockets lie there."""
    return make_sites(tmp_path_factory.mktemp("h"), tables={"collective": {"cycles": 0, "annotator": "oracle"}})


@dataclass(frozen=True)
class Ended:
    """How a real start or command ended."""

    code: int
    said: str


def ended(*command: object, patience: float = 120.0) -> Ended:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", *map(str, command)],
        capture_output=True,
        timeout=patience,
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    return Ended(done.returncode, (done.stdout + done.stderr).decode(errors="replace"))


def emptied(site: Site) -> Path:
    """A site's state folder, empty; the socket of a start that failed is gone as well."""
    state = site.node.state
    if state.exists():
        shutil.rmtree(state)
    state.mkdir(mode=0o700)
    site.node.socket.unlink(missing_ok=True)
    return state


#: What stops a start, and how it is named.
STOPS = {
    "ledger.db": "the ledger",
    "ledger.db-wal": "the ledger",
    "ledger.db-journal": "the ledger",
    "releases": "releases",
    "node.log": "the log",
}
PLANTED = ("a link", "a pipe", "a terabyte of nothing")


@pytest.mark.parametrize("name", STOPS)
def test_a_node_does_not_start_over_what_was_planted(sites: Sites, victim: Path, name: str) -> None:
    site = sites.collective
    unconfined = () if confine.offered() else ("--unconfined",)
    for kind in PLANTED:
        if kind == "a terabyte of nothing" and name == "node.log":
            continue  # it is not read
        state = emptied(site)
        if name.startswith("ledger.db-"):
            CollectiveLedger(state).close()
        plant(kind, state / name, victim)
        end = ended("collective_node", "start", "--config", site.config, *unconfined)
        log = "" if name == "node.log" else (state / "node.log").read_text(errors="replace")
        assert end.code in (1, 2), end
        assert STOPS[name] in end.said, end
        assert "Traceback" not in end.said + log
        assert end.said.count("error: ") == 1


def test_a_node_goes_on_where_only_a_log_was_planted_and_its_job_says_why(sites: Sites, victim: Path) -> None:
    site = sites.collective
    state = emptied(site)
    CollectiveLedger(state).close()
    for name in ("events.jsonl", "metrics.json", "crossings.jsonl", "checkpoint"):
        plant("a link", state / name, victim)
    with start_node(site, unconfined=not confine.offered()):
        assert site.ask(Frame("status")).fields["state"] == "idle"
        site.ask(Frame("evolve"))
        deadline = time.monotonic() + 60
        while (answer := site.ask(Frame("status"))).fields["state"] == "working":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert answer.fields["state"] == "failed"
        # A message is refused, since it cannot be recorded; the node lives on.
        assert site.ask(Frame("receipt", parts={"receipt": b"{}"})).name == "refused"
        assert site.ask(Frame("status")).name == "status"
    log = (state / "node.log").read_text(errors="replace")
    assert "Traceback" not in log
    assert "evolve" in log
    assert "log of crossings" in log


#: Commands beside a node, by the node's role and the file that each reads first.
COMMANDS = [
    ("collective", "ledger.db", ("collective_node", "releases")),
    ("collective", "ledger.db", ("collective_node", "clock")),
    ("collective", CYCLE + "/labels.jsonl", ("collective_node", "annotate", "--no-browser")),
    ("individual", "ledger.db", ("individual_node", "bundle", "--out", "bundle.learngene")),
]


@pytest.mark.parametrize(("role", "name", "command"), COMMANDS)
def test_a_command_beside_a_node_is_one_line(
    sites: Sites, victim: Path, tmp_path: Path, role: str, name: str, command: tuple[str, ...]
) -> None:
    site = sites.collective if role == "collective" else sites.individual
    emptied(site)
    (CollectiveLedger if role == "collective" else IndividualLedger)(site.node.state).close()
    options = [str(tmp_path / word) if word.endswith(".learngene") else word for word in command]
    for kind in PLANTED:
        plant(kind, site.node.state / name, victim)
        end = ended(*options, "--config", site.config)
        assert end.code in (1, 2), end
        assert "Traceback" not in end.said
        assert end.said.count("\n") == 1
        assert end.said.startswith("error: ")
    doctor = ended(command[0], "doctor", "--config", site.config, "--json")
    assert "Traceback" not in doctor.said
    if name == "ledger.db":
        findings = {finding["subject"]: finding for finding in json.loads(doctor.said)["findings"]}
        assert (findings["ledger"]["verdict"], findings["ledger"]["stops"]) == ("wrong", True)
