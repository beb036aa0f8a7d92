"""An individual's own folder: its images and its target tasks."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.errors import InputError

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
    """

    number: int
    ways: int
    support: NDArray[np.int64]
    support_labels: NDArray[np.int64]
    test: NDArray[np.int64]
    test_labels: NDArray[np.int64]


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
            name: np.load(folder / f"{name}.npy", allow_pickle=False)
            for name in ("support_images", "support_labels", "test_images", "test_labels")
        }
        described = _Tasks.model_validate(json.loads((folder / "tasks.json").read_text()))
    except (OSError, ValueError, ValidationError) as error:
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
    return TargetTask(task.task, len(task.classes), support, support_labels, test, test_labels)
