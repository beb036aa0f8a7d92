"""A node process: it serves, refuses without dying, ends with its lifeline, and starts in the right order."""

import contextlib
import logging
import os
import pty
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol.files import state_files
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.key_file import Unlock
from protocol.keys.signing_key import SigningKey
from protocol.node import confine
from protocol.node.server import Job, serve
from protocol.transport.frame import Frame
from protocol.transport.local_socket import DisconnectedError, ask, listen, load_secret, make_secret
from sims.run.processes import descendants
from tests.protocol.fake_program import SECRET_TEXT, FakeProgram
from tests.protocol.made_node import make_node

FAKE = "tests.protocol.fake_program"
ROOT_FOLDER = Path(__file__).parents[3]


@pytest.fixture
def program() -> FakeProgram:
    return FakeProgram("individual", "individual-1")


@pytest.fixture
def door(tmp_path: Path, program: FakeProgram) -> Iterator[tuple[Path, bytes]]:
    """Socket and secret of a program served in a thread of this process."""
    path = tmp_path / "run" / "node.sock"
    listener, secret = listen(path), make_secret(tmp_path / "secret")

    def run() -> None:
        # Ends when the listener is shut down below.
        with contextlib.suppress(OSError):
            serve(listener, secret, program, None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield path, secret
    program.release_work.set()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)
    assert not thread.is_alive()


def test_numbers_words_and_parts_go_both_ways(door: tuple[Path, bytes]) -> None:
    command = Frame("echo", {"n": -5}, {"w": "text"}, {"blob": os.urandom(3_000_000), "empty": b""})
    assert ask(*door, command) == command


@pytest.mark.parametrize(
    ("word", "code"), [("expired", "expired"), ("input", "failed"), ("crash", "failed"), ("nonsense", "failed")]
)
def test_an_error_leaves_a_coarse_code_and_its_text_stays_here(
    door: tuple[Path, bytes], caplog: pytest.LogCaptureFixture, word: str, code: str
) -> None:
    with caplog.at_level(logging.INFO):
        reply = ask(*door, Frame(word))
    assert reply == Frame("refused", fields={"code": code})
    if word != "nonsense":
        assert SECRET_TEXT in caplog.text
    assert ask(*door, Frame("echo")) == Frame("echo")


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"GET / HTTP/1.1\r\n\r\n" * 10, b"\x00\x00\x00\x02[]", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00"],
)
def test_malformed_frames_do_not_end_the_node(door: tuple[Path, bytes], data: bytes) -> None:
    from protocol.transport.local_socket import open_handshake

    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(door[0]))
        open_handshake(connection, door[1])
        connection.sendall(data)
    assert ask(*door, Frame("echo")) == Frame("echo")


def test_noise_in_place_of_the_handshake_does_not_end_the_node(door: tuple[Path, bytes], program: FakeProgram) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(door[0]))
        connection.sendall(os.urandom(64))
        connection.recv(1000)
    assert ask(*door, Frame("echo")) == Frame("echo")
    assert program.commands == ["echo"]


def test_without_the_secret_no_command_reaches_the_program(door: tuple[Path, bytes], program: FakeProgram) -> None:
    with pytest.raises(DisconnectedError):
        ask(door[0], b"x" * 32, Frame("echo"))
    assert program.commands == []


def test_long_work_answers_at_once_and_is_polled(door: tuple[Path, bytes], program: FakeProgram) -> None:
    assert ask(*door, Frame("status")).fields["state"] == "idle"
    assert ask(*door, Frame("work")).numbers == {"started": 1}
    assert ask(*door, Frame("work")).numbers == {"started": 0}
    expected = {"role": "individual", "party": "individual-1", "state": "working", "job": "work"}
    assert ask(*door, Frame("status")).fields == expected
    program.release_work.set()
    assert _until(lambda: ask(*door, Frame("status")).fields["state"], "done")


def test_failed_work_says_so_and_nothing_more(door: tuple[Path, bytes]) -> None:
    ask(*door, Frame("fail"))
    assert _until(lambda: ask(*door, Frame("status")).fields["state"], "failed")
    assert SECRET_TEXT not in str(ask(*door, Frame("status")))


