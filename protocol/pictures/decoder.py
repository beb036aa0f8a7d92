"""The program that decodes pictures of unknown origin: it confines itself, then turns bytes into plain pixels.

Its parent starts it (``protocol.pictures.reader``); requests come on standard input, answers go to standard output.
Everything that decoding needs is imported before confinement, and nothing from outside is read before it.
"""

import contextlib
import gc
import importlib
import io
import os
import resource
import signal
import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps

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
#: Rows that are composed with white at once.
_STRIP = 256


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
        number, channels, height, width, length = REQUEST.unpack(header)
        data = requests.read(length)
        try:
            pixels = decode(data, FORMATS[number], channels=channels, height=height, width=width)
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


def decode(data: bytes, kind: str, *, channels: int, height: int, width: int) -> bytes:
    """One picture of the format ``kind`` as uint8 ``[height, width, channels]``: turned upright, its shorter side
    resized, the middle cut out.

    The first frame of a moving picture counts; transparent parts become white.

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
        image = opened
        ImageOps.exif_transpose(image, in_place=True)
    # Most images of prepared datasets are ready now.
    if image.mode != mode or "transparency" in image.info:
        image = _plain(image).convert(mode)
    if image.size != size:
        image = ImageOps.fit(image, size, Image.Resampling.BICUBIC)
    return image.tobytes()


def _plain(image: Image.Image) -> Image.Image:
    """The image in a mode of 8 bits a channel without transparency, from which Pillow converts correctly."""
    if image.mode.startswith("I"):
        # Pillow's own conversion clips everything above 255.
        image = image.convert("I")
        lowest, highest = image.getextrema()
        if lowest < 0 or highest > 0xFFFF:  # type: ignore[operator]
            raise RefusedPictureError(Code.BEYOND_16_BITS)
        return image.point([round(value / 257) for value in range(1 << 16)], "L")
    if image.mode == "F":
        raise RefusedPictureError(Code.FLOATING_POINT)
    return _over_white(image) if image.has_transparency_data else image


def _over_white(image: Image.Image) -> Image.Image:
    """The image without transparency; strip by strip, as large pictures would take three times the memory."""
    whole = Image.new("RGBA", image.size)
    for top in range(0, image.height, _STRIP):
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height))).convert("RGBA")
        whole.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip), (0, top))
    return whole


if __name__ == "__main__":
    main()
