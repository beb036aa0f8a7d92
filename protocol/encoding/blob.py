"""The tensor blob: safetensors in one canonical form, written and read here, with views instead of copies.

Canonical: four dtypes, the wider ones first and each one's names sorted (so every value lies where its size asks for),
no ``__metadata__``, data without gaps, the header compact and filled with spaces to a multiple of eight bytes. The same
tensors have the same bytes, and other bytes are refused.
(Format: safetensors, https://huggingface.co/docs/safetensors.)
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocol.encoding import canonical_json
from protocol.errors import MalformedError, TooLargeError

MAX_TENSORS = 256
MAX_RANK = 4
MAX_HEADER_BYTES = 32 * 1024
MAX_BLOB_BYTES = 1 << 30
NAME_PATTERN = r"^[a-z0-9_.]{1,64}$"

Dtype = Literal["float32", "bfloat16", "float16", "int8"]
Shape = tuple[int, ...]
#: A tensor as a blob holds it; numpy knows no bfloat16, so its sixteen bits are uint16.
Stored = NDArray[Any]


class _Kind(NamedTuple):
    """safetensors' word for a dtype, and how numpy holds it."""

    word: str
    numpy: np.dtype[Any]


#: In the order in which a blob holds them, which is that of the safetensors library.
_KINDS: Mapping[Dtype, _Kind] = {
    "float32": _Kind("F32", np.dtype("<f4")),
    "bfloat16": _Kind("BF16", np.dtype("<u2")),
    "float16": _Kind("F16", np.dtype("<f2")),
    "int8": _Kind("I8", np.dtype("i1")),
}
_ORDER: Mapping[Dtype, int] = {dtype: number for number, dtype in enumerate(_KINDS)}

_NAME = re.compile(r"[a-z0-9_.]{1,64}")
_LENGTH_BYTES = 8


def dtype_of(array: Stored) -> Dtype:
    """The dtype of a stored array.

    Raises:
        ValueError: a blob holds no such values.
    """
    for dtype, kind in _KINDS.items():
        if array.dtype == kind.numpy:
            return dtype
    raise ValueError(f"a tensor of {array.dtype}; a blob holds {', '.join(_KINDS)} only")


def encode(tensors: Mapping[str, Stored]) -> bytes:
    """The canonical blob of arrays of rank 1 to 4; uint16 stands for bfloat16.

    Raises:
        ValueError: a name, dtype, rank or number of tensors that a blob cannot hold.
    """
    dtypes = {name: dtype_of(array) for name, array in tensors.items()}
    header = encode_header({name: array.shape for name, array in tensors.items()}, dtypes)
    # The views keep a contiguous copy alive until the final join.
    views = [np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data for name in _in_order(tensors, dtypes)]
    return b"".join([header, *views])


def encode_header(shapes: Mapping[str, Shape], dtypes: Mapping[str, Dtype] | None = None) -> bytes:
    """The length field and the header of the canonical blob with these shapes: all of its bytes but the data.

    Args:
        dtypes: by name; a tensor that is not in it is float32.

    Raises:
        ValueError: a name, rank or number of tensors that a blob cannot hold.
    """
    dtypes = dtypes or {}
    if not 1 <= len(shapes) <= MAX_TENSORS:
        raise ValueError(f"{len(shapes)} tensors, a blob holds 1 to {MAX_TENSORS}")
    entries = []
    position = 0
    for name in _in_order(shapes, dtypes):
        shape, kind = shapes[name], _KINDS[dtypes.get(name, "float32")]
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a tensor: 1 to 64 of a-z 0-9 _ .")
        if not 1 <= len(shape) <= MAX_RANK or min(shape) < 1:
            raise ValueError(f"tensor {name} has the shape {shape}; rank 1 to {MAX_RANK}, every side at least 1")
        end = position + kind.numpy.itemsize * math.prod(shape)
        sides = ",".join(str(side) for side in shape)
        entries.append(f'"{name}":{{"dtype":"{kind.word}","shape":[{sides}],"data_offsets":[{position},{end}]}}')
        position = end
    text = ("{" + ",".join(entries) + "}").encode("ascii")
    text += b" " * (-len(text) % _LENGTH_BYTES)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(text)} bytes, at most {MAX_HEADER_BYTES}")
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def encoded_size(shapes: Mapping[str, Shape], dtypes: Mapping[str, Dtype] | None = None) -> int:
    """Bytes of the canonical blob with these shapes; of float32 where no dtype is given.

    Raises:
        ValueError: as ``encode_header``.
    """
    return len(encode_header(shapes, dtypes)) + _data_bytes(shapes, dtypes or {})


def decode(data: bytes | memoryview) -> dict[str, Stored]:
    """Read a blob. The arrays are read-only views on ``data``, in their order there. Values are not checked.

    Raises:
        TooLargeError: more bytes, tensors, header or rank than the limits.
        MalformedError: not the canonical encoding of its content.
    """
    view = memoryview(data).toreadonly().cast("B")
    shapes, dtypes, start = _read_header(view)
    tensors: dict[str, Stored] = {}
    for name, shape in shapes.items():
        count, kind = math.prod(shape), _KINDS[dtypes[name]]
        tensors[name] = np.frombuffer(view, dtype=kind.numpy, count=count, offset=start).reshape(shape)
        start += kind.numpy.itemsize * count
    return tensors


def decode_float32(data: bytes | memoryview) -> dict[str, NDArray[np.float32]]:
    """:func:`decode` of a blob that must hold float32 alone.

    Raises:
        TooLargeError, MalformedError: as there, or a tensor is of another dtype.
    """
    tensors = decode(data)
    for name, array in tensors.items():
        if dtype_of(array) != "float32":
            raise MalformedError(f"the tensor {name} is {dtype_of(array)}; here a blob holds float32 alone")
    return tensors


def _in_order(names: Mapping[str, object], dtypes: Mapping[str, Dtype]) -> list[str]:
    """The names in the order of a blob."""
    return sorted(names, key=lambda name: (_ORDER[dtypes.get(name, "float32")], name))


def _data_bytes(shapes: Mapping[str, Shape], dtypes: Mapping[str, Dtype]) -> int:
    return sum(_KINDS[dtypes.get(name, "float32")].numpy.itemsize * math.prod(shape) for name, shape in shapes.items())


def _read_header(view: memoryview) -> tuple[dict[str, Shape], dict[str, Dtype], int]:
    """Shapes and dtypes by name, and where the data begins; the length of the blob is checked against them."""
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
    dtypes = {name: _read_dtype(name, entry) for name, entry in entries.items()}
    try:
        canonical = encode_header(shapes, dtypes)
    except ValueError as error:
        raise MalformedError(f"the blob's header is not allowed: {error}") from None
    # One comparison settles order, gaps, overlaps, offsets, extra keys, spaces and __metadata__.
    if canonical != view[:start]:
        raise MalformedError("the blob's header is not canonical: sorted by dtype and name, no gaps, no __metadata__")
    end = start + _data_bytes(shapes, dtypes)
    if end != len(view):
        raise MalformedError(f"the blob has {len(view)} bytes, its header says {end}")
    return shapes, dtypes, start


def _read_dtype(name: str, entry: canonical_json.Value) -> Dtype:
    word = entry.get("dtype") if isinstance(entry, dict) else None
    for dtype, kind in _KINDS.items():
        if kind.word == word:
            return dtype
    words = ", ".join(kind.word for kind in _KINDS.values())
    raise MalformedError(f"the blob's header gives the tensor {name} a dtype that is none of {words}")


def _read_shape(name: str, entry: canonical_json.Value) -> Shape:
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
