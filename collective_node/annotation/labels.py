"""The decisions of an annotator about unknown images: an append-only log, in which the last valid decision counts."""

import fcntl
import os
import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from collective_node.annotation.unknown_set import CYCLES_FOLDER, place
from protocol.encoding import strict_json
from protocol.errors import InputError, RunFailedError, StorageFailedError
from protocol.files import state_files
from protocol.files.atomic import synchronise_folder
from protocol.visible_text import is_plain

LABELS_FILE = "labels.jsonl"
LONGEST_NAME = 64
_WHAT = "the labels"
#: Largest log in bytes, about 200,000 decisions.
_MOST_BYTES = 16 << 20
_is_cycle = re.compile(r"cycle-[0-9]{4}").fullmatch
#: A class is learned from some images and tested on others.
FEWEST_IMAGES = 2

#: ``cleared`` takes back the decision on its images, ``undone`` the last decision that is valid.
Verdict = Literal["named", "dismissed", "cleared", "undone", "finished"]


def clean_name(text: str) -> str:
    """A class name as it is stored: composed (NFC), without space around it, single spaces within.

    Raises:
        ValueError: it is empty, longer than 64 characters, or has an unprintable character.
    """
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if not 1 <= len(name) <= LONGEST_NAME:
        raise ValueError(f"a name has 1 to {LONGEST_NAME} characters")
    if not is_plain(name):
        raise ValueError("a name has only characters that can be seen")
    return name


class Decision(BaseModel):
    """One line of the log.

    Attributes:
        id: chosen by the page, 8 to 64 characters; a decision that arrives twice counts once.
        verdict: the kind of decision.
        images: numbers of the images that it is about, ascending; none if it is ``undone`` or ``finished``.
        name: of the class, if the verdict is ``named``; see :func:`clean_name`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str = Field(pattern=r"^[0-9a-zA-Z-]{8,64}$")
    verdict: Verdict
    images: tuple[int, ...] = ()
    name: str | None = None

    @field_validator("images")
    @classmethod
    def _each_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))

    @field_validator("name")
    @classmethod
    def _clean(cls, value: str | None) -> str | None:
        return None if value is None else clean_name(value)

    @model_validator(mode="after")
    def _whole(self) -> "Decision":
        if (self.name is not None) != (self.verdict == "named"):
            raise ValueError("a name belongs to the verdict named, and to no other")
        if bool(self.images) != (self.verdict in ("named", "dismissed", "cleared")):
            raise ValueError(f"the verdict {self.verdict} is about {'no' if self.images else 'some'} images")
        return self


@dataclass(frozen=True)
class Labels:
    """The state of all images after all decisions.

    Attributes:
        given: for every decided image its name, or None if it was dismissed.
        finished: whether the annotator has finished.
    """

    given: Mapping[int, str | None] = field(default_factory=dict)
    finished: bool = False

    def check_within(self, images: int) -> None:
        """Check that all labels are of the ``images`` images that there are.

        Raises:
            InputError: a label is of an image that is not there.
        """
        if any(not 0 <= image < images for image in self.given):
            raise InputError(
                f"{LABELS_FILE} is about images that are not there (there are 0 to {images - 1}): it is another set's, "
                "or was changed; move it away, and name them again"
            )

    @property
    def dismissed(self) -> tuple[int, ...]:
        """Images that the annotator dismissed, ascending."""
        return tuple(sorted(image for image, name in self.given.items() if name is None))

    def classes(self) -> dict[str, tuple[int, ...]]:
        """Images of each name, ascending; names in alphabetical order."""
        found: dict[str, list[int]] = {}
        for image, name in sorted(self.given.items()):
            if name is not None:
                found.setdefault(name, []).append(image)
        return {name: tuple(found[name]) for name in sorted(found)}

    def new_classes(self, known: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """``classes`` without the known ones: the name of a known class says that an image is not new."""
        taken = {name.casefold() for name in known}
        return {name: images for name, images in self.classes().items() if name.casefold() not in taken}


def read(folder: Path) -> Labels:
    """Read the labels of an unknown set's folder, also while they are being written; without a log there are none.

    A damaged last line does not count: a power cut left it, and its decision was never confirmed.

    Raises:
        InputError: the folder is not there, or a line before the last is damaged.
    """
    return _replay(_read_log(folder)[0])


def wait_for_labels(
    folder: Path,
    *,
    sleep: Callable[[float], None] = time.sleep,
    poll_seconds: float = 2.0,
    check_alive: Callable[[], None] = lambda: None,
) -> Labels:
    """Block until an annotator has finished the unknown set in ``folder``.

    Args:
        folder: of the unknown set.
        sleep: waits some seconds.
        poll_seconds: between two looks at the log.
        check_alive: called before each wait; it raises an error if waiting has become pointless.

    Raises:
        InputError: the log cannot be read.
    """
    while not (labels := read(folder)).finished:
        check_alive()
        sleep(poll_seconds)
    return labels


def waiting_folder(state: Path) -> Path | None:
    """The folder of a node's newest cycle whose images wait for an annotator; None if no images wait.

    Args:
        state: the node's state folder.

    Raises:
        InputError: its log cannot be read.
    """
    names = state_files.entries(state, CYCLES_FOLDER, "the folder of cycles")
    for name in sorted(filter(_is_cycle, names), reverse=True):
        folder = state / CYCLES_FOLDER / name
        if not read(folder).finished:
            return folder
    return None


class LabelBook:
    """The only writer of a folder's log; a context manager.

    Args:
        folder: of the unknown set.
        images: how many images it has.
        known: names of the known classes. If a name differs from a known or used one only in capital letters, that
            one's spelling is kept.

    Raises:
        InputError: the log cannot be read. RunFailedError: another process writes it.
    """

    def __init__(self, folder: Path, *, images: int, known: Sequence[str]) -> None:
        self._images, self._known = images, tuple(known)
        self._path = folder / LABELS_FILE
        state, name = place(folder)
        self._descriptor = state_files.open_to_write(state, f"{name}/{LABELS_FILE}", _WHAT, os.O_RDWR | os.O_APPEND)
        try:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunFailedError(
                    "these images are open in another `collective-node annotate`; use its page, or end it first"
                ) from error
            self._decisions, self._size = _read_log(folder)
            synchronise_folder(folder)
            self._labels = _replay(self._decisions)
            self._labels.check_within(images)
        except BaseException:
            self.close()
            raise
        self._seen = {decision.id for decision in self._decisions}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the log, so that another process can write it."""
        os.close(self._descriptor)

    @property
    def labels(self) -> Labels:
        """The labels as they are now."""
        return self._labels

    @property
    def revision(self) -> int:
        """Number of decisions in the log; it never decreases."""
        return len(self._decisions)

    @property
    def names(self) -> list[str]:
        """Every name that was given, even if it was taken back, in the order of first use."""
        return list(dict.fromkeys(decision.name for decision in self._decisions if decision.name is not None))

    @property
    def can_undo(self) -> bool:
        """Whether there is a decision to undo."""
        return bool(_standing(self._decisions))

    @property
    def too_small(self) -> list[str]:
        """New classes with too few images to be learned."""
        return [name for name, images in self._labels.new_classes(self._known).items() if len(images) < FEWEST_IMAGES]

    def decide(self, decision: Decision) -> None:
        """Record a decision. It is durable when this returns; recording a decision twice changes nothing.

        Raises:
            InputError: it is about an image that is not there, the annotator has already finished, or cannot finish
                because a class has only one image.
            StorageFailedError: it could not be stored; nothing has changed.
        """
        if decision.id in self._seen or (decision.verdict == "undone" and not self.can_undo):
            return
        if self._labels.finished:
            raise InputError("these images are finished; nothing can be changed any more")
        if decision.images and not 0 <= decision.images[0] <= decision.images[-1] < self._images:
            raise InputError(f"there are images 0 to {self._images - 1} only")
        if decision.verdict == "finished" and self.too_small:
            raise InputError(
                f"{self.too_small[0]} has one image and needs {FEWEST_IMAGES}: name another like it, or clear it"
            )
        if decision.name is not None:
            decision = decision.model_copy(update={"name": self._spelling(decision.name)})
        line = decision.model_dump_json(exclude_defaults=True).encode() + b"\n"
        if self._size + len(line) > _MOST_BYTES:
            raise InputError("these images have more decisions than a log takes; finish them")
        self._append(line)
        self._decisions.append(decision)
        self._seen.add(decision.id)
        self._labels = _replay(self._decisions)

    def _spelling(self, name: str) -> str:
        same = (other for other in (*self._known, *self._labels.classes()) if other.casefold() == name.casefold())
        return next(same, name)

    def _append(self, line: bytes) -> None:
        try:
            # If a power cut or full disk left half a line, this line would become part of it.
            os.ftruncate(self._descriptor, self._size)
            if os.write(self._descriptor, line) != len(line):
                raise OSError("the disk is full")
            os.fsync(self._descriptor)
        except OSError as error:
            # A reader must not see a decision before it is durable.
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise StorageFailedError(f"cannot write {self._path}: {error.strerror or error}; check the disk") from error
        self._size += len(line)


