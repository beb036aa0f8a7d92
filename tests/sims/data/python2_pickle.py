"""Pickles as Python 2 wrote them (protocol 2), which CIFAR-100 was published in."""

import struct

import numpy as np
from numpy.typing import NDArray


def pickled(value: object) -> bytes:
    """A pickle of dictionaries, lists, bytes, whole numbers and arrays of bytes."""
    return b"\x80\x02" + _value(value) + b"."


def _value(value: object) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_value(item) for pair in value.items() for item in pair) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_value, value)) + b"e"
    if isinstance(value, bytes):
        return b"T" + struct.pack("<I", len(value)) + value
    if isinstance(value, np.ndarray):
        return _array(value)
    return b"J" + struct.pack("<i", value)


def _array(value: NDArray[np.uint8]) -> bytes:
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(" + b"".join(map(_value, value.shape)) + b"t"
    return made + b"(K\x01" + shape + kind + b"\x89" + _value(value.tobytes()) + b"tb"
