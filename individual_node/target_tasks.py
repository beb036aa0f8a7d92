"""An individual's own folder: its images and its target tasks."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.encoding.text import text_of
from protocol.errors import InputError
from protocol.files.user_files import read_given
from protocol.pictures.arrays import read_array

#: Bytes of the largest file of target tasks that is read.
_MAX_BYTES = 1 << 30

Row = Annotated[int, Field(ge=0)]


class _Task(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Row
    classes: tuple[Row, ...]
    support: dict[int, tuple[Row, ...]]
    test: tuple[Row, ...]


class _Tasks(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1]
    tasks: tuple[_Task, ...]


@dataclass(frozen=True)
class TargetTask:
    """One target task at one shot count.

    Attributes:
        number: its number in the whole run.
        ways: classes of the task.
        support: rows of the support images ``[ways * shots]``, grouped by class.
        support_labels: 0..ways-1, as long.
        test: rows of the test images.
        test_labels: 0..ways-1, as long.
        classes: names of the ways, for messages; empty: their numbers.
    """

    number: int
    ways: int
    support: NDArray[np.int64]
    support_labels: NDArray[np.int64]
    test: NDArray[np.int64]
    test_labels: NDArray[np.int64]
    classes: tuple[str, ...] = ()

    def images_per_class(self) -> tuple[int, ...]:
        """Support images of each way."""
        return tuple(np.bincount(self.support_labels, minlength=self.ways).tolist())

    def held_out(self, share: float, generator: torch.Generator) -> tuple["TargetTask", "TargetTask"]:
        """Two tasks that divide the support images: those to learn from, and of each class ``share`` to validate on.

        At least one image of each class is held out, and at least one is left. Both tasks have the same test images.

        Raises:
            InputError: a class has only one support image.
        """
        validation = np.zeros(len(self.support), bool)
        for way, count in enumerate(self.images_per_class()):
            if count < 2:
                name = self.classes[way] if self.classes else str(way)
                raise InputError(
                    f"class {name!r} of target task {self.number} has {count} support image(s), so none can be held "
                    "out for early stopping: add images of it, or leave early_stopping out"
                )
            drawn = torch.randperm(count, generator=generator).numpy()[: min(count - 1, max(1, round(share * count)))]
            validation[np.flatnonzero(self.support_labels == way)[drawn]] = True
        learning, held = (
            replace(self, support=self.support[chosen], support_labels=self.support_labels[chosen])
            for chosen in (~validation, validation)
        )
        return learning, held


@dataclass(frozen=True)
class PrivateImages:
    """Everything in the folder: uint8 images ``[N, H, W, C]`` and the tasks by shot count."""

    support_images: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    tasks: dict[int, list[TargetTask]]


def read(folder: Path) -> PrivateImages:
    """Read an individual's folder as ``learngene world make`` cuts it.

    Raises:
        InputError: a file is missing or does not fit the others.
    """
    try:
        arrays = {
            name: read_array(folder / f"{name}.npy")
            for name in ("support_images", "support_labels", "test_images", "test_labels")
        }
        data = read_given(folder / "tasks.json", "the target tasks", max_bytes=_MAX_BYTES)
        described = _Tasks.model_validate(json.loads(text_of(data)))
    except (OSError, ValueError, RecursionError, ValidationError, InputError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder} is not an individual's folder of a world ({reason}); make one first") from error
    tasks: dict[int, list[TargetTask]] = {}
    try:
        for task in described.tasks:
            for shots, rows in task.support.items():
                tasks.setdefault(shots, []).append(_target(task, rows, arrays))
    except (IndexError, ValueError) as error:
        raise InputError(f"{folder / 'tasks.json'} names rows or classes that its images do not have") from error
    return PrivateImages(arrays["support_images"], arrays["test_images"], tasks)


def _target(task: _Task, rows: tuple[int, ...], arrays: dict[str, NDArray[np.int64]]) -> TargetTask:
    position = {label: way for way, label in enumerate(task.classes)}
    support, test = np.array(rows), np.array(task.test)
    try:
        support_labels = np.array([position[int(label)] for label in arrays["support_labels"][support]])
        test_labels = np.array([position[int(label)] for label in arrays["test_labels"][test]])
    except KeyError as error:
        raise ValueError(f"task {task.task} holds an image of class {error}") from error
    names = tuple(map(str, task.classes))
    return TargetTask(task.task, len(task.classes), support, support_labels, test, test_labels, names)
