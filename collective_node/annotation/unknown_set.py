"""The unknown set of an open-world cycle on disk: images that look like no known class and wait for an annotator."""

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from protocol.encoding import strict_json
from protocol.errors import InputError
from protocol.files import state_files
from protocol.files.atomic import make_folder, write_folder_atomically
from protocol.pictures.arrays import read_opened

#: Folder of all cycles, in a node's state folder.
CYCLES_FOLDER = "open-world"
_DESCRIPTION = "unknown.json"
_WHAT = "the unknown set"
_MOST_DESCRIPTION_BYTES, _MOST_ARRAY_BYTES = 1 << 20, 1 << 30


@dataclass(frozen=True, eq=False)
class UnknownSet:
    """Images of one cycle whose score is above the threshold.

    Attributes:
        images: uint8 ``[N, H, W, C]``, C 1 or 3, at least one image.
        scores: float64 ``[N]``, finite; larger is more unknown.
        features: float32 ``[N, F]``, finite; what the images are grouped by.
        known: names of the known classes.

    Raises:
        ValueError: a type or shape is wrong, or a score or feature is not finite.
    """

    images: NDArray[np.uint8]
    scores: NDArray[np.float64]
    features: NDArray[np.float32]
    known: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, dtype, rank in (("images", np.uint8, 4), ("scores", np.float64, 1), ("features", np.float32, 2)):
            array = getattr(self, name)
            if array.dtype != dtype or array.ndim != rank:
                raise ValueError(
                    f"{name} must be {np.dtype(dtype)} of rank {rank}, not {array.dtype} of shape {array.shape}"
                )
        if not 0 < len(self.images) == len(self.scores) == len(self.features):
            raise ValueError(
                f"{len(self.images)} images, {len(self.scores)} scores and {len(self.features)} rows of features: "
                "as many of each are needed, and at least one"
            )
        if 0 in self.images.shape or self.images.shape[3] not in (1, 3):
            raise ValueError(f"images of shape {self.images.shape} are neither grey nor of three colours")
        if not (np.isfinite(self.scores).all() and np.isfinite(self.features).all()):
            raise ValueError("a score or a feature is not finite")

    def __len__(self) -> int:
        return len(self.images)


def cycle_folder(state: Path, cycle: int) -> Path:
    """The folder of a cycle's unknown set in a node's ``state`` folder; ``cycle`` counts from 1."""
    return state / CYCLES_FOLDER / f"cycle-{cycle:04d}"


def store(folder: Path, unknown: UnknownSet) -> None:
    """Store an unknown set: the folder (0700) with all its files (0600), or nothing.

    If the folder already holds the same images and known classes, it is not changed and keeps the annotator's labels:
    an evolution that was killed and resumed still waits for them.

    Raises:
        InputError: the folder holds another unknown set. StorageFailedError: it could not be stored durably.
    """
    if os.path.lexists(folder):
        before = load(folder)
        if before.known == unknown.known and np.array_equal(before.images, unknown.images):
            return
        raise InputError(f"{folder} holds other unknown images, and labels may belong to them; move it away first")
    state, name = place(folder)
    make_folder(state)
    if "/" in name:
        state_files.subfolder(state, name.rpartition("/")[0], "the folder of cycles")
    description = {"version": 1, "known": list(unknown.known)}
    arrays: dict[str, NDArray[np.generic]] = {
        "images": unknown.images,
        "scores": unknown.scores,
        "features": unknown.features,
    }
    files = {f"{name}.npy": _npy(array) for name, array in arrays.items()}
    write_folder_atomically(folder, files | {_DESCRIPTION: json.dumps(description, ensure_ascii=False).encode()})


def load(folder: Path) -> UnknownSet:
    """Load the unknown set that ``store`` stored; nothing in it is unpickled.

    Raises:
        InputError: a file is missing or damaged, or the files do not fit each other.
    """
    try:
        text = _file(folder, _DESCRIPTION, max_bytes=_MOST_DESCRIPTION_BYTES)
        strict_json.parse(text)
        description = _Description.model_validate_json(text)
        if description.version != 1:
            raise ValueError("another version wrote it")
        return UnknownSet(
            _array(folder, "images", np.uint8),
            _array(folder, "scores", np.float64),
            _array(folder, "features", np.float32),
            description.known,
        )
    except ValidationError:
        raise _damaged(folder, f"{_DESCRIPTION} has another form") from None
    except ValueError as error:
        raise _damaged(folder, str(error)) from None


def place(folder: Path) -> tuple[Path, str]:
    """The state folder of an unknown set's folder, and the path from there, as :mod:`protocol.files.state_files`
    needs them."""
    folder = Path(os.path.abspath(folder))
    state = folder.parent.parent
    return state, folder.relative_to(state).as_posix()


_ScalarT = TypeVar("_ScalarT", bound=np.generic)


class _Description(BaseModel):
    """``unknown.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: int
    known: tuple[str, ...]


def _damaged(folder: Path, why: str) -> InputError:
    return InputError(f"{folder} is not a whole unknown set ({why}); remove it, and the node makes it again")


def _file(folder: Path, name: str, *, max_bytes: int) -> bytes:
    state, own = place(folder)
    found = state_files.read(state, f"{own}/{name}", _WHAT, max_bytes=max_bytes)
    if found is None:
        raise ValueError(f"there is no {name}")
    return found


def _array(folder: Path, name: str, dtype: type[_ScalarT]) -> NDArray[_ScalarT]:
    """An array of this type.

    Raises:
        ValueError: it is missing, or no array of this type. InputError: it is not the state's own file.
    """
    (state, own), path = place(folder), folder / f"{name}.npy"
    file = state_files.open_to_read(state, f"{own}/{path.name}", _WHAT)
    if file is None:
        raise ValueError(f"there is no {path.name}")
    with file:
        # Check the size before reading: a sparse or huge file may have a valid header.
        if os.fstat(file.fileno()).st_size > _MOST_ARRAY_BYTES:
            raise ValueError(f"{name} has more than {_MOST_ARRAY_BYTES} bytes")
        try:
            array = read_opened(file, path)
        except InputError as error:
            raise ValueError(str(error)) from None
    if array.dtype != np.dtype(dtype):
        raise ValueError(f"{name} has another type")
    return array


def _npy(array: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
