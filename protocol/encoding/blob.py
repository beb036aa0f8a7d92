"""The tensor blob: safetensors in one canonical form, written and read here, with views instead of copies.

Canonical: float32 only, names sorted, no ``__metadata__``, data without gaps, the header compact and filled with spaces
to a multiple of eight bytes. The same tensors have the same bytes, and other bytes are refused.
(Format: safetensors, https://huggingface.co/docs/safetensors.)
"""

import math
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from protocol.encoding import canonical_json
from protocol.errors import MalformedError, TooLargeError

MAX_TENSORS = 256
MAX_RANK = 4
MAX_HEADER_BYTES = 32 * 1024
MAX_BLOB_BYTES = 1 << 30
NAME_PATTERN = r"^[a-z0-9_.]{1,64}$"

_NAME = re.compile(r"[a-z0-9_.]{1,64}")
_ITEM_BYTES = 4
_LENGTH_BYTES = 8
_FLOAT32 = np.dtype("<f4")


def encode(tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """The canonical blob of float32 arrays of rank 1 to 4.

    Raises:
        ValueError: a name, dtype, rank or number of tensors that a blob cannot hold.
    """
    for name, array in tensors.items():
        if array.dtype != _FLOAT32:
            raise ValueError(f"tensor {name} is {array.dtype}, a blob holds float32 only")
    header = encode_header({name: array.shape for name, array in tensors.items()})
    # The views keep a contiguous copy alive until the final join.
    views = [np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data for name in sorted(tensors)]
    return b"".join([header, *views])


def encode_header(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """The length field and the header of the canonical blob with these shapes: all of its bytes but the data.

    Raises:
        ValueError: a name, rank or number of tensors that a blob cannot hold.
    """
    if not 1 <= len(shapes) <= MAX_TENSORS:
        raise ValueError(f"{len(shapes)} tensors, a blob holds 1 to {MAX_TENSORS}")
    entries = []
    position = 0
    for name in sorted(shapes):
        shape = shapes[name]
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a tensor: 1 to 64 of a-z 0-9 _ .")
        if not 1 <= len(shape) <= MAX_RANK or min(shape) < 1:
            raise ValueError(f"tensor {name} has the shape {shape}; rank 1 to {MAX_RANK}, every side at least 1")
        end = position + _ITEM_BYTES * math.prod(shape)
        sides = ",".join(str(side) for side in shape)
        entries.append(f'"{name}":{{"dtype":"F32","shape":[{sides}],"data_offsets":[{position},{end}]}}')
        position = end
    text = ("{" + ",".join(entries) + "}").encode("ascii")
    text += b" " * (-len(text) % _LENGTH_BYTES)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(text)} bytes, at most {MAX_HEADER_BYTES}")
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def encoded_size(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of the canonical blob with these shapes.

    Raises:
        ValueError: as ``encode_header``.
    """
    return len(encode_header(shapes)) + _ITEM_BYTES * sum(math.prod(shape) for shape in shapes.values())


def decode(data: bytes | memoryview) -> dict[str, NDArray[np.float32]]:
    """Read a blob. The arrays are read-only views on ``data``, in the order of their names. Values are not checked.

    Raises:
        TooLargeError: more bytes, tensors, header or rank than the limits.
        MalformedError: not the canonical encoding of its content.
    """
    view = memoryview(data).toreadonly().cast("B")
    shapes, start = _read_header(view)
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, shape in shapes.items():
        count = math.prod(shape)
        tensors[name] = np.frombuffer(view, dtype=_FLOAT32, count=count, offset=start).reshape(shape)
        start += _ITEM_BYTES * count
    return tensors


def _read_header(view: memoryview) -> tuple[dict[str, tuple[int, ...]], int]:
    """Shapes by name, and where the data begins; the length of the blob is checked against them."""
    if len(view) > MAX_BLOB_BYTES:
        raise TooLargeError(f"a blob of {len(view)} bytes, at most {MAX_BLOB_BYTES}")
    if len(view) < _LENGTH_BYTES:
        raise MalformedError("the blob is too short to hold a header")
    length = int.from_bytes(view[:_LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise TooLargeError(f"the blob says that its header has {length} bytes, at most {MAX_HEADER_BYTES}")
    start = _LENGTH_BYTES + length
    if start > len(view):
        raise MalformedError("the blob ends inside its header")
    entries = canonical_json.parse(bytes(view[_LENGTH_BYTES:start]), max_depth=3, max_bytes=MAX_HEADER_BYTES)
    if len(entries) > MAX_TENSORS:
        raise TooLargeError(f"a blob of {len(entries)} tensors, at most {MAX_TENSORS}")
    shapes = {name: _read_shape(name, entry) for name, entry in entries.items()}
    try:
        canonical = encode_header(shapes)
    except ValueError as error:
        raise MalformedError(f"the blob's header is not allowed: {error}") from None
    # One comparison settles order, gaps, overlaps, offsets, dtype, extra keys, spaces and __metadata__.
    if canonical != view[:start]:
        raise MalformedError("the blob's header is not canonical: float32, sorted names, no gaps, no __metadata__")
    end = start + _ITEM_BYTES * sum(math.prod(shape) for shape in shapes.values())
    if end != len(view):
        raise MalformedError(f"the blob has {len(view)} bytes, its header says {end}")
    return shapes, start


def _read_shape(name: str, entry: canonical_json.Value) -> tuple[int, ...]:
    if not isinstance(entry, dict):
        raise MalformedError(f"the blob's entry {name} is not an object")
    shape = entry.get("shape")
    if not isinstance(shape, list):
        raise MalformedError(f"the blob's entry {name} has no shape")
    if len(shape) > MAX_RANK:
        raise TooLargeError(f"the tensor {name} has rank {len(shape)}, at most {MAX_RANK}")
    sides = []
    for side in shape:
        # bool is an int to Python, not to the format.
        if not isinstance(side, int) or isinstance(side, bool):
            raise MalformedError(f"the shape of the tensor {name} is not made of integers")
        sides.append(side)
    return tuple(sides)
