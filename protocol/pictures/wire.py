"""Frames between a reader of pictures and its decoder: integers, the picture's bytes one way, plain pixels the other.

A request is :data:`REQUEST` and the bytes of a file; an answer is :data:`ANSWER` and, only for :attr:`Code.PIXELS`, the
pixels, uint8 ``[height, width, channels]``. Answers come in the order of the requests. The first frame is the decoder's
own: whether it is confined.
"""

import struct
from enum import IntEnum

#: Position in ``formats.FORMATS``, channels (1 or 3), bits of a grey value (8 to 16; 0: not known), height, width, and
#: the bytes that follow.
REQUEST = struct.Struct("<BBBHHI")
#: A :class:`Code`, bytes that follow.
ANSWER = struct.Struct("<BI")

#: Most bytes of a file, and most pixels in its header: the largest pictures of phones (64 megapixels).
MAX_FILE_BYTES = 128 << 20
MAX_PIXELS = 1 << 26


class Code(IntEnum):
    """Result of decoding a picture, or of the decoder's start."""

    PIXELS = 0
    DAMAGED = 1
    TOO_MANY_PIXELS = 2
    CAMERA_RAW = 3
    FLOATING_POINT = 4
    BEYOND_16_BITS = 5
    OUT_OF_MEMORY = 6
    NOT_SUPPORTED = 7
    CONFINED = 8
    UNCONFINED = 9
    BITS_UNKNOWN = 10
    BEYOND_BITS = 11
    BITS_OF_COLOURS = 12
