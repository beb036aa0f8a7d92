"""One run from beginning to end: submit the Flower app, show its progress, say how it ended."""

import contextlib
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import as_file, files
from pathlib import Path
from types import FrameType, TracebackType
from typing import ClassVar, Protocol

from rich.console import Console

from collective_node import enough_images
from protocol.errors import FLOWER_ENDED, InputError, LearngeneError, RunFailedError, StoppedError, StorageFailedError
from protocol.files.atomic import write_atomically
from protocol.output import plain
from protocol.trust.policy import Policy
from protocol.visible_text import visible_line
from sims.data.datasets import CACHE
from sims.data.images import count_images, fetch_published
from sims.data.world_plan import check_enough
from sims.results.models import Results, load
from sims.run import flower
from sims.run.environment import HandedOver
from sims.run.progress import ProgressView, RunWatcher
from sims.run.run_folder import (
    OpenRun,
    RunRecord,
    forget,
    is_locked,
    prepare,
    read_record,
    resume_folder,
)
from sims.run.settings import RunSettings, check_machine

_POLL_SECONDS = 0.3
#: Seconds that Flower may take to report the end after the run's own record has it.
_GRACE_SECONDS = 60.0
#: Most characters of a reason from another program's log.
_REASON_CHARACTERS = 400
#: Most lines of Flower's log that are kept.
_LOG_LINES = 20_000


_APP_LOST = "its app's process ended without a word, as one does that is killed or runs out of memory"


class SubmittedRun(Protocol):
    """The part of ``sims.run.flower.FlowerRun`` that the runner uses."""

    @property
    def notice(self) -> str: ...

    @property
    def end(self) -> str: ...

    def stream(self) -> Iterator[str]: ...

    def status(self) -> str: ...

    def close(self) -> None: ...


