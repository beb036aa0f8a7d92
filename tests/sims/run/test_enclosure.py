"""The enclosure: nothing that a run started outlives it, and nobody outside reaches what listens in it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from protocol.confinement import namespaces
from protocol.errors import RunFailedError
from sims.run.enclosure import KILLED as KILLED_COMMAND
from sims.run.enclosure import Enclosure
from sims.run.processes import alive, descendants
from sims.run.run_folder import read_record
from sims.run.settings import from_run_config
from tests.sims.made_run import open_run
from tests.sims.run.listening import network_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="subreapers and namespaces are Linux's")

#: Forks twice, leaves its session, says in a file who it is, and waits.
ORPHAN = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        with open(sys.argv[2], "w") as file:
            file.write(str(os.getpid()))
        time.sleep(300)
    os._exit(0)
os.wait()
"""
READY = "import os, sys; os.write(int(sys.argv[1]), b'ready\\n')\n"
WAIT = "import time; time.sleep(300)\n"
#: Deaf to a polite end.
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
#: Has a new number all the time: each one forks and ends.
RUNNING_AWAY = """
if os.fork() == 0:
    os.setsid()
    while os.fork() == 0:
        with open(sys.argv[2], "w") as file:
            file.write(str(os.getpid()))
        time.sleep(0.002)
    os._exit(0)
"""


def program(code: str, *arguments: object) -> Sequence[str]:
    return [sys.executable, "-I", "-c", code, *map(str, arguments)]


@contextlib.contextmanager
def enclosed(folder: Path, code: str) -> Iterator[tuple[Enclosure, Path]]:
    """An enclosure with a program that has said that it is ready, and the file in which it names a process."""
    note = folder / "note"
    with (folder / "output").open("wb") as output:
        enclosure = Enclosure(
            lambda ready: program(code, ready, note), environment=dict(os.environ), folder=folder, output=output
        )
    try:
        assert enclosure.wait_until_ready(60.0), (folder / "output").read_text()
        yield enclosure, note
    finally:
        enclosure.close()


