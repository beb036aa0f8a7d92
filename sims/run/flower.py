"""One run of a Flower app in a SuperLink of its own on this machine: submit it, follow it, ask how it ended."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from protocol.confinement import isolated_start
from protocol.errors import RunFailedError
from sims.run import environment
from sims.run.enclosure import Enclosure
from sims.run.environment import HandedOver
from sims.run.own_folder import OwnFolder, make_temporary_folder
from sims.run.reach import SENTENCES, reach_of_run

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_STARTUP_SECONDS = 60.0
_COMMAND_SECONDS = 60.0


class FlowerRun:
    """A submitted run and the SuperLink that serves it alone. ``close`` (or leaving the ``with``) ends both."""

    def __init__(self, temporary: OwnFolder, enclosure: Enclosure) -> None:
        self.run_id = ""
        self.enclosure = enclosure
        self._temporary = temporary
        self._environment = environment.of_run(flower_home(temporary), temporary.path)
        self._logs: list[subprocess.Popen[str]] = []

    @property
    def end(self) -> str:
        """How the SuperLink ended before this run was closed, in a few words; empty if it did not."""
        return f"Flower's SuperLink {self.enclosure.end}" if self.enclosure.end else ""

    @property
    def notice(self) -> str:
        """A sentence about who reaches the run; empty if only its own processes do."""
        refused = self.enclosure.refused
        return f"{SENTENCES[reach_of_run(refused)]} ({refused})" if refused else ""

    def stream(self) -> Iterator[str]:
        """Lines of the run's log, without colours, from the start until the run has ended."""
        if self.enclosure.ended:
            return
        process = subprocess.Popen(
            [_program("flwr"), "log", self.run_id, "local", "--stream"],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=self.enclosure.enter,
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
        ``finished:stopped``; ``lost`` if the SuperLink itself has ended."""
        if self.enclosure.ended:
            return "lost"
        answer = self._command("list", "--run-id", self.run_id, "local", "--format", "json")
        runs = answer.get("runs")
        if not isinstance(runs, list) or not runs:
            raise RunFailedError(f"Flower does not know the run {self.run_id}")
        return str(runs[0]["status"])

    def close(self) -> None:
        """End the SuperLink and every process below it, and remove Flower's files of this run. May be called again.

        Raises:
            RunFailedError: a process cannot be ended.
        """
        for process in self._logs:
            # An open log keeps the SuperLink waiting.
            process.terminate()
        try:
            self.enclosure.close()
        finally:
            self._temporary.remove()

    def __enter__(self) -> "FlowerRun":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
                preexec_fn=self.enclosure.enter,
            )
        except subprocess.TimeoutExpired:
            raise RunFailedError(f"`flwr {arguments[0]}` gave no answer in {_COMMAND_SECONDS:g} s") from None
        except subprocess.SubprocessError as error:  # there is no enclosure to enter any more
            raise RunFailedError("Flower's SuperLink has ended") from error
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
    app: Path, handed: HandedOver, *, nodes: int = 2, say: Callable[[str], None] = lambda line: None
) -> FlowerRun:
    """Start a SuperLink in an enclosure and submit a Flower app to it; returns when it is accepted.

    Args:
        app: folder with the app's ``pyproject.toml``.
        handed: the run's own folder. The end is written in its record if this process is killed.
        nodes: simulated SuperNodes, the collective included.
        say: gets a line before each part that takes seconds.

    Raises:
        InputError: there is no folder for temporary files.
        RunFailedError: Flower cannot be started or refuses the app; everything that was started has then ended.
    """
    temporary = make_temporary_folder()
    home = flower_home(temporary)
    home.mkdir(mode=0o700)
    say("Flower's SuperLink starts")
    with (home / "superlink.out").open("wb") as output:
        enclosure = Enclosure(
            lambda ready: isolated_start.command("sims.run.superlink", [str(ready)]),
            environment={**environment.of_run(home, temporary.path), **handed.environment()},
            folder=home,
            output=output,
            record=handed.folder,
        )
    run = FlowerRun(temporary, enclosure)
    try:
        if not enclosure.wait_until_ready(_STARTUP_SECONDS):
            raise RunFailedError(f"Flower's SuperLink does not start: {_last_line(home / 'superlink.out')}")
        _write_config(home, enclosure.said)
        say("Flower takes the run's app")
        answer = run._command(
            *("run", str(app.resolve()), "local", "--format", "json"),
            # One small Ray worker serves all couriers: the machine's cores belong to the node processes.
            *("--federation-config", f"num-supernodes={nodes} client-resources-num-cpus=1 init-args-num-cpus=1"),
        )
        run.run_id = str(answer["run-id"])
        say("Flower's simulation starts, and Ray in it")
    except BaseException:
        run.close()
        raise
    return run


def flower_home(temporary: OwnFolder) -> Path:
    """Flower's own folder of a run: apart from the user's ``~/.flwr``, so that files there are neither changed nor
    used.
    """
    return temporary.path / "flower"


def _write_config(home: Path, port: str) -> None:
    """Name the run's own SuperLink to the commands of Flower."""
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "127.0.0.1:{port}"\ninsecure = true\n',
        encoding="utf-8",
    )


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    return _COLOUR.sub("", lines[-1]) if lines else "no reason given"


def _program(name: str) -> str:
    """Path of a program: the one in this Python's environment, or else the first in PATH."""
    own = Path(sys.executable).parent / name
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        raise RunFailedError(f"the program {name} is not installed; install the extra: pip install 'learngene[sim]'")
    return found
