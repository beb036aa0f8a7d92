"""The program that decodes pictures of unknown origin: it confines itself, then turns bytes into plain pixels.

Its parent starts it (``protocol.pictures.reader``); requests come on standard input, answers go to standard output.
Everything that decoding needs is imported before confinement, and nothing from outside is read before it.
"""

import contextlib
import gc
import importlib
import io
import os
import re
import resource
import signal
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageFile, ImageOps

from protocol.confinement import landlock, privileges, seccomp
from protocol.confinement.allowed_calls import ALWAYS, TIME_AND_WAITING, Alternatives, CallPolicy, Check
from protocol.pictures.formats import FORMATS
from protocol.pictures.wire import ANSWER, MAX_PIXELS, REQUEST, Code

#: Pillow's modules for the formats that are read, and modules that they load for the first picture: a confined process
#: cannot load any.
_MODULES = (
    *(f"{name}ImagePlugin" for name in ("Bmp", "Gif", "Jpeg", "Mpo", "Png", "Ppm", "Tiff", "WebP")),
    *("ImagePalette", "ImageColor", "TiffTags"),
)
for _name in _MODULES:
    # A Pillow without WebP lacks its module.
    with contextlib.suppress(ImportError):
        importlib.import_module(f"PIL.{_name}")

_CALLS = "read write munmap mremap brk madvise rt_sigreturn exit exit_group"
_PROT_EXEC = 4
_NOT_TO_BE_RUN: Alternatives = ((Check(2, (0,), mask=_PROT_EXEC),),)
#: System calls of an interpreter that computes, and reads and writes open files.
POLICY = CallPolicy(
    {
        **dict.fromkeys(_CALLS.split(), ALWAYS),
        **{name: TIME_AND_WAITING[name] for name in ("clock_gettime", "futex")},
        "mmap": _NOT_TO_BE_RUN,
        "mprotect": _NOT_TO_BE_RUN,
    },
)
#: Limits for all pictures together: bytes of memory beyond those of the started process, and seconds of processor time.
MEMORY_BYTES = 1536 << 20
CPU_SECONDS = 600

#: The tag that every DNG has: its first picture is a small preview.
_DNG_VERSION = 50706
#: The tag that says which end of the values is black, and its value for the upper one.
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
#: Rows that are composed with white at once.
_STRIP = 256
#: Pillow's names of layouts with more than 8 bits for a value. (`BGR;16` is not one: it has 16 bits for three.)
_DEEP = re.compile("(?:I|F|LA|RGB|RGBA|RGBa|RGBX|CMYK);(12|16|32).*")
#: Of 16 bits: an image whose largest value is below has 14 bits at most, or is almost black.
_DARK = 1 << 14


class RefusedPictureError(Exception):
    """The picture cannot be read; ``code`` says why."""

    def __init__(self, code: Code) -> None:
        self.code = code


def main() -> None:
    """Confine this process, report whether this succeeded, and decode until standard input ends."""
    requests = open(0, "rb", buffering=1 << 16, closefd=False)  # noqa: SIM115 - open as long as the process
    answers = open(1, "wb", buffering=1 << 16, closefd=False)  # noqa: SIM115
    confined = confine_itself()
    _answer(answers, Code.CONFINED if confined else Code.UNCONFINED)
    serve(requests, answers)
    # Skip the interpreter's own shutdown: it would make calls that are refused.
    os._exit(0)


def confine_itself() -> bool:
    """Give up everything but the three standard streams, memory and the clock.

    Returns:
        Whether Landlock and seccomp hold; memory, time and descriptors are limited in any case.

    Raises:
        RunFailedError: the kernel refused a protection that it offers.
    """
    privileges.end_with_parent()
    # Ctrl-C is for the parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limits = _limits()
    files, calls = landlock.abi() > 0, seccomp.offered()
    nothing = os.open(os.devnull, os.O_RDWR)
    privileges.drop_capabilities()
    landlock.set_no_new_privileges()
    if files:
        landlock.restrict({}, tcp=False)
    os.dup2(nothing, 2)
    os.close(nothing)
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    if calls:
        seccomp.restrict(POLICY)
    return files and calls


