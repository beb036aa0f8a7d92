"""One run from beginning to end: submit the Flower app, show its progress, say how it ended."""

import contextlib
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.resources import as_file, files
from pathlib import Path
from types import FrameType
from typing import Protocol

from rich.console import Console

from protocol.errors import InputError, LearngeneError, RunFailedError
from protocol.files.atomic import write_atomically
from protocol.output import plain
from sims.data.images import count_images, fetch_published
from sims.data.worlds import check_enough
from sims.results.results import Results, load
from sims.run import flower
from sims.run.progress import ProgressView, RunWatcher
from sims.run.run_folder import (
    OpenRun,
    RunRecord,
    read_record,
    reserve_folder,
    resume_folder,
)
from sims.run.settings import RunSettings, Value, check_machine

_POLL_SECONDS = 0.3
#: After the run's own record says that it has ended: how long Flower may take to say the same.
_GRACE_SECONDS = 60.0
#: Lines of Flower's log that are kept.
_LOG_LINES = 20_000


class SubmittedRun(Protocol):
    """What the runner needs of ``sims.run.flower.FlowerRun``."""

    @property
    def notice(self) -> str: ...

    def stream(self) -> Iterator[str]: ...

    def status(self) -> str: ...

    def close(self) -> None: ...


class Submit(Protocol):
    """``sims.run.flower.submit``."""

    def __call__(self, app: Path, run_config: Mapping[str, Value], *, nodes: int) -> SubmittedRun: ...


def run(
    settings: RunSettings,
    console: Console,
    *,
    submit: Submit = flower.submit,
    clock: Callable[[], float] = time.time,
) -> tuple[Path, Results]:
    """Run an experiment in a folder of its own and return the folder and the results.

    Raises:
        InputError: the machine or the images lack what the settings need, or there is nothing to resume.
        RunFailedError: the run ended without its result; the message says why and how to go on.
    """
    check_machine(settings)
    if not settings.resume:  # a run that is resumed has its world
        division, counts = count_images(settings.data, dataset=settings.dataset, stand_in=settings.stand_in)
        check_enough(counts, division, settings.plan)
        if settings.collective.classes_per_task > len(division.base):
            raise InputError(
                f"a task of {settings.collective.classes_per_task} classes needs as many base classes; there are "
                f"{len(division.base)}: --set collective.classes_per_task={len(division.base)}"
            )
        if settings.data is None and not settings.stand_in:
            # A run has no network to fetch them by. Without them it draws the stand-in, and says so.
            fetch_published(say=lambda line: console.print(line, highlight=False))
    folder = _folder(settings, clock)
    settings = settings.model_copy(update={"folder": folder})
    watcher = RunWatcher(folder, from_end=settings.resume)
    log: deque[str] = deque(maxlen=_LOG_LINES)
    status = "not submitted"
    console.print(plain(f"run folder     {folder}"), soft_wrap=True)
    try:
        with _terminate_as_interrupt(), as_file(files("sims") / settings.dataset) as app:
            submitted = submit(app, settings.to_run_config(), nodes=settings.individuals + 1)
            try:
                if submitted.notice:
                    console.print(submitted.notice, highlight=False)
                status = _follow(submitted, folder, watcher, log, console, clock)
            finally:
                submitted.close()
    except BaseException as error:
        _leave(folder, log, "interrupted" if isinstance(error, KeyboardInterrupt) else str(error))
        raise
    _leave(folder, log, _last_words(log) or f"Flower calls it {status}")
    record = _record(folder)
    refusal = _refusal(log)
    if refusal and (record is None or record.status != "finished"):
        # Of what the images turned out to be: to go on would end in the same way.
        raise InputError(f"{refusal}; the folder of this attempt is {folder}")
    if record is None:
        raise RunFailedError(f"the run did not start: {_last_words(log) or status}; see {folder / 'flower.log'}")
    if record.status != "finished":
        reason = record.failure or status
        raise RunFailedError(f"the run failed: {reason}; its folder is {folder}; --resume goes on with it")
    return folder, load(folder)


def planned_folder(settings: RunSettings, now: datetime) -> Path:
    """Where ``run`` would write, without making anything.

    Raises:
        InputError: there is nothing to resume.
    """
    if settings.resume:
        return resume_folder(settings)
    return settings.folder or settings.out / f"{now.astimezone(UTC):%Y%m%d-%H%M%S}-{settings.dataset}"


def _folder(settings: RunSettings, clock: Callable[[], float]) -> Path:
    if settings.resume:
        return resume_folder(settings)
    if settings.folder is None:
        return reserve_folder(settings.out, settings.dataset, datetime.fromtimestamp(clock(), UTC))
    if settings.folder.is_dir() and any(settings.folder.iterdir()):
        raise InputError(f"{settings.folder} is not empty; give a new folder, or --resume to go on with the run in it")
    return settings.folder


def _follow(
    submitted: SubmittedRun,
    folder: Path,
    watcher: RunWatcher,
    log: deque[str],
    console: Console,
    clock: Callable[[], float],
) -> str:
    """Show what happens until the run has ended; Flower's last word on it."""

    def read_log() -> None:
        for line in submitted.stream():
            log.append(line)

    reader = threading.Thread(target=read_log, name="flower-log", daemon=True)
    reader.start()
    ended: float | None = None
    before = _record(folder)  # of a resumed run: how it ended the time before
    with ProgressView(console, clock) as view:
        while reader.is_alive():
            reader.join(_POLL_SECONDS)
            view.show(watcher.poll())
            # The log's stream is the sign that the run is over; where it hangs, the run's own record is.
            record = _record(folder)
            if ended is None and record is not None and record != before and record.status != "running":
                ended = clock()
            if ended is not None and clock() - ended > _GRACE_SECONDS:
                break
        view.show(watcher.poll())
    with contextlib.suppress(LearngeneError):
        return submitted.status()
    return "unknown"


def _leave(folder: Path, log: deque[str], reason: str) -> None:
    """Keep Flower's log, and write down that a run ended which could not do so itself (killed, out of memory).

    A folder that the run never used is removed again.
    """
    if not folder.is_dir():
        return
    record = _record(folder)
    if record is None and not log and not any(folder.iterdir()):
        folder.rmdir()
        return
    if log:
        write_atomically(folder / "flower.log", ("\n".join(log) + "\n").encode())
    if record is not None and record.status == "running":
        with contextlib.suppress(LearngeneError):
            OpenRun.end_abandoned(folder, reason)


def _record(folder: Path) -> RunRecord | None:
    try:
        return read_record(folder)
    except InputError:
        return None


def _refusal(log: deque[str]) -> str:
    """What the ServerApp found wrong with what the user gave, if that is in the log."""
    mark = "errors.InputError: "
    return next((line.partition(mark)[2].strip() for line in reversed(log) if mark in line), "")


def _last_words(log: deque[str]) -> str:
    """The last line of the log that names an error of ours, or else any error."""
    for mark in ("InputError: ", "RunFailedError: ", "Error: "):
        for line in reversed(log):
            if mark in line:
                return line[line.index(mark) + len(mark) :].strip() if mark != "Error: " else line.strip()
    return ""


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Inside, SIGTERM ends the run as Ctrl-C does, so that nothing is left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signal_number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
