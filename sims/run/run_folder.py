"""The folder of one run: made once, locked while the run goes on, and found again for a resume."""

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from protocol.encoding.earlier_words import in_format_2
from protocol.encoding.text import text_of
from protocol.errors import FLOWER_ENDED, InputError, LearngeneError, StorageFailedError, fault_line
from protocol.files import state_files
from protocol.files.atomic import make_folder, write_atomically
from protocol.files.user_files import read_given, write_new
from sims.run.reach import Reach
from sims.run.settings import RunSettings

SETTINGS_FILE, RECORD_FILE, LOCK_FILE = "settings.json", "run.json", "lock"
#: Most bytes of a record or of the settings of a run.
_MAX_BYTES = 16 << 20

Status = Literal["running", "failed", "finished"]
_Model = TypeVar("_Model", bound=BaseModel)


class RunRecord(BaseModel):
    """``run.json``: the status of a run, and its times.

    Attributes:
        seconds: wall-clock times by name.
        peak_memory: the most bytes that each node process had in memory, by party.
        reach: who could reach its sockets; None if an older version did not record it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    run_id: str = Field(pattern="^[0-9a-f]{32}$")
    status: Status
    failure: str | None = None
    started: str
    seconds: dict[str, float] = {}
    peak_memory: dict[str, int] = {}
    reach: Reach | None = None


class SettingsFile(BaseModel):
    """``settings.json``: the whole configuration of a run. It is written once, before anything else of the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    settings: RunSettings

    @model_validator(mode="before")
    @classmethod
    def _earlier(cls, document: object) -> object:
        """Convert format 1, which has other words and repeats the source of the images, which the world states."""
        found = in_format_2(document)
        if found is not document and isinstance(found, dict):
            found.pop("dataset", None)
        return found