def _limits() -> dict[int, int]:
    """Numbers of limits, and their values for this process; none is above its present limit."""
    memory = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY_BYTES
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 3,
    }
    most = {limit: resource.getrlimit(limit)[1] for limit in limits}
    return {
        limit: value if most[limit] == resource.RLIM_INFINITY else min(value, most[limit])
        for limit, value in limits.items()
    }


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer every request in its order, until there is none."""
    warnings.simplefilter("ignore")
    # Pillow's own check runs whenever a size is read; we use its warning as our limit.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    gc.freeze()
    while header := requests.read(REQUEST.size):
        number, channels, bits, height, width, length = REQUEST.unpack(header)
        data = requests.read(length)
        try:
            pixels = decode(data, FORMATS[number], channels=channels, bits=bits, height=height, width=width)
        except RefusedPictureError as refused:
            _answer(answers, refused.code)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            _answer(answers, Code.TOO_MANY_PIXELS)
        except MemoryError:
            _answer(answers, Code.OUT_OF_MEMORY)
        except Exception:  # Pillow's readers raise many kinds, and each means the same to its user
            _answer(answers, Code.DAMAGED)
        else:
            _answer(answers, Code.PIXELS, pixels)


def _answer(answers: BinaryIO, code: Code, pixels: bytes = b"") -> None:
    answers.write(ANSWER.pack(code, len(pixels)) + pixels)
    answers.flush()


def decode(data: bytes, kind: str, *, channels: int, bits: int, height: int, width: int) -> bytes:
    """One picture of the format ``kind`` as uint8 ``[height, width, channels]``: turned upright, its shorter side
    resized, the middle cut out.

    The first frame of a moving picture counts; transparent parts become white.

    Args:
        bits: of a grey value in files with 16 or 32 bits for each, if the file does not say it; 0: it must be clear.

    Raises:
        Exception: of any kind: it cannot be read in this format.
    """
    if kind not in Image.OPEN:
        raise RefusedPictureError(Code.NOT_SUPPORTED)
    mode, size = {1: "L", 3: "RGB"}[channels], (width, height)
    image: Image.Image
    with Image.open(io.BytesIO(data), formats=(kind,)) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise RefusedPictureError(Code.TOO_MANY_PIXELS)
        if kind == "TIFF" and _DNG_VERSION in getattr(opened, "tag_v2", ()):
            raise RefusedPictureError(Code.CAMERA_RAW)
        image, stored = opened, _stored(opened)
        ImageOps.exif_transpose(image, in_place=True)
    # Most images of prepared datasets are ready now.
    if image.mode != mode or "transparency" in image.info or stored.deep:
        image = _plain(image, stored, bits).convert(mode)
    if image.size != size:
        image = ImageOps.fit(image, size, Image.Resampling.BICUBIC)
    return image.tobytes()


@dataclass(frozen=True)
class _Stored:
    """How a file stores its values.

    Attributes:
        deep: with more than 8 bits each.
        bits: of them that count, as far as the file says; 0: it does not.
        negative: the largest value is black.
    """

    deep: bool
    bits: int
    negative: bool


def _stored(opened: ImageFile.ImageFile) -> _Stored:
    """What Pillow is going to unpack: it names the layout of the file's values, ``I;16B``, ``RGB;16L``, ``I;12``."""
    for tile in opened.tile:
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        layout = str(arguments[0]) if arguments else ""
        if tile.codec_name in ("ppm", "ppm_plain"):
            # Pillow stretches these to its own range, as their header says.
            return _Stored(opened.mode == "I", 16, negative=False)
        if (deep := _DEEP.fullmatch(layout)) is not None:
            return _Stored(True, 12 if deep[1] == "12" else 0, _is_negative(opened))
    return _Stored(False, 8, negative=False)


def _is_negative(opened: Image.Image) -> bool:
    # Pillow turns round the values of 8 bits by itself.
    return getattr(opened, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _plain(image: Image.Image, stored: _Stored, bits: int) -> Image.Image:
    """The image in a mode of 8 bits a channel without transparency, from which Pillow converts correctly."""
    if image.mode.startswith("I"):
        return _stretched(image, stored, bits)
    if image.mode == "F":
        raise RefusedPictureError(Code.FLOATING_POINT)
    if stored.deep and bits != 16:
        # Pillow has kept the upper 8 bits of each channel.
        extrema: tuple[tuple[int, int], ...] = image.getextrema()  # type: ignore[assignment]
        brightest = max(high for band, (_, high) in zip(image.getbands(), extrema, strict=True) if band != "A")
        if bits or 0 < brightest < _DARK >> 8:
            raise RefusedPictureError(Code.BITS_OF_COLOURS)
    return _over_white(image) if image.has_transparency_data else image


def _stretched(image: Image.Image, stored: _Stored, bits: int) -> Image.Image:
    """A grey image of up to 16 bits with its whole range brought to 8."""
    # Pillow's own conversion clips everything above 255.
    image = image.convert("I")
    lowest, highest = (int(value) for value in image.getextrema())  # type: ignore[arg-type]
    known = stored.bits or bits
    largest = (1 << (known or 16)) - 1
    if lowest < 0 or highest > largest:
        raise RefusedPictureError(Code.BEYOND_BITS if known not in (0, 16) else Code.BEYOND_16_BITS)
    if not known and 0 < highest < _DARK:
        raise RefusedPictureError(Code.BITS_UNKNOWN)
    return image.point(_greys(largest, stored.negative), "L")


@cache
def _greys(largest: int, negative: bool) -> list[int]:
    """The grey of 8 bits for each value of 16, of which ``largest`` is the end of the range."""
    greys = [round(255 * min(value, largest) / largest) for value in range(1 << 16)]
    return [255 - grey for grey in greys] if negative else greys


def _over_white(image: Image.Image) -> Image.Image:
    """The image without transparency; strip by strip, as large pictures would take three times the memory."""
    whole = Image.new("RGBA", image.size)
    for top in range(0, image.height, _STRIP):
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height))).convert("RGBA")
        whole.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip), (0, top))
    return whole


if __name__ == "__main__":
    main()