class Submit(Protocol):
    """``sims.run.flower.submit``."""

    def __call__(self, app: Path, handed: HandedOver, *, nodes: int, say: Callable[[str], None]) -> SubmittedRun: ...


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
        RunFailedError: the run ended without its result; the message says why, and how to go on if that helps.
        StoppedError: Ctrl-C or another signal ended it; the message says what is kept, and how to go on.
    """
    check_machine(settings)
    if not settings.resume:  # a run that is resumed has its world
        _check_images(settings, console)
    folder = prepare(settings, now=datetime.fromtimestamp(clock(), UTC))
    console.print(plain(f"run folder     {folder}"), soft_wrap=True)
    if settings.choice.notice:
        console.print(plain(settings.choice.notice, "bold yellow"), soft_wrap=True)
    before = _record(folder)
    log: deque[str] = deque(maxlen=_LOG_LINES)
    with Interruption() as interruption:
        failed, reason = _run_in(folder, settings, console, log, submit, clock, interruption)
        problem = _leave(folder, log, reason, before)
    record = _record(folder)
    if interruption.number:
        raise StoppedError(_what_is_left(settings, folder, record, interruption, problem), interruption.number)
    if isinstance(failed, OSError):  # a full disk, most of all
        raise RunFailedError(f"the run failed: {failed}; its folder is {folder}{problem}") from failed
    if failed is not None:
        raise failed
    refusal = _refusal(log)
    if refusal and (record is None or record.status != "finished"):
        # The cause is the images: to go on would end in the same way.
        raise InputError(f"{refusal}; the folder of this attempt is {folder}")
    if record is None:
        raise RunFailedError(f"the run did not start: {_last_words(log) or reason}; see {folder / 'flower.log'}")
    if record.status != "finished":
        raise RunFailedError(f"the run failed: {_why(record, reason, settings, folder, before)}{problem}")
    return folder, load(folder)


def _check_images(settings: RunSettings, console: Console) -> None:
    """Refuse too few images before anything is started, and download missing ones."""
    division, counts = count_images(
        settings.data,
        dataset=settings.dataset,
        stand_in=settings.stand_in,
        choice=settings.choice,
        say=lambda line: console.print(plain(line), soft_wrap=True),
    )
    check_enough(counts, division, settings.plan)
    enough_images.check_enough(
        settings.collective,
        [counts["train"][name] for name in division.base],
        seed=settings.seed,
        fewest=Policy.for_role("collective").minimum_fisher_samples,
    )
    if settings.data is None and not settings.stand_in:
        # The run itself has no network for a download. Without the images it draws the stand-in, and says so.
        fetch_published(settings.cache or CACHE, say=lambda line: console.print(plain(line)))


def _run_in(
    folder: Path,
    settings: RunSettings,
    console: Console,
    log: deque[str],
    submit: Submit,
    clock: Callable[[], float],
    interruption: "Interruption",
) -> tuple[BaseException | None, str]:
    """Do Flower's part of a run, from its start until all its processes have ended. Returns the error that stopped it,
    and the reason for its end, if known.
    """
    submitted: SubmittedRun | None = None
    reason = ""
    failed: BaseException | None = None
    try:
        watcher = RunWatcher(folder, from_end=settings.resume)
        with as_file(files("sims") / settings.dataset) as app, ProgressView(console, clock) as view:
            handed = HandedOver(folder, settings.resume)
            submitted = submit(app, handed, nodes=settings.individuals + 1, say=view.say)
            if submitted.notice:
                console.print(plain(submitted.notice))
            reason = _follow(submitted, folder, watcher, log, view, clock)
    except BaseException as error:
        failed = error
    interruption.only_note()
    try:
        if submitted is not None:
            submitted.close()
    except LearngeneError as error:
        failed = failed or error
    if isinstance(failed, KeyboardInterrupt):
        interruption.number = interruption.number or signal.SIGINT
    if interruption.number:
        return failed, interruption.reason
    if failed is not None:
        return failed, str(failed) or type(failed).__name__
    end = submitted.end if submitted is not None else ""
    return None, end or (reason if reason == _APP_LOST else _last_words(log) or reason)


def _what_is_left(
    settings: RunSettings, folder: Path, record: RunRecord | None, interruption: "Interruption", problem: str
) -> str:
    """The line for a user who has ended a run."""
    if record is None:
        return f"{interruption.word} before anything was done{problem}"
    if record.status == "finished":
        return f"{interruption.word}; the run is finished all the same, and its folder is {folder}{problem}"
    return (
        f"{interruption.word}; what is done is kept in {folder}; go on with: {_command_to_resume(settings, folder)}"
        f"{problem}"
    )


def _why(record: RunRecord, reason: str, settings: RunSettings, folder: Path, before: RunRecord | None) -> str:
    """Why a run failed, where its folder is, and how to go on; the last is left out if it failed in the same way
    twice.
    """
    failure = record.failure or reason
    if before is not None and before.failure == failure:
        return f"{failure}; its folder is {folder}; it ended so before it was resumed, too"
    return f"{failure}; its folder is {folder}; go on with: {_command_to_resume(settings, folder)}"


def _command_to_resume(settings: RunSettings, folder: Path) -> str:
    return f"{settings.model_copy(update={'out': folder.parent}).command()} --resume"


def planned_folder(settings: RunSettings, now: datetime) -> Path:
    """The folder that ``run`` would write; nothing is made.

    Raises:
        InputError: there is nothing to resume.
    """
    if settings.resume:
        return resume_folder(settings)
    return settings.folder or settings.out / f"{now.astimezone(UTC):%Y%m%d-%H%M%S}-{settings.dataset}"


def _follow(
    submitted: SubmittedRun,
    folder: Path,
    watcher: RunWatcher,
    log: deque[str],
    view: ProgressView,
    clock: Callable[[], float],
) -> str:
    """Show what happens until the run has ended. Returns why it ended, as far as Flower says."""

    def read_log() -> None:
        for line in submitted.stream():
            log.append(line)

    reader = threading.Thread(target=read_log, name="flower-log", daemon=True)
    reader.start()
    ended: float | None = None
    before = _record(folder)  # of a resumed run: how it ended the time before
    while reader.is_alive():
        reader.join(_POLL_SECONDS)
        view.show(watcher.poll())
        # The log's stream is the sign that the run is over; if it hangs, the run's own record is.
        record = _record(folder)
        begun = record is not None and record != before
        if begun and _is_lost(folder):  # Flower takes most of a minute to find out
            return _APP_LOST
        if ended is None and begun and record is not None and record.status != "running":
            ended = clock()
        if ended is not None and clock() - ended > _GRACE_SECONDS:
            break
    view.show(watcher.poll())
    try:
        status = submitted.status()
    except LearngeneError:
        status = "unknown"
    return f"it ended without a word (Flower calls it {status})"


def _is_lost(folder: Path) -> bool:
    """Whether the record of a run says that it goes on, although no process works on it."""
    record = _record(folder)
    if record is None or record.status != "running" or is_locked(folder):
        return False
    return _record(folder) == record  # it might have ended in between


def _leave(folder: Path, log: deque[str], reason: str, before: RunRecord | None) -> str:
    """Write down the end of a run that could not do so itself (killed, out of memory), and keep Flower's log.

    A folder that the run never used is removed again.

    Returns:
        The failure to write, to stand at the end of a line; empty if there was none.
    """
    if not folder.is_dir():
        return ""
    record = _record(folder)
    if record is None and (not log or reason in Interruption.REASONS.values()) and forget(folder):
        return ""
    try:
        if record is not None:
            with contextlib.suppress(InputError):  # another process works on it, and will say how it ended
                OpenRun.end_abandoned(folder, reason, before=before)
        if log:
            write_atomically(folder / "flower.log", ("\n".join(log) + "\n").encode())
    except StorageFailedError as error:
        return f"; {error}"
    return ""


def _record(folder: Path) -> RunRecord | None:
    try:
        return read_record(folder)
    except InputError:
        return None


def _refusal(log: deque[str]) -> str:
    """The fault that the ServerApp found in the user's input, if the log names one."""
    mark = "errors.InputError: "
    return next((line.partition(mark)[2].strip() for line in reversed(log) if mark in line), "")