@dataclass
class OpenRun:
    """A run folder that this process works in. No other process can open it until ``close`` or the end of this one."""

    folder: Path
    record: RunRecord
    _lock: TextIOWrapper = field(repr=False)

    def update(
        self,
        *,
        status: Status | None = None,
        failure: str | None = None,
        seconds: Mapping[str, float] | None = None,
        peak_memory: Mapping[str, int] | None = None,
    ) -> None:
        """Write what changed to ``run.json``; ``seconds`` and ``peak_memory`` are added to those already known."""
        self.record = self.record.model_copy(
            update={
                "status": status or self.record.status,
                "failure": failure,
                "seconds": {**self.record.seconds, **(seconds or {})},
                "peak_memory": {**self.record.peak_memory, **(peak_memory or {})},
            }
        )
        _write_json(self.folder / RECORD_FILE, self.record)

    def end(self, failure: str) -> None:
        """Write down that the run has failed, even on a full disk.

        Raises:
            StorageFailedError: the record cannot be written.
        """
        try:
            self.update(status="failed", failure=failure)
        except StorageFailedError:
            # Overwrite the old record in place, because the disk may be full. White space may follow the JSON.
            path = self.folder / RECORD_FILE
            text = _text(self.record).encode()
            try:
                with path.open("r+b", buffering=0) as file:
                    old = os.fstat(file.fileno()).st_size
                    if file.write(text.ljust(old)) < len(text):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                raise StorageFailedError(f"cannot write {path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Let others open the folder."""
        self._lock.close()

    @classmethod
    def end_abandoned(cls, folder: Path, failure: str, *, before: RunRecord | None = None) -> None:
        """Write down that a run has failed if its own process ended without doing so, or without knowing why.

        Args:
            before: the record that a resumed run began with: if it is unchanged, its process never wrote another.

        Raises:
            InputError: a process still works on it. StorageFailedError: the record cannot be written.
        """
        run = cls(folder, read_record(folder), _lock(folder))
        try:
            unsaid = run.record.status == "running" or run.record.failure == FLOWER_ENDED
            if unsaid or (run.record == before and before.status != "finished"):
                run.end(failure)
        finally:
            run.close()


#: Reason in the record of a run if nobody is left who could have written one.
LOST = "all its processes ended at once, as when the machine goes off"


def why_unfinished(folder: Path) -> str:
    """Why a run has no results, in a few words; empty if the folder holds no run.

    The record of a run that nobody works on any more does not go on saying that it runs.
    """
    with contextlib.suppress(LearngeneError, OSError):  # somebody works on it, or the folder cannot be written
        OpenRun.end_abandoned(folder, LOST)
    try:
        record = read_record(folder)
    except InputError:
        return ""
    return "it is not finished yet" if record.status == "running" else f"it {record.status}: {record.failure}"


def run_of(path: Path) -> Path:
    """The folder of the run that a user names: the folder itself, or any file that lies directly in it."""
    return path.parent if path.is_file() and (path.parent / RECORD_FILE).is_file() else path


#: Individuals are numbered from 1.
_INDIVIDUAL = re.compile(r"individual-([1-9][0-9]{0,8})").fullmatch


def state_folder(run: Path, party: str) -> Path:
    """The folder of the files that a party's node writes itself in a run folder. Open its files only with
    :mod:`protocol.files.state_files`, because the node controls them.
    """
    home = run / "nodes" / party
    state = home / "state"
    # In runs of former versions, a node's home was its state.
    return home if (home / "metrics.json").exists() and not state.exists() else state


def individuals_of(run: Path) -> list[str]:
    """The individuals of a run by name, in the order of their numbers; none before its nodes are started."""
    try:
        names = os.listdir(run / "nodes")
    except OSError:
        return []
    numbers = sorted(int(found[1]) for name in names if (found := _INDIVIDUAL(name)) is not None)
    return [f"individual-{number}" for number in numbers]


def reserve_folder(out: Path, subject: str, now: datetime) -> Path:
    """Make a new empty folder ``<out>/<UTC time>-<subject>``.

    Raises:
        InputError: ``out`` cannot be written.
    """
    name = f"{now.astimezone(UTC):%Y%m%d-%H%M%S}-{subject}"
    try:
        make_folder(out)
        for attempt in range(1, 1000):
            folder = out / (name if attempt == 1 else f"{name}-{attempt}")
            try:
                folder.mkdir(mode=0o700)
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise InputError(f"out: cannot write to {out}: {error.strerror}") from None
    raise InputError(f"out: {out} holds too many runs of this second; wait a moment")


def prepare(settings: RunSettings, *, now: datetime) -> Path:
    """The folder that the settings ask for, with the settings in it: a new one, a named empty one, or with ``resume``
    an unfinished one, which is not changed.

    Args:
        now: the time from which a new folder gets its name.

    Raises:
        InputError: a named folder that already holds something, nothing to resume, or other settings.
    """
    if settings.resume:
        return resume_folder(settings)
    folder = settings.folder or reserve_folder(settings.out, settings.dataset, now)
    try:
        make_folder(folder)
    except OSError as error:
        raise InputError(f"folder: cannot write to {folder}: {error.strerror}") from None
    check_empty(folder)
    try:
        write_new(folder / SETTINGS_FILE, _text(SettingsFile(settings=settings)).encode())
    except InputError:  # another process was quicker
        check_empty(folder)
        raise
    return folder


def forget(folder: Path) -> bool:
    """Remove a folder that holds only the settings of a run that never began. Returns whether it did.

    A resumed run has a record, and so is never forgotten.
    """
    if any(path.name not in (SETTINGS_FILE, LOCK_FILE) for path in folder.iterdir()):
        return False
    for name in (SETTINGS_FILE, LOCK_FILE):
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()
    return True


def check_empty(folder: Path) -> None:
    """Refuse a folder for a new run that holds something.

    Raises:
        InputError: it does.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; give a new folder, or --resume to go on with the run in it")


def open_prepared(
    folder: Path,
    *,
    resume: bool,
    now: datetime,
    reach: Reach | None = None,
    new_run_id: Callable[[], str] = lambda: secrets.token_hex(16),
) -> OpenRun:
    """Open a folder that holds the settings of a run, to start or resume the run.

    A resumed run keeps its run id and everything that its nodes have stored.

    Args:
        resume: go on with the unfinished run in it.
        now: the run's start.
        reach: who can reach the run's sockets.
        new_run_id: makes the 128 random bits of a new run id.

    Raises:
        InputError: another process works on it, it holds a run that has finished or was started although ``resume`` is
            not given, or ``resume`` is given and it holds none.
    """
    lock = _lock(folder)
    try:
        if resume:
            record = _unfinished(folder).model_copy(update={"status": "running", "failure": None, "reach": reach})
        elif (folder / RECORD_FILE).exists():
            raise InputError(
                f"{folder} holds a run already; give a new folder, or --resume to go on with the run in it"
            )
        else:
            started = now.astimezone(UTC).isoformat(timespec="seconds")
            record = RunRecord(run_id=new_run_id(), status="running", started=started, reach=reach)
        run = OpenRun(folder, record, lock)
        run.update()
    except BaseException:
        lock.close()
        raise
    return run


def _unfinished(folder: Path) -> RunRecord:
    record = read_record(folder)
    if record.status == "finished":
        raise InputError(f"{folder} is finished already; there is nothing to resume")
    return record


def resume_folder(settings: RunSettings) -> Path:
    """The run folder that ``resume`` means: the one that the settings name, or the latest unfinished one like it.

    Raises:
        InputError: there is none, or the named one is finished or was made with other settings.
    """
    if settings.folder is None:
        return latest_unfinished(settings)
    folder = settings.folder
    _unfinished(folder)
    kept, wanted = read_settings(folder).settings.experiment(), settings.experiment()
    if kept != wanted:
        names = ", ".join(sorted(name for name in wanted if kept.get(name) != wanted[name]))
        raise InputError(f"{folder} was made with other settings ({names}); resume it with those in its settings.json")
    return folder


def latest_unfinished(settings: RunSettings) -> Path:
    """The newest run in ``settings.out`` with the same experiment that is unfinished and that no process works on.

    Raises:
        InputError: there is none.
    """
    candidates = sorted(settings.out.glob(f"*/{RECORD_FILE}"), key=lambda path: path.parent.name, reverse=True)
    for path in candidates:
        folder = path.parent
        try:
            unfinished = read_record(folder).status != "finished"
            same = read_settings(folder).settings.experiment() == settings.experiment()
        except InputError:
            continue  # skip folders of other versions or with other content
        if unfinished and same and not is_locked(folder):
            return folder
    raise InputError(f"resume: no unfinished run with these settings in {settings.out}; start one without --resume")


def read_record(folder: Path) -> RunRecord:
    """``run.json`` of a run folder.

    Raises:
        InputError: it is missing or not of this format.
    """
    return _read(folder, RECORD_FILE, RunRecord)


def read_settings(folder: Path) -> SettingsFile:
    """``settings.json`` of a run folder.

    Raises:
        InputError: it is missing or not of this format.
    """
    return _read(folder, SETTINGS_FILE, SettingsFile)


def is_locked(folder: Path) -> bool:
    """Whether a process works on the run in ``folder``.

    Raises:
        InputError: what stands there is no lock.
    """
    lock = _free_lock(folder)
    if lock is not None:
        lock.close()
    return lock is None


def _lock(folder: Path) -> TextIOWrapper:
    lock = _free_lock(folder)
    if lock is None:
        raise InputError(f"another process works on {folder}; wait until it has ended")
    return lock


def _free_lock(folder: Path) -> TextIOWrapper | None:
    """The lock of a run, held; None if another process holds it. A folder that was received may hold anything there."""
    descriptor = state_files.open_to_write(folder, LOCK_FILE, "the run's lock", os.O_WRONLY | os.O_APPEND)
    handle = open(descriptor, "a", encoding="utf-8")  # noqa: SIM115 - held open during the run
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    except OSError as error:
        handle.close()
        raise InputError(
            f"the file system of {folder} has no locks ({error.strerror}); choose a folder on another"
        ) from None
    return handle


def _read(folder: Path, name: str, model: type[_Model]) -> _Model:
    path = folder / name
    try:
        return model.model_validate_json(text_of(read_given(path, "the record", max_bytes=_MAX_BYTES)))
    except InputError:
        raise InputError(f"{folder} is no folder of a run: it has no readable {name}") from None
    except ValidationError as error:
        raise InputError(f"{path} is not what this version writes: {fault_line(error)}") from None
    except ValueError as error:
        raise InputError(f"{path} is not what this version writes: {error}") from None


def _write_json(path: Path, model: BaseModel) -> None:
    write_atomically(path, _text(model).encode())


def _text(model: BaseModel) -> str:
    return json.dumps(model.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"
