"""Arrays of numbers from ``.npy`` files of unknown origin: never larger than the file, and never objects."""

import math
import os
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from protocol.errors import InputError
from protocol.files.user_files import opened
from protocol.visible_text import visible_name

#: Kinds of numbers that are read, by numpy's letters: booleans, integers, unsigned integers, floating point.
_KINDS = "biuf"
_MOST_AXES = 8
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_array(path: Path) -> NDArray[Any]:
    """The array of a ``.npy`` file; memory is allocated only for the file's actual content.

    Raises:
        InputError: it is no regular file, or no array of numbers that ends where the file does.
    """
    with opened(path, "the array") as file:
        return read_opened(file, path)


def read_opened(file: BinaryIO, path: Path) -> NDArray[Any]:
    """As :func:`read_array`, from an open file; ``path``: its name, for messages."""
    try:
        version = npy.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"version {version[0]}.{version[1]} of the format")
        shape, fortran, dtype = _HEADERS[version](file)
    except (ValueError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError, EOFError) as error:
        raise InputError(f"{visible_name(path)} is no array of numbers ({_line(error)}); make it anew") from None
    left = os.fstat(file.fileno()).st_size - file.tell()
    plain = dtype.kind in _KINDS and dtype.subdtype is None and dtype.fields is None
    if not plain or len(shape) > _MOST_AXES or any(type(side) is not int or side < 0 for side in shape):
        raise InputError(f"{visible_name(path)} holds something else than numbers; make it anew")
    if math.prod(shape) * dtype.itemsize != left:
        raise InputError(f"{visible_name(path)} has {left} bytes, not what its header says; copy it again")
    array = np.fromfile(file, dtype, math.prod(shape))
    if array.nbytes != left:
        raise InputError(f"{visible_name(path)} changes while it is read; wait until it is whole")
    return array.reshape(shape, order="F" if fortran else "C")


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