def _last_words(log: Iterable[str]) -> str:
    """Why a run ended, by its log: the last error of ours; if there is none, the first cause of the last error."""
    lines = list(log)
    for mark in ("InputError: ", "RunFailedError: "):
        for line in reversed(lines):
            words = line.partition(mark)[2].strip()
            if words and words != FLOWER_ENDED:
                return words
    cause = _first_cause(lines) or next((line.strip() for line in reversed(lines) if "Error: " in line), "")
    return visible_line(cause, length=_REASON_CHARACTERS)


def _first_cause(lines: Sequence[str]) -> str:
    """The first error of the last chain of tracebacks."""
    found, inside, chained = "", False, False
    for line in lines:
        if "Traceback (most recent call last):" in line:
            inside = True
        elif inside and line[:1].strip():
            # An error that another one led to is not the first.
            found, inside, chained = found if chained else line.strip(), False, False
        elif line.startswith(("The above exception was ", "During handling of the above exception, ")):
            chained = True
    return found


class Interruption:
    """Inside the ``with``, the first signal that asks for an end raises KeyboardInterrupt. Every later one, and every
    one after ``only_note``, is only recorded, so that the processes are ended in order.

    A signal that was ignored before, as in a shell's background or under nohup(1), stays ignored.

    Attributes:
        number: of the first signal that came; 0: none has.
    """

    #: Reason in the record of a run for each signal.
    REASONS: ClassVar[Mapping[int, str]] = {
        signal.SIGINT: "the user interrupted it (Ctrl-C)",
        signal.SIGTERM: "a user or the system ended it (SIGTERM)",
        signal.SIGHUP: "its terminal was closed (SIGHUP)",
    }

    def __init__(self) -> None:
        self.number = 0
        self._raises = True
        self._before: dict[int, Callable[[int, FrameType | None], object] | int] = {}

    def only_note(self) -> None:
        """From now on, raise nothing."""
        self._raises = False

    @property
    def word(self) -> str:
        """The word for the user at the terminal."""
        return "interrupted" if self.number == signal.SIGINT else f"ended by {signal.Signals(self.number).name}"

    @property
    def reason(self) -> str:
        """The reason for the record of the run."""
        return self.REASONS[self.number]

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        if self._raises:
            self._raises = False
            raise KeyboardInterrupt

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in self.REASONS:
                before = signal.getsignal(number)
                if before is not None and before != signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
