"""How a blob holds a learngene's tensors: rounded to the architecture's dtype on the way out, float32 again inside.

Convolutions and their Fisher diagonals are nearly all of a learngene, so only they are rounded. A 16-bit weight is
rounded to the nearest value, ties to even. An 8-bit weight is a whole number from -127 to 127 times a positive float32
that its output channel has for itself (symmetric quantisation per channel: Krishnamoorthi 2018, *Quantizing deep
convolutional networks for efficient inference*, section 3). Fisher entries spread over many powers of ten and are
needed to two digits: they are bfloat16 wherever the weights are not float32.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from protocol.encoding import blob
from protocol.encoding.blob import Dtype, Stored
from protocol.errors import MalformedError, NonFiniteError
from protocol.learngene.architecture import Architecture, scale_of

Tensors = Mapping[str, NDArray[np.float32]]

#: Largest 8-bit weight; -128 would have no positive counterpart.
LARGEST_STEP = 127
_FLOAT16_LARGEST = float(np.finfo(np.float16).max)
_SMALLEST_SCALE = np.finfo(np.float32).tiny


def encode(architecture: Architecture, tensors: Tensors) -> bytes:
    """The canonical blob of a learngene's tensors, as its architecture stores them.

    Args:
        tensors: finite float32 arrays, by the names of ``architecture.tensors``.

    Raises:
        NonFiniteError: a value is too large for the dtype.
        ValueError: a name or shape that a blob cannot hold.
    """
    stored: dict[str, Stored] = {}
    for name, kind in architecture.stored(fisher=any(name.startswith("fisher.") for name in tensors)).items():
        if kind.role == "scale":
            continue  # comes with its weights
        if kind.dtype == "int8":
            stored[name], stored[scale_of(name)] = _quantised(name, tensors[name])
        else:
            stored[name] = _rounded(name, tensors[name], kind.dtype)
    return blob.encode(stored)


def decode(architecture: Architecture, data: bytes | memoryview, *, fisher: bool) -> dict[str, NDArray[np.float32]]:
    """The tensors of a blob by name, float32 and read-only; those that are stored so are views on ``data``.

    Args:
        fisher: whether the blob carries Fisher diagonals.

    Raises:
        TooLargeError: as :func:`protocol.encoding.blob.decode`.
        MalformedError: likewise, or the tensors are not those that the architecture allows, or an 8-bit weight is -128.
        NonFiniteError: a scale is not finite and positive.
    """
    stored = blob.decode(data)
    allowed = architecture.stored(fisher=fisher)
    found = {name: (blob.dtype_of(array), array.shape) for name, array in stored.items()}
    if found != {name: (kind.dtype, kind.shape) for name, kind in allowed.items()}:
        raise MalformedError("the blob's tensors are not those that the architecture allows")
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, kind in allowed.items():
        if kind.role == "scale":
            continue
        array = stored[name]
        if kind.dtype == "int8":
            array = _restored(name, array, stored[scale_of(name)])
        elif kind.dtype == "bfloat16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        elif kind.dtype == "float16":
            array = array.astype(np.float32)
        array.flags.writeable = False
        tensors[name] = array
    return tensors


def encoded_size(architecture: Architecture, *, fisher: bool) -> int:
    """Bytes of the canonical blob of a learngene of this architecture.

    Raises:
        ValueError: a name or shape that a blob cannot hold.
    """
    allowed = architecture.stored(fisher=fisher)
    return blob.encoded_size(
        {name: kind.shape for name, kind in allowed.items()}, {name: kind.dtype for name, kind in allowed.items()}
    )


def _rounded(name: str, array: NDArray[np.float32], dtype: Dtype) -> Stored:
    if dtype == "float32":
        return array
    if dtype == "float16":
        with np.errstate(over="ignore"):
            halves = array.astype(np.float16)
        if not np.isfinite(halves).all():
            raise _too_large(name, array, dtype, f"{_FLOAT16_LARGEST:.0f}")
        return halves
    bits = np.ascontiguousarray(array).view(np.uint32)
    upper = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # half of the lowest bit that stays; to even
    if (upper & 0x7F80 == 0x7F80).any():  # infinity
        raise _too_large(name, array, dtype, "3.39e38")
    return upper


def _quantised(name: str, array: NDArray[np.float32]) -> tuple[Stored, Stored]:
    """Weights ``[O, I, 3, 3]`` as int8, and the scale of each output channel ``[O]``."""
    largest = np.abs(array).max(axis=(1, 2, 3))
    scale = np.maximum(largest / np.float32(LARGEST_STEP), _SMALLEST_SCALE).astype(np.float32)
    with np.errstate(over="ignore"):
        restored = scale * np.float32(LARGEST_STEP)
    if not np.isfinite(restored).all():
        raise _too_large(name, array, "int8", "3.4e38")
    steps = np.rint(array / scale[:, None, None, None])
    return np.clip(steps, -LARGEST_STEP, LARGEST_STEP).astype(np.int8), scale


def _restored(name: str, steps: Stored, scale: NDArray[np.float32]) -> NDArray[np.float32]:
    if steps.min() < -LARGEST_STEP:
        raise MalformedError(f"the tensor {name} holds -128; an 8-bit weight is at least -127")
    if not (np.isfinite(scale).all() and scale.min() > 0):
        raise NonFiniteError(f"the tensor {scale_of(name)} holds a scale that is not finite and positive")
    with np.errstate(over="ignore"):  # infinity is refused with the other values
        return steps * scale[:, None, None, None]


def _too_large(name: str, array: NDArray[np.float32], dtype: Dtype, most: str) -> NonFiniteError:
    largest = float(np.abs(array).max())
    other = "bfloat16 or float32" if dtype == "float16" else "float32"
    return NonFiniteError(
        f"the tensor {name} holds {largest:.3g}, and {dtype} at most {most}: set blob_dtype to {other}"
    )
