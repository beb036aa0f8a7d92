"""Whole small runs through the real commands: what they leave, who runs meanwhile, and how they end."""

import contextlib
import json
import mmap
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import jsonschema
import matplotlib
import psutil
import pytest

import sims
from collective_node.cli import app as collective_app
from individual_node.cli import app as individual_app
from protocol.commands.learngene import make
from protocol.confinement import namespaces
from protocol.confinement.warden import refused_calls
from protocol.node import confine
from protocol.visible_text import in_encoding
from sims.results.figures import FIGURES
from sims.results.models import schema
from sims.run.enclosure import KILLED
from sims.run.processes import alive, end_all
from sims.run.reach import SENTENCES, reach_of_run
from sims.run.run_folder import read_record, read_settings
from sims.run.runner import Interruption
from tests import corner
from tests.sims.results.test_report import Page, title_is_red
from tests.sims.run.knocking import Answers, knock
from tests.sims.run.listening import Listener, listeners, network_of
from tests.test_deployment import free_ports
from tests.two_folders import run, succeeded

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at processes in /proc")

PROGRAMS = Path(sys.executable).parent
PARTIES = ("collective", "individual-1")
_MARK = "LEARNGENE_TEST_MARK"
#: One experiment for all runs of this file; the same as flags and as Flower's run configuration.
EXPERIMENT: Mapping[str, str | int | bool] = {
    "profile": "smoke",
    "stand-in": True,
    "seed": 3,
    "threads": 1,
    "target-tasks": "10:2,20:1",
    "set": "collective.epochs=0.5",  # long enough to be killed in the middle
}
STAND_IN = "NOT CIFAR-100"


# ----------------------------------------------------------------------------------------------------------------------
# The look at processes