def test_work_can_follow_on_failed_work() -> None:
    job = Job()
    job.start("first", lambda: exec("raise SystemExit"))
    assert _until(lambda: job.state, "failed")
    assert job.start("second", lambda: None)
    assert _until(lambda: job.state, "done")
    assert job.name == "second"


class Started:
    """A node in a process of its own, with the fake program."""

    def __init__(
        self,
        folder: Path,
        *,
        prelude: str = "",
        unconfined: bool = True,
        output: Path | None = None,
        terminal: int | None = None,
    ) -> None:
        self.folder = folder
        self.reader, self.writer = os.pipe()
        # The tests are no installed package, and the node leaves this folder.
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT_FOLDER)!r})\n"
            + textwrap.dedent(prelude)
            + textwrap.dedent(
                f"""
            from pathlib import Path
            from protocol.node.launcher import launch
            from protocol.commands.terminal import exit_code
            names = "protocol.node.configuration:NodeConfiguration", "{FAKE}:make"
            config = Path({str(folder / "config.toml")!r})
            options = dict(lifeline={self.reader}, unconfined={unconfined})
            sys.exit(exit_code(lambda: launch(config, None, *names, **options)))
            """
            )
        )
        command = [sys.executable, "-c", code]
        with contextlib.ExitStack() as stack:
            # A path: standard output goes there; a terminal: all that is printed.
            to = subprocess.PIPE if output is None else stack.enter_context(output.open("a"))
            self.process = subprocess.Popen(
                command,
                pass_fds=(self.reader,),
                stdout=to if terminal is None else terminal,
                stderr=subprocess.PIPE if terminal is None else terminal,
                text=True,
            )
        os.close(self.reader)

    def ask(self, command: Frame) -> Frame:
        return ask(self.folder / "node.sock", load_secret(self.folder / "socket.secret"), command)

    def wait_until_listening(self) -> None:
        # Its file is there a moment before it listens.
        while not _answers(self.folder / "node.sock"):
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.02)

    def end(self) -> tuple[int, str]:
        os.close(self.writer)
        _, errors = self.process.communicate(timeout=20)
        return self.process.returncode, errors


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    (tmp_path / "data").mkdir()
    make_node(folder, "individual", tmp_path / "data")
    return folder


def test_a_node_ends_when_its_lifeline_closes_even_at_work(site: Path) -> None:
    node = Started(site)
    node.wait_until_listening()
    assert node.ask(Frame("status")).fields["party"] == "individual-1"
    node.ask(Frame("work"))
    assert node.end() == (0, "")


def test_a_node_ends_on_sigterm_and_leaves_no_socket(site: Path) -> None:
    node = Started(site)
    node.wait_until_listening()
    node.ask(Frame("status"))
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(20) == 0
    assert not (site / "node.sock").exists()
    node.end()


@pytest.mark.skipif(not confine.offered(), reason="this kernel does not confine a process")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, None])
def test_a_confined_node_that_ends_leaves_no_socket(site: Path, how: signal.Signals | None) -> None:
    node = Started(site, unconfined=False, prelude="import tests.protocol.fake_program")
    node.wait_until_listening()
    node.ask(Frame("status"))
    if how is not None:
        node.process.send_signal(how)
    node.end()
    # The warden removes it, and lets go of the lock then.
    with state_files.held(site / "state", seconds=30):
        pass
    assert not (site / "node.sock").exists()
    assert (site / "config.toml").exists()


@pytest.mark.skipif(not confine.offered(), reason="this kernel does not confine a process")
def test_a_start_that_is_refused_beside_a_running_node_leaves_that_ones_socket(site: Path) -> None:
    first = Started(site, unconfined=False, prelude="import tests.protocol.fake_program")
    first.wait_until_listening()
    other = site.parent / "other"
    make_node(other, "individual", site.parent / "data")
    text = (other / "config.toml").read_text()
    (other / "config.toml").write_text(text.replace('"node.sock"', f'"{site}/node.sock"'))
    code, errors = Started(other, unconfined=False, prelude="import tests.protocol.fake_program").end()
    assert code == 1
    assert "listens on" in errors
    with state_files.held(other / "state", seconds=30):
        pass
    assert first.ask(Frame("echo")) == Frame("echo")
    first.end()