def noted(note: Path) -> psutil.Process:
    """The process whose number the file holds."""
    deadline = time.monotonic() + 30
    while not (note.exists() and (text := note.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return psutil.Process(int(text))


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(process: psutil.Process, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(process)


def test_without_an_enclosure_an_orphan_stays(tmp_path: Path) -> None:
    """The control."""
    note = tmp_path / "note"
    with subprocess.Popen(program(ORPHAN + WAIT, 0, note)) as process:
        orphan = noted(note)
        assert orphan in [*descendants(process.pid), orphan]
        process.kill()
    time.sleep(0.3)
    assert alive(orphan)
    os.kill(orphan.pid, signal.SIGKILL)
    assert gone(orphan)


@pytest.mark.parametrize("manner", ["", DEAF])
def test_closing_ends_an_orphan_of_another_session(tmp_path: Path, manner: str) -> None:
    with enclosed(tmp_path, manner + ORPHAN + READY + WAIT) as (enclosure, note):
        orphan = noted(note)
        assert alive(orphan)
        assert not enclosure.ended
        enclosure.close()
        assert not alive(orphan)
        assert enclosure.ended
        enclosure.close()


def test_the_end_of_the_command_ends_what_it_left_behind(tmp_path: Path) -> None:
    with enclosed(tmp_path, ORPHAN + READY) as (enclosure, note):
        assert gone(noted(note))
        deadline = time.monotonic() + 20
        while not enclosure.ended and time.monotonic() < deadline:
            time.sleep(0.02)
        assert enclosure.ended


def test_who_forks_and_ends_without_pause_is_ended_too(tmp_path: Path) -> None:
    with enclosed(tmp_path, "import os, sys, time\n" + READY + RUNNING_AWAY + WAIT) as (enclosure, note):
        deadline = time.monotonic() + 30
        while not note.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        enclosure.close()
        last = note.read_text()
        time.sleep(0.3)
        assert note.read_text() == last  # nobody is there to write another


#: Stands for the command of a run: it has an enclosure, whose processes it names in a file, and waits.
STARTER = f"""
import os, sys, time
from pathlib import Path
from sims.run.enclosure import Enclosure
code, note, record = sys.argv[1:]
enclosure = Enclosure(
    lambda ready: [sys.executable, "-I", "-c", code, str(ready), note],
    environment=dict(os.environ), folder=Path(note).parent, output=open(os.devnull, "wb"), record=Path(record))
assert enclosure.wait_until_ready(60.0)
Path(note + ".ready").touch()
{WAIT}"""
#: Who is killed, by how many parents lie above: the run's command, the two of the enclosure, what it encloses.
KILLED = {"the command of the run": 0, "the guard": 1, "the keeper": 2, "what is enclosed": 3}


@pytest.mark.parametrize("who", KILLED)
def test_whoever_is_killed_nothing_is_left_of_what_is_enclosed(tmp_path: Path, who: str) -> None:
    note, run = tmp_path / "note", tmp_path / "run"
    run.mkdir()
    with subprocess.Popen(program(STARTER, DEAF + ORPHAN + READY + WAIT, note, run)) as starter:
        orphan = noted(note)
        wait_for(Path(f"{note}.ready").exists)
        chain = [starter.pid]
        while len(chain) < 4:
            chain.append(next(one.pid for one in descendants(chain[-1])))
        enclosed = [process for process in descendants(starter.pid) if process.pid != chain[0]]
        assert len(enclosed) >= 3
        os.kill(chain[KILLED[who]], signal.SIGKILL)
        # Far less than what any of them would wait for by itself.
        assert all(gone(process, 5.0) for process in [orphan, *enclosed] if process.pid not in chain[:2])
        starter.kill()
        assert all(map(gone, enclosed))


@pytest.mark.parametrize("killed", [True, False])
def test_the_enclosure_says_in_the_record_that_the_run_s_command_was_killed(tmp_path: Path, killed: bool) -> None:
    run = open_run(from_run_config({"folder": str(tmp_path / "run")}))
    run.close()  # its process is among those that end
    note = tmp_path / "note"
    code = STARTER if killed else STARTER.replace(WAIT, "enclosure.close()")
    with subprocess.Popen(program(code, READY + WAIT, note, run.folder)) as starter:
        wait_for(Path(f"{note}.ready").exists)
        if killed:
            starter.kill()
            wait_for(lambda: read_record(run.folder).status != "running")
    record = read_record(run.folder)
    # Whoever closes its enclosure knows better why.
    assert (record.status, record.failure) == (("failed", KILLED_COMMAND) if killed else ("running", None))


@pytest.mark.parametrize(
    ("code", "how"), [("raise SystemExit(3)", "ended with exit code 3"), (WAIT, "was killed by signal 9")]
)
def test_it_is_told_how_the_command_ended(tmp_path: Path, code: str, how: str) -> None:
    who = "import os\nopen(sys.argv[2], 'w').write(str(os.getpid()))\n"
    with enclosed(tmp_path, READY + who + code) as (enclosure, note):
        if code == WAIT:
            os.kill(noted(note).pid, signal.SIGKILL)
        wait_for(lambda: enclosure.ended)
        enclosure.close()
        assert enclosure.end == how


def test_a_command_that_does_not_start_is_told(tmp_path: Path) -> None:
    with (tmp_path / "output").open("wb") as output:
        enclosure = Enclosure(
            lambda ready: program("raise SystemExit('out of order')"), environment={}, folder=tmp_path, output=output
        )
    assert not enclosure.wait_until_ready(60.0)
    enclosure.close()
    assert "out of order" in (tmp_path / "output").read_text()


LISTEN = """
import os, socket, sys, time
server = socket.create_server(("127.0.0.1", 0))
os.write(int(sys.argv[1]), f"{server.getsockname()[1]}\\n".encode())
time.sleep(300)
"""


def test_what_listens_in_an_enclosure_is_reached_from_inside_only(tmp_path: Path) -> None:
    if refused := namespaces.offered():
        pytest.skip(f"no network namespace here: {refused}")
    with enclosed(tmp_path, LISTEN) as (enclosure, _):
        port = int(enclosure.said)
        connect = program("import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5)", port)
        assert subprocess.run(connect, stderr=subprocess.DEVNULL, check=False).returncode != 0
        assert subprocess.run(connect, preexec_fn=enclosure.enter, check=False).returncode == 0
        with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.1", port), 5):
            pass
        assert enclosure.refused == ""
        assert network_of(enclosure.pid) != network_of("self")


def test_a_child_cannot_enter_what_has_ended(tmp_path: Path) -> None:
    if refused := namespaces.offered():
        pytest.skip(f"no network namespace here: {refused}")
    with enclosed(tmp_path, READY + WAIT) as (enclosure, _):
        enclosure.close()
        with pytest.raises(subprocess.SubprocessError):
            subprocess.run(["true"], preexec_fn=enclosure.enter, check=False)


def test_what_cannot_be_ended_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's exit code for it, by a program that stands for it."""
    import sims.run.enclosure as module

    monkeypatch.setattr(module.isolated_start, "command", lambda name, words: program("raise SystemExit(3)"))
    with open(os.devnull, "wb") as output:
        enclosure = Enclosure(lambda ready: [], environment={}, folder=tmp_path, output=output)
    with pytest.raises(RunFailedError, match="cannot be ended"):
        enclosure.close()
