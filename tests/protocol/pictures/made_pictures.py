"""Pictures of every format, mode and orientation, and what reading one gave before decoders were processes of their
own."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from protocol.learngene.architecture import InputContract

#: Options of saving, by format.
OPTIONS: dict[str, tuple[dict[str, object], ...]] = {
    "PNG": ({},),
    "JPEG": ({}, {"progressive": True}),
    "WEBP": ({}, {"lossless": True}),
    "GIF": ({},),
    "BMP": ({},),
    "TIFF": ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}, {"compression": "packbits"}),
    "PPM": ({},),
}
_WITH_ORIENTATION = ("PNG", "JPEG", "WEBP", "TIFF")


def drawn(height: int = 21, width: int = 34, channels: int = 4, seed: int = 0) -> NDArray[np.uint8]:
    """Random pixels ``[height, width, channels]``."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def modes() -> dict[str, Image.Image]:
    """The same picture in every mode that a file can have."""
    colour = Image.fromarray(drawn())
    deep = np.random.default_rng(1).integers(0, 1 << 16, (21, 34))
    return {
        **{mode: colour.convert(mode) for mode in ("1", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr")},
        "P": colour.convert("RGB").quantize(20),
        "PA": colour.quantize(20),
        "I;16": Image.fromarray(deep.astype("<u2")),
        "I;16B": Image.fromarray(deep.astype(">u2")),
        "I": Image.fromarray(deep.astype(np.int32)),
    }


def good_pictures(kind: str) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every picture of a format that Pillow writes."""
    for mode, picture in modes().items():
        transparency = 3 if mode in ("L", "P") and kind in ("PNG", "GIF") else None
        for orientation in range(1, 9) if kind in _WITH_ORIENTATION else (1,):
            for number, options in enumerate(OPTIONS[kind] if orientation in (1, 6) else OPTIONS[kind][:1]):
                exif = Image.Exif()
                if orientation > 1:
                    exif[0x0112] = orientation
                buffer = io.BytesIO()
                try:
                    picture.save(buffer, kind, **{**options, "exif": exif} if orientation > 1 else options)
                    yield f"{mode}, orientation {orientation}, options {number}", buffer.getvalue()
                    if transparency is not None and orientation == 1:
                        buffer = io.BytesIO()
                        picture.save(buffer, kind, transparency=transparency)
                        yield f"{mode}, one colour transparent", buffer.getvalue()
                except (OSError, KeyError, ValueError):
                    continue  # the format has no such mode


def read_plainly(data: bytes, contract: InputContract) -> NDArray[np.uint8]:
    """What reading a picture is to give: Pillow, in this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as opened:
            upright = ImageOps.exif_transpose(opened)
        if upright.mode.startswith("I"):
            upright = Image.fromarray((np.asarray(upright).astype(np.float64) / 257).round().astype(np.uint8))
        elif upright.has_transparency_data:
            rgba = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        plain = upright.convert({1: "L", 3: "RGB"}[contract.channels])
        fitted = ImageOps.fit(plain, (contract.width, contract.height), Image.Resampling.BICUBIC)
    return np.asarray(fitted, np.uint8).reshape(contract.height, contract.width, contract.channels)


def png(*chunks: tuple[bytes, bytes], width: int = 8, height: int = 8, colours: int = 2) -> bytes:
    """A PNG of these chunks between its header and its end."""
    header = struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", header), *chunks, (b"IEND", b""))
    )


@cache
def zeros(count: int) -> bytes:
    """So many zeros, packed by zlib without ever being there."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(1 << 20)) for _ in range(count >> 20)]
    return b"".join([*parts, packer.compress(bytes(count & ((1 << 20) - 1))), packer.flush()])


def tiff(*entries: tuple[int, int, int, int], next_ifd: int = 0) -> bytes:
    """A TIFF whose one directory has these entries: tag, type, count, value."""
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\x00" + struct.pack("<I", 8) + directory + struct.pack("<I", next_ifd)