def test_where_the_kernel_confines_nothing_a_node_must_be_accepted_by_its_operator(site: Path) -> None:
    prelude = """
        from protocol.confinement import landlock
        landlock.abi = lambda: 0
    """
    node = Started(site, prelude=prelude, unconfined=False)
    code, errors = node.end()
    assert code == 1
    assert errors.count("\n") == 1
    assert "unconfined = true" in errors
    assert not (site / "node.sock").exists()


@pytest.mark.skipif(not confine.offered(), reason="this kernel does not confine a process")
def test_a_node_is_confined_by_default_and_works(site: Path) -> None:
    # The fake program is no installed package, so that it could not be found any more.
    node = Started(site, unconfined=False, prelude=f"import {FAKE}")
    node.wait_until_listening()
    assert node.ask(Frame("echo")) == Frame("echo")
    node.end()
    assert " confined (" in (site / "state" / "node.log").read_text()


def test_the_operator_may_accept_it_in_the_file(site: Path) -> None:
    text = (site / "config.toml").read_text()
    (site / "config.toml").write_text(text.replace("unconfined = false", "unconfined = true"))
    node = Started(site, unconfined=False)
    node.wait_until_listening()
    assert node.ask(Frame("echo")) == Frame("echo")
    assert node.end()[0] == 0
    assert "unconfined" in (site / "state" / "node.log").read_text()


def test_two_nodes_do_not_share_a_state_folder(site: Path) -> None:
    first = Started(site)
    first.wait_until_listening()
    code, errors = Started(site).end()
    assert code == 1
    assert "another node process" in errors
    assert first.ask(Frame("echo")) == Frame("echo")
    first.end()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_one_thread_and_no_torch_until_the_process_is_confined(site: Path) -> None:
    node = Started(
        site,
        prelude="""
            import os, sys
            from protocol.node import confine
            apply = confine.apply
            def look(*given, **more):
                print(len(os.listdir("/proc/self/task")), {"torch", "numpy"} & set(sys.modules), flush=True)
                return apply(*given, **more)
            confine.apply = look
        """,
    )
    assert node.process.stdout is not None
    assert node.process.stdout.readline().strip() == "1 set()"
    node.end()


def test_what_is_read_before_a_start_loads_neither_torch_nor_numpy(site: Path) -> None:
    """It holds keys, and nothing confines it."""
    node = Started(
        site,
        prelude="""
            import sys
            from protocol.node import launcher
            rehearse = launcher.rehearse
            def look(work):
                def watched():
                    found = work()
                    print(sorted({"torch", "numpy"} & set(sys.modules)), flush=True)
                    return found
                return rehearse(watched)
            launcher.rehearse = look
        """,
    )
    assert node.process.stdout is not None
    assert node.process.stdout.readline().strip() == "[]"
    node.end()


@pytest.mark.parametrize("where", ["pipe", "file", "the log"])
def test_a_node_without_a_terminal_says_once_that_it_is_ready_and_where_its_log_is(site: Path, where: str) -> None:
    log, output = site / "state" / "node.log", site.parent / "output"
    into: Path | None = None if where == "pipe" else output
    if where == "the log":
        log.parent.mkdir(mode=0o700)
        into = log
    node = Started(site, output=into)
    node.wait_until_listening()
    # It answers after it has said so.
    node.ask(Frame("status"))
    os.close(node.writer)
    piped, errors = node.process.communicate(timeout=20)
    said = (piped if into is None else into.read_text()).splitlines()
    expected = f"individual-1 listens on {site / 'node.sock'}; its log is {log}"
    assert errors == ""
    assert (said.count(expected), len(said)) == (1, 1) if where != "the log" else expected not in said
    # The control: the log says when it listens, whatever is printed.
    assert log.read_text().count(f"listens on {site / 'node.sock'}") == 1


