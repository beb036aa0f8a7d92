"""One run of a Flower app in a SuperLink of its own on this machine: submit it, follow it, ask how it ended."""

import contextlib
import ctypes
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType

from protocol.errors import InputError, RunFailedError
from protocol.socket import simulation_folder
from sims.processes import Process, descendants, end_all

#: Flower's own folder: apart from the user's ``~/.flwr``, so that nothing there changes or is picked up.
DEFAULT_HOME = Path("~/.learngene/flower")

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_STARTUP_SECONDS = 60.0
_COMMAND_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1


class FlowerRun:
    """A submitted run and the SuperLink that serves it alone. ``close`` (or leaving the ``with``) ends both."""

    def __init__(self, home: Path, superlink: "subprocess.Popen[bytes]", lock: TextIOWrapper) -> None:
        self.home = home
        self._lock = lock
        self.run_id = ""
        self._superlink = superlink
        self._environment = environment(home)
        self._logs: list[subprocess.Popen[str]] = []
        self._closed = threading.Event()
        self._seen: set[Process] = set()
        # Children of a process that died are no longer found below it, so they are noted while it lives.
        threading.Thread(target=self._note_processes, name="flower-processes", daemon=True).start()

    def stream(self) -> Iterator[str]:
        """Lines of the run's log, without colours, from the start until the run has ended."""
        process = subprocess.Popen(
            [_program("flwr"), "log", self.run_id, "local", "--stream"],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_END_WITH_PARENT,
        )
        self._logs.append(process)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield _COLOUR.sub("", line.rstrip("\n"))
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()

    def status(self) -> str:
        """Flower's word: ``pending``, ``starting``, ``running``, ``finished:completed``, ``finished:failed``,
        ``finished:stopped``; ``lost`` where the SuperLink itself has ended."""
        if self._superlink.poll() is not None:
            return "lost"
        answer = self._command("list", "--run-id", self.run_id, "local", "--format", "json")
        runs = answer.get("runs")
        if not isinstance(runs, list) or not runs:
            raise RunFailedError(f"Flower does not know the run {self.run_id}")
        return str(runs[0]["status"])

    def close(self) -> None:
        """End the SuperLink and every process below it, and remove Flower's files of this run. May be called again."""
        self._closed.set()
        for process in self._logs:
            # An open log keeps the SuperLink waiting.
            process.terminate()
        self._seen.update(descendants(self._superlink.pid))
        self._superlink.terminate()
        try:
            self._superlink.wait(5.0)
        except subprocess.TimeoutExpired:
            self._superlink.kill()
            self._superlink.wait()
        end_all(self._seen)
        if self.run_id:
            shutil.rmtree(simulation_folder(int(self.run_id)), ignore_errors=True)
        shutil.rmtree(self.home, ignore_errors=True)
        self._lock.close()

    def __enter__(self) -> "FlowerRun":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _note_processes(self) -> None:
        while not self._closed.wait(1.0):
            self._seen.update(descendants(self._superlink.pid))

    def _command(self, *arguments: str) -> dict[str, object]:
        try:
            done = subprocess.run(
                [_program("flwr"), *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RunFailedError(f"`flwr {arguments[0]}` gave no answer in {_COMMAND_SECONDS:g} s") from None
        # Notes may stand before and after the JSON object.
        start, end = done.stdout.find("{"), done.stdout.rfind("}")
        try:
            answer: dict[str, object] = json.loads(done.stdout[start : end + 1])
        except ValueError:
            text = " ".join(_COLOUR.sub("", done.stderr + done.stdout).split())
            raise RunFailedError(f"`flwr {arguments[0]}` failed: {text[-400:]}") from None
        if answer.get("success") is False:
            raise RunFailedError(f"`flwr {arguments[0]}` failed: {answer.get('error-message', 'no reason given')}")
        return answer


def submit(
    app: Path,
    run_config: Mapping[str, str | int | float | bool],
    *,
    nodes: int = 2,
    home: Path = DEFAULT_HOME,
) -> FlowerRun:
    """Start a SuperLink on a free port of this machine and submit a Flower app to it; returns when it is accepted.

    To be called from the main thread: on Linux the SuperLink ends with the thread that started it.

    Args:
        app: folder with the app's ``pyproject.toml``.
        run_config: overrides of the app's own configuration; paths in it must be absolute.
        nodes: simulated SuperNodes, the collective included.
        home: where Flower keeps its files; each run gets a folder of its own in it, which ``close`` removes.

    Raises:
        InputError: ``home`` cannot be written.
        RunFailedError: Flower cannot be started or refuses the app; everything that was started has ended then.
    """
    home = home.expanduser()
    try:
        own, lock = _own_folder(home)
    except OSError as error:
        raise InputError(f"cannot write to Flower's folder {home}: {error.strerror or error}") from error
    port = _free_port()
    (own / "config.toml").write_text(
        f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "127.0.0.1:{port}"\ninsecure = true\n',
        encoding="utf-8",
    )
    with (own / "superlink.out").open("wb") as output:
        superlink = subprocess.Popen(
            [
                _program("flower-superlink"),
                *("--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1"),
                *("--port", str(port), "--disable-runtime-dependency-installation"),
            ],
            env=environment(own),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=own,
            start_new_session=True,
            preexec_fn=_END_WITH_PARENT,
        )
    run = FlowerRun(own, superlink, lock)
    try:
        _wait_until_healthy(superlink, port, own / "superlink.out")
        answer = run._command(
            *("run", str(app.resolve()), "local", "--format", "json"),
            *("--run-config", " ".join(f"{key}={_toml(value)}" for key, value in run_config.items()))
            if run_config
            else (),
            # One small Ray worker serves all couriers: the machine's cores belong to the node processes.
            *("--federation-config", f"num-supernodes={nodes} client-resources-num-cpus=1 init-args-num-cpus=1"),
        )
        run.run_id = str(answer["run-id"])
    except BaseException:
        run.close()
        raise
    return run


def environment(home: Path) -> dict[str, str]:
    """Environment of every Flower command: its own folder, this Python's programs first, no telemetry."""
    return {
        **os.environ,
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "NO_COLOR": "1",
    }


def _own_folder(home: Path) -> tuple[Path, TextIOWrapper]:
    """A new folder in ``home`` and the lock that this process holds on it; folders of killed commands are removed."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / "lock").open("w") as gate:
        # One at a time, so that nobody takes a folder that has no lock yet for an abandoned one.
        fcntl.flock(gate, fcntl.LOCK_EX)
        for folder in home.glob("run-*"):
            with contextlib.suppress(OSError), (folder / "lock").open("w") as abandoned:
                fcntl.flock(abandoned, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        own = Path(tempfile.mkdtemp(prefix="run-", dir=home))
        lock = (own / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return own, lock


def _wait_until_healthy(superlink: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + _STARTUP_SECONDS
    # No proxy of the environment between us and our own machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        if superlink.poll() is not None:
            break
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            opener.open(f"http://127.0.0.1:{port}/health", timeout=1.0),
        ):
            return
        time.sleep(0.1)
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    raise RunFailedError(
        f"Flower's SuperLink does not start: {_COLOUR.sub('', lines[-1]) if lines else 'no reason given'}"
    )


def _program(name: str) -> str:
    """A program of this Python's own environment, or the first on the path."""
    own = Path(sys.executable).parent / name
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        raise RunFailedError(f"the program {name} is not installed; install the extra: pip install 'learngene[sim]'")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _toml(value: str | int | float | bool) -> str:
    # Strings of JSON are strings of TOML, and so are its numbers and booleans.
    return json.dumps(value)


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


# Loaded here: between fork and exec nothing may be loaded, only called.
_LIBC = ctypes.CDLL(None)
_END_WITH_PARENT = _end_with_parent if sys.platform == "linux" else None
