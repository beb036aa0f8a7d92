"""A decoder that does not do as it should, in the way that its argument says; it is started as the real one is."""

import os
import sys
import time

from protocol.pictures.wire import ANSWER, REQUEST, Code


def answer(code: int, length: int, content: bytes = b"") -> None:
    os.write(1, ANSWER.pack(code, length) + content)


def taken() -> bytes:
    """The next request; its pixels, all of them 7, are what it asks for."""
    header = b""
    while len(header) < REQUEST.size:
        part = os.read(0, REQUEST.size - len(header))
        if not part:
            sys.exit()
        header += part
    _, channels, _, height, width, left = REQUEST.unpack(header)
    while left:
        left -= len(os.read(0, left))
    return b"\7" * (channels * height * width)


def misbehave(how: str) -> None:
    if how == "does not start":
        print("Traceback", "ImportError: there is no Pillow", sep="\n", file=sys.stderr)
        sys.exit(1)
    if how == "never starts":
        time.sleep(60)
    if how == "starts with pixels":
        answer(Code.PIXELS, 0)
    answer(Code.UNCONFINED if how == "unconfined" else Code.CONFINED, 0)
    if how == "answers unasked":
        answer(Code.PIXELS, 4, b"abcd")
    for number in range(1000):
        pixels = taken()
        if how == "dies" or (how == "dies later" and number == 20):
            os._exit(3)
        if how == "never answers":
            time.sleep(60)
        if how == "stops in the middle":
            answer(Code.PIXELS, len(pixels), pixels[:-1])
            time.sleep(60)
        if how == "answers garbage":
            os.write(1, b"\xff" * 1000)
        elif how == "an unknown code":
            answer(77, 0)
        elif how == "starts again":
            answer(Code.CONFINED, 0)
        elif how == "too much":
            answer(Code.PIXELS, len(pixels) + 1, pixels + b"\7")
        elif how == "too little":
            answer(Code.PIXELS, len(pixels) - 1, pixels[:-1])
        elif how == "four gigabytes":
            answer(Code.PIXELS, 0xFFFFFFFF, bytes(1 << 16))
        elif how == "a refusal with pixels":
            answer(Code.DAMAGED, 3, b"abc")
        else:
            answer(Code.PIXELS, len(pixels), pixels)
            if how == "answers twice":
                answer(Code.PIXELS, len(pixels), pixels)


misbehave(sys.argv[1])