def test_a_node_on_a_terminal_shows_its_log_there_and_says_nothing_twice(site: Path) -> None:
    master, terminal = pty.openpty()
    node = Started(site, terminal=terminal)
    os.close(terminal)
    node.wait_until_listening()
    node.ask(Frame("status"))
    os.close(node.writer)
    node.process.wait(20)
    shown = b""
    with contextlib.suppress(OSError):  # its other end has closed
        while piece := os.read(master, 4096):
            shown += piece
    os.close(master)
    assert shown.count(b"listens on") == 1
    assert b" INFO individual-1 listens on" in shown


@pytest.mark.skipif(not confine.offered(), reason="this kernel does not confine a process")
def test_a_node_whose_warden_was_killed_ends_and_says_why(site: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_node(other, "individual", tmp_path / "data")
    nodes = [Started(folder, unconfined=False, prelude=f"import {FAKE}") for folder in (site, other)]
    for node in nodes:
        node.wait_until_listening()
        assert node.ask(Frame("echo")) == Frame("echo")
    killed, untouched = nodes
    # It is at work, which does not hold it up.
    killed.ask(Frame("work"))
    os.kill(warden_of(killed.process.pid), signal.SIGKILL)
    assert killed.process.wait(20) == 1
    killed.end()
    last = (site / "state" / "node.log").read_text().splitlines()[-1]
    assert " ERROR " in last
    assert "warden" in last
    # The control: nobody touched its warden.
    assert untouched.ask(Frame("echo")) == Frame("echo")
    assert untouched.process.poll() is None
    assert untouched.end()[0] == 0


@pytest.mark.skipif(not confine.offered(), reason="this kernel does not confine a process")
def test_a_node_whose_warden_is_killed_while_it_starts_does_not_start_and_says_why(site: Path) -> None:
    prelude = f"""
        import os, signal
        import {FAKE}
        from protocol.node import launcher
        start = launcher.start_warden
        def killed(*given, **more):
            warden = start(*given, **more)
            os.kill(warden.pid, signal.SIGKILL)
            os.waitid(os.P_PID, warden.pid, os.WEXITED)
            return warden
        launcher.start_warden = killed
    """
    code, errors = Started(site, unconfined=False, prelude=prelude).end()
    assert code == 1
    assert "the warden" in errors
    assert errors.count("\n") == 1


def warden_of(node: int) -> int:
    """The child that writes the node's log; the other one is its printer."""
    logs = ((child.pid, [Path(file.path).name for file in child.open_files()]) for child in descendants(node))
    (warden,) = (pid for pid, names in logs if "node.log" in names)
    return warden


def test_keys_are_opened_before_the_process_is_confined(site: Path) -> None:
    """So that a confined process need not be able to read them."""
    prelude = f"""
        from pathlib import Path
        from protocol.node import confine
        apply = confine.apply
        def take_away(*given, **more):
            for name in ("signing.key", "encryption.key", "key.secret"):
                Path({str(site)!r}, name).unlink()
            return apply(*given, **more)
        confine.apply = take_away
    """
    unlock = Unlock.key_file(site / "key.secret")
    keyid = SigningKey.load(site / "signing.key", unlock).keyid
    public = EncryptionKey.load(site / "encryption.key", unlock).public
    node = Started(site, prelude=prelude)
    node.wait_until_listening()
    assert node.ask(Frame("echo")) == Frame("echo")
    assert node.end()[0] == 0
    assert f"opened {keyid} {public.hex()}" in (site / "state" / "node.log").read_text()
    code, errors = Started(site).end()
    assert code == 2
    assert "cannot read the key file" in errors
    assert errors.count("\n") == 1


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as one:
        return one.connect_ex(str(path)) == 0


def _until(look: Callable[[], str], wanted: str) -> bool:
    for _ in range(500):
        if look() == wanted:
            return True
        time.sleep(0.01)
    return False