def _read_log(folder: Path) -> tuple[list[Decision], int]:
    """The decisions of a folder's log, and how many bytes they take."""
    path, (state, name) = folder / LABELS_FILE, place(folder)
    data = state_files.read(state, f"{name}/{LABELS_FILE}", _WHAT, max_bytes=_MOST_BYTES)
    if data is None:
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder} of unknown images")
        return [], 0
    decisions: list[Decision] = []
    standing, size = 0, 0
    for line in data.splitlines(keepends=True):
        try:
            if not line.endswith(b"\n"):
                break
            strict_json.parse(line)
            decision = Decision.model_validate_json(line)
            standing += {"undone": -1, "finished": 0}.get(decision.verdict, 1)
            if standing < 0:
                raise ValueError("it takes back what was never said")
            decisions.append(decision)
        # A model's error is one of these.
        except ValueError:
            if size + len(line) == len(data):
                break
            raise InputError(
                f"{path}: line {len(decisions) + 1} is damaged; restore the file, or remove that line and its decision"
            ) from None
        size += len(line)
    return decisions, size


def _standing(decisions: Iterable[Decision]) -> list[Decision]:
    """The decisions about images, without the undone ones, in order."""
    standing: list[Decision] = []
    for decision in decisions:
        if decision.verdict == "undone":
            standing.pop()
        elif decision.verdict != "finished":
            standing.append(decision)
    return standing


def _replay(decisions: Sequence[Decision]) -> Labels:
    given: dict[int, str | None] = {}
    for decision in _standing(decisions):
        for image in decision.images:
            if decision.verdict == "cleared":
                given.pop(image, None)
            else:
                given[image] = decision.name
    return Labels(given, finished=any(decision.verdict == "finished" for decision in decisions))