@dataclass
class Look:
    """What /proc shows again and again of the processes that a command started, and of those that they started.

    Attributes:
        started: every one of them, known by a word in their environment or by their parents.
        moments: at every look, process id -> party of a node, or the command of any other process.
        nodes: party -> process ids of its node.
        wardens: process ids of what the nodes forked.
        held: party -> paths that its node had open or mapped at some moment.
        listening: every socket that others could reach at some moment, and the command of its process.
    """

    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: set[psutil.Process] = field(default_factory=set)
    moments: list[dict[int, str]] = field(default_factory=list)
    nodes: dict[str, set[int]] = field(default_factory=dict)
    wardens: set[int] = field(default_factory=set)
    held: dict[str, set[str]] = field(default_factory=dict)
    listening: dict[Listener, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {_MARK: self.mark}

    def once(self) -> None:
        self.started |= self._found()
        moment: dict[int, str] = {}
        for process in filter(alive, self.started):
            with contextlib.suppress(OSError):
                words = command_of(process.pid)
                moment[process.pid] = " ".join(words)
                if {"collective_node", "individual_node"}.isdisjoint(words):
                    continue
                party = moment[process.pid] = Path(words[words.index("--config") + 1]).parent.name
                if command_of(parent_of(process.pid)) == words:  # a child that the node forked, its warden
                    self.wardens.add(process.pid)
                elif process.pid not in self.wardens:  # which may outlive it by a moment
                    self.nodes.setdefault(party, set()).add(process.pid)
                self.held.setdefault(party, set()).update(open_paths(process.pid))
        self.moments.append(moment)
        for listener in listeners(moment):
            self.listening.setdefault(listener, moment[listener.pid])

    def remaining(self, seconds: float = 15.0) -> list[psutil.Process]:
        """Those that are still there after so much time."""
        deadline = time.monotonic() + seconds
        while (left := [process for process in self.started if alive(process)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        ended = threading.Event()

        def repeat() -> None:
            while not ended.wait(0.1):
                self.once()

        thread = threading.Thread(target=repeat)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.once()

    def _found(self) -> set[psutil.Process]:
        marked, children = set(), {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                children.setdefault(process.ppid(), []).append(process)
                if process.environ().get(_MARK) == self.mark:
                    marked.add(process)
        # A process that writes its own title may write over its environment.
        waiting = [*marked, *filter(alive, self.started)]
        while waiting:
            new = [child for child in children.pop(waiting.pop().pid, []) if child not in marked]
            marked.update(new)
            waiting += new
        return marked


def command_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])


def open_paths(pid: int) -> set[str]:
    """Paths that a process has open, mapped, or as its working folder."""
    found = set()
    for link in (Path(f"/proc/{pid}/cwd"), *Path(f"/proc/{pid}/fd").iterdir()):
        with contextlib.suppress(OSError):
            found.add(os.readlink(link))
    for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
        if "/" in line:
            found.add(line[line.index("/") :])
    return found


def below(paths: Iterable[str], *folders: Path) -> set[str]:
    """The paths that lie in one of the folders."""
    return {path for path in paths if any(path.startswith(f"{folder}/") or path == str(folder) for folder in folders)}


def homes(run: Path, party: str) -> tuple[Path, Path]:
    """The private folders of a party: its images and its state."""
    return run / "world" / party, run / "nodes" / party


def test_the_look_finds_an_open_and_a_mapped_file(tmp_path: Path) -> None:
    code = (
        "import mmap, sys; kept = open(sys.argv[1]); file = open(sys.argv[2], 'rb');"
        "mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ); file.close(); print(flush=True);"
        "sys.stdin.read()"
    )
    for party in PARTIES:
        for home in homes(tmp_path, party):
            home.mkdir(parents=True)
            (home / "file").write_bytes(bytes(mmap.PAGESIZE))
    opened, mapped = (home / "file" for home in homes(tmp_path, "individual-1"))
    # A node of the collective by its command line, which has no business in the individual's folders.
    command = [sys.executable, "-c", code, str(opened), str(mapped), "collective_node", "--config"]
    look = Look()
    with subprocess.Popen(
        [*command, str(tmp_path / "nodes" / "collective" / "config.toml")],
        env={**os.environ, **look.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        look.once()
        assert look.nodes == {"collective": {process.pid}}
        assert below(look.held["collective"], *homes(tmp_path, "individual-1")) == {str(opened), str(mapped)}
        assert below(look.held["collective"], *homes(tmp_path, "collective")) == set()
        assert len(look.remaining(0.0)) == 1
    assert look.remaining() == []


# ----------------------------------------------------------------------------------------------------------------------
# Runs


@dataclass(frozen=True)
class Ended:
    """A command that has ended. ``run``: the run folder; ``results``: of a finished run."""

    code: int
    out: str
    err: str
    look: Look
    run: Path
    answers: Answers | None = None

    @property
    def results(self) -> dict[str, object]:
        document: dict[str, object] = json.loads((self.run / "results.json").read_bytes())
        return document


class Place:
    """A home of its own for everything that the commands write, and the commands."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # Else fonts are looked for anew in every home.
        self._fonts = matplotlib.get_cachedir()

    def environment(self, look: Look) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("LEARNGENE_DATA", "FLWR_HOME")}
        return {
            **kept,
            **look.environment,
            "HOME": str(self.root),
            "MPLCONFIGDIR": self._fonts,
            "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }

    def learngene(
        self, out: Path, *more: str, meanwhile: "Callable[[Look], None] | None" = None, in_corner: bool = False
    ) -> Ended:
        """``learngene run cifar100`` until it ends; the one run folder in ``out`` is its own.

        Args:
            in_corner: in a corner like a container's.
        """
        look = Look()
        with _ended(look), look.going_on():
            process = (self.start_in_corner if in_corner else self.start_run)(out, look, *more)
            if meanwhile is not None:
                meanwhile(look)
            stdout, stderr = process.communicate(timeout=300)
        [folder] = out.iterdir()
        return Ended(process.returncode, stdout, stderr, look, folder)

    def start_run(self, out: Path, look: Look, *more: str) -> "subprocess.Popen[str]":
        """``learngene run cifar100``, started."""
        command = [str(PROGRAMS / "learngene"), "run", "cifar100", *_flags(), "--out", str(out), *more]
        return self._start(command, {**self.environment(look), **HOSTILE})

    def start_in_corner(self, out: Path, look: Look, *more: str) -> "subprocess.Popen[str]":
        """As ``start_run``, with nothing that a user has: no home and no name, no terminal, no variable but hostile
        ones, an encoding that lacks characters, few files at once, a folder for temporary files whose path is too long
        for sockets, and a clone that is read-only.
        """
        deep = self.root.joinpath("temporary", *["deep"] * 30)
        deep.mkdir(parents=True, exist_ok=True)
        given = {
            **look.environment,
            **HOSTILE,
            "TMPDIR": str(deep),
            "LC_ALL": "C",
            "PYTHONIOENCODING": "ascii:strict",
            "LEARNGENE_CACHE": str(self.root / ".learngene" / "data"),  # where it is drawn already
        }
        command = [str(PROGRAMS / "learngene"), "run", "cifar100", *_flags(), "--out", str(out), *more]
        clone = Path(next(iter(sims.__path__))).parent
        if not corner.refused():
            command = corner.in_corner(command, read_only={clone, Path(sys.prefix)})
        return self._start(command, given, bare=True)

    def flwr(self, out: Path) -> Ended:
        """``flwr run sims/cifar100 --stream`` with a daemon of its own, which is ended afterwards."""
        values = {**EXPERIMENT, "out": str(out)}
        configuration = " ".join(f"{name}={json.dumps(value)}" for name, value in values.items())
        app = Path(next(iter(sims.__path__))) / "cifar100"
        command = [str(PROGRAMS / "flwr"), "run", str(app), "--stream", "--run-config", configuration]
        http, control = free_ports(2)
        ports = {"FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(http), "FLWR_LOCAL_CONTROL_API_PORT": str(control)}
        look = Look()
        with _ended(look), look.going_on():
            ray = {"RAY_ADDRESS": HOSTILE["RAY_ADDRESS"], "RAY_AUTH_MODE": "disabled"}
            own = {"FLWR_HOME": str(self.root / "flwr"), **ports, **ray}
            process = self._start(command, {**self.environment(look), **own})
            stdout, stderr = process.communicate(timeout=300)
        [folder] = out.iterdir()
        return Ended(process.returncode, stdout, stderr, look, folder)

    def _start(self, command: list[str], given: Mapping[str, str], *, bare: bool = False) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command,
            env=dict(given),
            cwd=self.root,
            start_new_session=bare,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_begin_with_few_files if bare else _heed_ctrl_c,
        )


#: What a user may have set, and no process of a run must heed.
HOSTILE = {
    "RAY_ADDRESS": "192.0.2.1:6379",
    "RAY_AUTH_MODE": "disabled",
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "grpc_proxy"), "http://192.0.2.1:3128"),
    "all_proxy": "socks5://192.0.2.1:1080",
    "no_proxy": "",
    "FORCE_COLOR": "1",
    "FLWR_INTERNAL_GRPC_CONTROL_API": "1",
}


def _flags() -> list[str]:
    """The experiment as flags of ``learngene run``."""
    named = ([f"--{name}"] if value is True else [f"--{name}", str(value)] for name, value in EXPERIMENT.items())
    return [word for words in named for word in words]


@contextlib.contextmanager
def _ended(look: Look) -> Iterator[None]:
    """Afterwards Flower's daemon, which `flwr run` leaves behind, is ended, and where a test fails everything."""
    try:
        yield
    except BaseException:
        end_all(look.started, 0.0)
        raise
    for process in look.started:
        if "flower-superlink" in look.moments[-1].get(process.pid, "") and alive(process):
            os.kill(process.pid, signal.SIGTERM)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def whole(place: Place) -> Ended:
    """A run without interruption, at whose sockets somebody knocked while the collective learned."""
    out, answers = place.root / "whole", []

    def meanwhile(look: Look) -> None:
        wait_for(lambda: any(' evolves"' in path.read_text() for path in out.glob("*/events.jsonl")))
        found = {command: listener for listener, command in look.listening.items() if alive_now(listener)}
        [superlink] = [listener.pid for command, listener in found.items() if "sims.run.superlink" in command]
        [ray] = [listener.pid for command, listener in found.items() if "gcs_server" in command]
        ports = [listener for listener in look.listening if alive_now(listener)]
        answers.append(knock(ports, superlink=superlink, ray=ray, as_another=os.geteuid() == 0))

    ended = place.learngene(out, meanwhile=meanwhile)
    return replace(ended, answers=answers[0])


@pytest.fixture(scope="module")
def killed(place: Place) -> Ended:
    """A run in a corner like a container's, whose collective was killed while it learned its second task."""
    out = place.root / 'killed [final] a[b] "\U0001f600"'

    def kill(look: Look) -> None:
        wait_for(lambda: any(out.glob("*/nodes/collective/state/checkpoint/state-0001")))
        found = list(out.glob("*/nodes/collective/state/checkpoint/state-0001"))
        log = (found[0].parents[1] / "node.log").read_text()
        os.kill(int(log.rpartition(" starts as process ")[2].split()[0]), signal.SIGKILL)

    return place.learngene(out, meanwhile=kill, in_corner=True)


@pytest.fixture(scope="module")
def resumed(place: Place, killed: Ended, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A copy of what the killed run left, and the run that went on from it in the same corner."""
    before = tmp_path_factory.mktemp("before") / "run"
    shutil.copytree(killed.run, before)
    return before, place.learngene(killed.run.parent, "--resume", in_corner=True)


@pytest.mark.slow
def test_a_run_leaves_its_results_figures_and_report(whole: Ended) -> None:
    assert whole.code == 0, whole.err
    assert read_record(whole.run).status == "finished"
    for name in ("results.json", "report.html", *FIGURES):
        assert (whole.run / name).stat().st_size > 0
    jsonschema.validate(whole.results, schema())
    assert whole.results["dataset"]["source"] == "stand-in"
    for name in ("results.json", "report.html"):
        assert str(whole.run / name) in whole.out


@pytest.mark.slow
def test_the_results_and_the_report_say_how_much_memory_each_node_had(whole: Ended) -> None:
    nodes = whole.results["nodes"]
    page = Page((whole.run / "report.html").read_text(encoding="utf-8"))
    assert set(nodes) == set(PARTIES)
    for node in nodes.values():
        assert node["peak_memory"] > 100e6  # torch alone
        assert f"{node['peak_memory'] / 1e6:.0f} MB" in page.text


@pytest.mark.slow
def test_the_table_of_a_run_s_files_is_complete(whole: Ended) -> None:
    assert {path.name for path in whole.run.iterdir()} <= named_in_the_table()


def test_the_table_of_a_run_s_files_names_every_figure() -> None:
    assert FIGURES.keys() <= named_in_the_table()
    # And no picture that no run has.
    assert {name for name in named_in_the_table() if name.endswith(".png")} == FIGURES.keys()


def named_in_the_table() -> set[str]:
    """What the README's table of a run's folder names, in its first column."""
    page = (Path(next(iter(sims.__path__))).parent / "README.md").read_text(encoding="utf-8")
    rows = page[page.index("| file | what it is |") :].partition("\n\n")[0].splitlines()[2:]
    return {name.split("/")[0] for row in rows for name in re.findall("`([^`]+)`", row.split("|")[1])}


@pytest.mark.slow
def test_progress_in_a_file_is_not_redrawn(whole: Ended) -> None:
    assert "FORCE_COLOR" in HOSTILE
    assert set(re.findall(r"\x1b\[[0-9;?]*([a-zA-Z])", whole.out + whole.err)) == {"m"}


@pytest.mark.slow
def test_every_output_says_that_the_images_are_the_stand_in(whole: Ended) -> None:
    page = Page((whole.run / "report.html").read_text(encoding="utf-8"))
    assert STAND_IN in whole.out
    assert STAND_IN in (whole.run / "results.json").read_text(encoding="utf-8")
    assert page.text.count(STAND_IN) >= 1 + len(FIGURES)
    for name in FIGURES:
        assert title_is_red((whole.run / name).read_bytes())


@pytest.mark.slow
@pytest.mark.skipif(not confine.offered(), reason="this kernel does not confine a process")
def test_nodes_need_no_system_call_that_is_not_on_their_list(whole: Ended) -> None:
    """Where this fails, a library has learned something new: look what it is for, then put it on the list, or not."""
    for party in PARTIES:
        log = (whole.run / "nodes" / party / "state" / "node.log").read_text()
        assert " confined (" in log
        # Packages of CUDA look for a library by starting a program, and do without.
        assert set(refused_calls(log)) <= {"clone (0x1200011)"}, log


def test_the_report_says_whether_the_nodes_were_confined(whole: Ended) -> None:
    expected = "confined" if confine.offered() else "unconfined"
    assert whole.results["confinement"] == expected
    assert f"Separation: {expected}" in Page((whole.run / "report.html").read_text(encoding="utf-8")).text


@pytest.mark.slow
def test_each_party_is_a_process_of_its_own_beside_flowers(whole: Ended) -> None:
    look = whole.look
    wanted = (*PARTIES, "sims.run.superlink", "flwr-simulation", "ray::")
    # At one moment, and a moment has each process id once.
    assert any(all(any(name in found for found in moment.values()) for name in wanted) for moment in look.moments)
    assert {party: len(ids) for party, ids in look.nodes.items()} == dict.fromkeys(PARTIES, 1)
    assert look.nodes["collective"].isdisjoint(look.nodes["individual-1"])


@pytest.mark.slow
@pytest.mark.parametrize("party", PARTIES)
def test_no_node_opens_a_file_of_another_party(whole: Ended, party: str) -> None:
    held = whole.look.held[party]
    for other in PARTIES:
        if other != party:
            assert below(held, *homes(whole.run, other)) == set()
    # The same look does see what a node has open in its own folder: its log at least.
    assert str(whole.run / "nodes" / party / "state" / "node.log") in below(held, *homes(whole.run, party))


@pytest.mark.slow
def test_nothing_is_left_of_a_finished_run(whole: Ended, place: Place) -> None:
    assert len(whole.look.started) > len(PARTIES)
    assert whole.look.remaining() == []


#: What listens in a run, all of it meant to: a word of the command and the kind of socket.
MEANT = {
    ("sims.run.superlink", "tcp"),
    ("flwr-simulation", "tcp"),
    ("gcs_server", "tcp"),
    ("raylet", "tcp"),
    ("raylet", "unix"),
    ("ray::RuntimeEnvAgent", "tcp"),
    ("ray::", "tcp"),  # its workers
    *((party, "unix") for party in PARTIES),
}
#: What listens for a moment only, while Ray starts.
PASSING = {("ray/dashboard/dashboard.py", "tcp")}


def who_listens(look: Look) -> dict[tuple[str, str], list[Listener]]:
    """The listeners of a run under their words of ``MEANT``, or under the whole command where there is none."""
    found: dict[tuple[str, str], list[Listener]] = {}
    for listener, command in look.listening.items():
        command = command.replace("bin/flower-superlink ", "sims.run.superlink ")  # of `flwr run`
        # Before it gives itself its title, which on a busy machine may take it as long as the run.
        # (The raylet's command holds the agent's among its arguments.)
        command = re.sub(r"^\S*python\S* (-u )?\S+/runtime_env/agent/main\.py ", "ray::RuntimeEnvAgent ", command)
        words = [word for word, kind in MEANT | PASSING if word in command and kind == listener.kind]
        # "ray::" is in the agent's command, too.
        found.setdefault((max(words, key=len, default=command), listener.kind), []).append(listener)
    return found


@pytest.mark.slow
def test_nothing_listens_in_a_run_but_what_is_meant_to(whole: Ended) -> None:
    found = who_listens(whole.look)
    assert found.keys() - PASSING == MEANT
    every = [listener for sockets in found.values() for listener in sockets]
    assert all(listener.on_loopback for listener in every if listener.kind == "tcp")
    # Ray's and the nodes' sockets: in the run's own folder, which went with it.
    places = {Path(listener.address).parts[:4] for listener in every if listener.kind == "unix"}
    [(root, temporary, own, name)] = places
    assert own == f"learngene-{os.getuid()}"
    assert not Path(root, temporary, own, name).exists()
    # All in one network, which is not the machine's where the kernel gives another.
    [network] = {listener.network for listener in every}
    assert (network != network_of("self")) == (namespaces.offered() == "")


@pytest.mark.slow
def test_nobody_outside_a_run_is_answered_and_nobody_inside_without_the_token(whole: Ended) -> None:
    answers = whole.answers
    assert answers is not None
    assert answers.enclosed == (namespaces.offered() == "")
    # The controls: from inside, Flower answers, and with the token all services of Ray do.
    assert answers.inside[answers.superlink] == "200"
    ray = answers.inside.keys() - {answers.superlink}
    assert {answers.inside_with_token[port] for port in ray} == {"404", "OK"}
    assert {answers.inside[port] for port in ray} == {"401", "UNAUTHENTICATED"}
    assert len(ray) >= 6
    outside = [answers.outside, answers.outside_as_another]
    if answers.enclosed:
        assert {answer for found in filter(None, outside) for answer in found.values()} == {"not reached"}
    else:
        assert all({found[port] for port in ray} == {"401", "UNAUTHENTICATED"} for found in filter(None, outside))
    # Another user is refused where nothing keeps it away: what holds without a network of its own.
    for found in (answers.inside_as_another, None if answers.enclosed else answers.outside_as_another):
        if found is not None:
            assert found[answers.superlink] == "403"
            assert {found[port] for port in ray} == {"401", "UNAUTHENTICATED"}


@pytest.mark.slow
def test_the_record_and_the_report_say_who_reaches_a_run(whole: Ended) -> None:
    reach = reach_of_run(namespaces.offered())
    assert read_record(whole.run).reach == reach
    assert SENTENCES[reach] in Page((whole.run / "report.html").read_text(encoding="utf-8")).text
    assert (SENTENCES[reach][:40] in whole.out) == (reach != "run")


@pytest.mark.slow
def test_a_run_that_was_moved_serves_every_command(whole: Ended, tmp_path: Path) -> None:
    moved = whole.run.rename(tmp_path / "moved")
    try:
        configuration = moved / "nodes" / "individual-1" / "config.toml"
        succeeded(run(individual_app, "bundle", "--config", configuration, "--out", tmp_path / "condensed.learngene"))
        succeeded(run(collective_app, "releases", "--config", moved / "nodes" / "collective" / "config.toml"))
        succeeded(run(make(), "results", moved))
    finally:
        moved.rename(whole.run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "reason"), [(signal.SIGINT, Interruption.REASONS[signal.SIGINT]), (signal.SIGKILL, KILLED)]
)
def test_nothing_is_left_of_a_run_whose_command_ended_early(place: Place, how: signal.Signals, reason: str) -> None:
    out, left = place.root / f"ended-by-{how.name}", list[psutil.Process]()

    def end(look: Look) -> None:
        wait_for(lambda: any("evolves" in path.read_text() for path in out.glob("*/events.jsonl")))
        wait_for(lambda: set(look.nodes) == set(PARTIES))
        [command] = [pid for pid, command in look.moments[-1].items() if "learngene run" in command]
        os.kill(command, how)
        left.extend(look.remaining(5.0))

    ended = place.learngene(out, meanwhile=end)
    assert ended.code in (-how, 130)
    assert left == []
    assert ended.look.remaining() == []
    wait_for(lambda: read_record(ended.run).status != "running", 20.0)
    record = read_record(ended.run)
    assert (record.status, record.failure) == ("failed", reason)
    if how == signal.SIGINT:
        [line] = ended.err.strip().splitlines()
        assert line.startswith("interrupted; ")
        assert str(ended.run) in line
        assert line.endswith("--resume")


@pytest.mark.slow
def test_ctrl_c_before_anything_is_done_leaves_nothing_at_all(place: Place) -> None:
    out = place.root / "ended-at-once"
    look = Look()
    with _ended(look), look.going_on():
        process = place.start_run(out, look)
        wait_for(lambda: any("sims.run.superlink" in one for moment in look.moments[-1:] for one in moment.values()))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(err.strip().splitlines()) == 1
    assert list(out.iterdir()) == []
    assert look.remaining() == []


@pytest.mark.slow
def test_a_killed_node_ends_the_run_with_one_clear_line(killed: Ended) -> None:
    assert killed.code == 1
    [line] = killed.err.strip().splitlines()
    assert line.startswith("error: the run failed: the node process of the collective (pid ")
    assert "was killed by signal 9" in line
    assert in_encoding(str(killed.run), "ascii") in line
    assert "--resume" in line
    record = read_record(killed.run)
    assert record.status == "failed"
    assert record.failure is not None
    assert in_encoding(record.failure, "ascii") in line
    # It was in the middle: one task was done and no learngene there.
    checkpoints = killed.run / "nodes" / "collective" / "state" / "checkpoint"
    assert [path.name for path in checkpoints.iterdir()] == ["state-0001"]


@pytest.mark.slow
def test_nothing_is_left_of_a_killed_run(killed: Ended) -> None:
    assert set(killed.look.nodes) == set(PARTIES)
    assert killed.look.remaining() == []


@pytest.mark.slow
def test_a_killed_run_goes_on_from_the_last_task(resumed: tuple[Path, Ended]) -> None:
    before, ended = resumed
    assert ended.code == 0, ended.err
    assert read_record(ended.run).run_id == read_record(before).run_id
    log = Path("nodes") / "collective" / "state" / "events.jsonl"
    known = (before / log).read_text().splitlines()
    lines = (ended.run / log).read_text().splitlines()
    assert lines[: len(known)] == known
    tasks = [[text for text in map(_text, part) if text.startswith("task ")] for part in (known, lines[len(known) :])]
    assert any(text.startswith("task 1 of 2") for text in tasks[0])
    assert tasks[1]
    assert all(text.startswith("task 2 of 2") for text in tasks[1])


@pytest.mark.slow
@pytest.mark.skipif(bool(corner.refused()), reason=corner.refused())
def test_a_run_in_a_corner_like_a_container_s_finishes_with_a_report(resumed: tuple[Path, Ended], place: Place) -> None:
    ended = resumed[1]
    assert ended.code == 0, ended.err
    assert ended.err == ""
    assert ended.out.isascii()
    assert read_record(ended.run).status == "finished"
    for name in ("results.json", "report.html", *FIGURES):
        assert (ended.run / name).stat().st_size > 0
    # It ran as somebody whom passwd does not name, and left nothing in the long folder.
    assert f"/learngene-{corner.a_number()}/" in "".join(listener.address for listener in ended.look.listening)
    assert [path for path in (place.root / "temporary").rglob("*") if path.name != "deep"] == []


@pytest.mark.slow
def test_a_resumed_run_ends_as_one_that_was_never_killed(resumed: tuple[Path, Ended], whole: Ended) -> None:
    assert comparable(resumed[1].results) == comparable(whole.results)


@pytest.mark.slow
def test_flowers_own_command_gives_the_same_results(whole: Ended, place: Place) -> None:
    ended = place.flwr(place.root / "by-flower")
    assert ended.code == 0, ended.err
    assert read_record(ended.run).status == "finished"
    assert comparable(ended.results) == comparable(whole.results)
    report = (ended.run / "report.html").read_text(encoding="utf-8")
    assert STAND_IN in report
    assert STAND_IN in ended.out
    assert f"environment: {sys.prefix}" in ended.out
    assert ended.look.remaining() == []
    # Its daemon is Flower's own, open to every user of the machine; Ray keeps to itself all the same.
    found = {key: sockets for key, sockets in who_listens(ended.look).items() if key[1] != "unix"}
    assert {word for word, _ in found.keys() - PASSING} == {word for word, kind in MEANT if kind == "tcp"}
    assert all(listener.on_loopback for sockets in found.values() for listener in sockets)
    assert read_record(ended.run).reach == "machine"


@pytest.mark.slow
def test_a_node_s_own_reason_reaches_the_user(place: Place) -> None:
    ended = place.learngene(place.root / "diverging", "--set", "individual.retain_weight=1e9")
    assert ended.code == 2
    [line] = ended.err.strip().splitlines()
    assert "'adapt' failed at individual-1" in line
    assert "choose lambda at most" in line
    # It would fail again.
    assert "--resume" not in line
    assert read_settings(ended.run).settings.individual.retain_weight == 1e9
    assert ended.look.remaining() == []


def comparable(results: Mapping[str, object]) -> dict[str, object]:
    """Results without the times, the memory and the digests of crossings, in which two equal runs may differ."""
    crossings = results["crossings"]
    assert isinstance(crossings, list)
    assert crossings
    assert "seconds" in results
    nodes = results["nodes"]
    assert isinstance(nodes, dict)
    return {
        **{name: value for name, value in results.items() if name != "seconds"},
        "nodes": {party: {**facts, "peak_memory": None} for party, facts in nodes.items()},
        "crossings": [{name: value for name, value in one.items() if name != "digest"} for one in crossings],
    }


def wait_for(happened: Callable[[], bool], seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def _heed_ctrl_c() -> None:
    """Ctrl-C must reach a command also where these tests run in a shell's background, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _begin_with_few_files() -> None:
    _heed_ctrl_c()
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))


def alive_now(listener: Listener) -> bool:
    return listener in listeners([listener.pid])


def _text(line: str) -> str:
    text = json.loads(line)["text"]
    assert isinstance(text, str)
    return text
