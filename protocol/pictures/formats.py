"""Formats of pictures, recognised by a file's first bytes: those that are read, and advice for others. Every list of
formats and of suffixes in the project is this one.
"""

import re
from dataclasses import dataclass

#: First bytes of a file by which its kind is recognised.
HEAD_BYTES = 512
#: Formats that are read, as Pillow names them, in the order in which a request counts them. Pillow's JPEG includes the
#: variant MPO that phones write; of it, and of moving pictures, the first frame counts.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
#: The formats' names for people.
NAMES = "PNG, JPEG, WebP, GIF, BMP, TIFF or PPM"
#: Usual suffixes of files in these formats. Of a file with another one the first bytes are asked, where it matters.
SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("png", "apng", "jpg", "jpeg", "jpe", "jfif", "pjpeg", "pjp", "mpo", "webp", "gif", "bmp", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm"),
    )
)

_AS_PICTURE = "save it as JPEG or PNG"

#: Bits of a grey value that may be said to count, where a file has 16 or 32.
BITS = range(8, 17)
#: Files that operating systems leave in folders; they are skipped without a word, as hidden files are.
CLUTTER = frozenset({"desktop.ini", "thumbs.db"})


@dataclass(frozen=True)
class Kind:
    """A kind of file, recognised by its first bytes.

    Attributes:
        name: for people.
        format: one of ``FORMATS``; None: it is not read here.
        advice: what to do with a file that is not read.
    """

    name: str
    format: str | None
    advice: str = _AS_PICTURE


#: (where, bytes there, kind). The first one that fits counts.
_MAGIC: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", Kind("PNG picture", "PNG")),
    (0, b"\xff\xd8\xff", Kind("JPEG picture", "JPEG")),
    (0, b"GIF87a", Kind("GIF picture", "GIF")),
    (0, b"GIF89a", Kind("GIF picture", "GIF")),
    (0, b"BM", Kind("BMP picture", "BMP")),
    *((0, b"P%d" % number, Kind("PPM picture", "PPM")) for number in range(1, 7)),
    # Camera raw formats that begin as a TIFF does; DNG is one inside as well, which the decoder finds.
    (8, b"CR\x02", Kind("camera raw file (CR2)", None)),
    (0, b"IIRO", Kind("camera raw file (ORF)", None)),
    (0, b"IIRS", Kind("camera raw file (ORF)", None)),
    (0, b"IIU\x00", Kind("camera raw file (RW2)", None)),
    (0, b"FUJIFILMCCD-RAW", Kind("camera raw file (RAF)", None)),
    *((0, start, Kind("TIFF picture", "TIFF")) for start in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")),
    (0, b"\xff\x0a", Kind("JPEG XL picture", None)),
    (0, b"\x00\x00\x00\x0cJXL ", Kind("JPEG XL picture", None)),
    (0, b"\x00\x00\x00\x0cjP  ", Kind("JPEG 2000 picture", None)),
    (0, b"\xff\x4f\xff\x51", Kind("JPEG 2000 picture", None)),
    (0, b"8BPS", Kind("Photoshop file (PSD)", None)),
    (0, b"gimp xcf", Kind("GIMP file (XCF)", None)),
    (0, b"%!PS", Kind("PostScript file", None)),
    (0, b"\xc5\xd0\xd3\xc6", Kind("PostScript file", None)),
    (0, b"%PDF-", Kind("PDF file", None)),
    (0, b"\xd7\xcd\xc6\x9a", Kind("Windows metafile (WMF)", None)),
    (40, b" EMF", Kind("Windows metafile (EMF)", None)),
    (0, b"\x00\x00\x01\x00", Kind("Windows icon", None)),
    (0, b"SIMPLE  =", Kind("FITS file", None)),
    (0, b"\x76\x2f\x31\x01", Kind("OpenEXR picture", None)),
    (0, b"#?RADIANCE", Kind("Radiance picture", None)),
    (128, b"DICM", Kind("DICOM file", None, "export its picture as PNG")),
    (0, b"\x1a\x45\xdf\xa3", Kind("video", None, "save single frames of it as JPEG or PNG")),
    (0, b"\x00\x00\x01\xba", Kind("video", None, "save single frames of it as JPEG or PNG")),
    (0, b"version https://git-lfs.", Kind("Git LFS pointer", None, "fetch the file itself with: git lfs pull")),
    (0, b"PK\x03\x04", Kind("ZIP archive", None, "unpack it")),
    (0, b"\x1f\x8b", Kind("gzip archive", None, "unpack it")),
    (257, b"ustar", Kind("tar archive", None, "unpack it")),
    (0, b"7z\xbc\xaf\x27\x1c", Kind("7z archive", None, "unpack it")),
)
#: ISO media files, by their brand (ISO/IEC 14496-12, 23008-12).
_BRANDS: dict[bytes, Kind] = {
    **dict.fromkeys((b"avif", b"avis"), Kind("AVIF picture", None)),
    **dict.fromkeys(
        (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), Kind("HEIC picture", None)
    ),
    b"crx ": Kind("camera raw file (CR3)", None),
}
_VIDEO = Kind("video", None, "save single frames of it as JPEG or PNG")
_RIFF = {b"WEBP": Kind("WebP picture", "WEBP"), b"AVI ": _VIDEO}
_TEXTS = ((b"<svg", Kind("SVG drawing", None)), (b"<html", Kind("web page", None, "save the picture itself")))


#: Behind two letters with which many texts begin: a netpbm picture's width, the size of a BMP's second header.
_NETPBM = re.compile(rb"P[1-6]\s+(?:#[^\n]*\n\s*)*[0-9]")
_BMP_HEADERS = frozenset((12, 16, 40, 52, 56, 64, 108, 124))


def _is_plausible(head: bytes, magic: bytes) -> bool:
    if magic == b"BM":
        return int.from_bytes(head[14:18], "little") in _BMP_HEADERS
    return len(magic) > 2 or not magic.startswith(b"P") or _NETPBM.match(head) is not None


def kind_of(head: bytes) -> Kind | None:
    """The kind of a file by its first ``HEAD_BYTES``; None: an unknown kind."""
    if head[4:8] == b"ftyp":
        # The brand says avif or mif1, and those that are compatible which of the two a mif1 is.
        brands = [head[8:12], *(head[at : at + 4] for at in range(16, min(int.from_bytes(head[:4]), len(head)), 4))]
        known = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
        return next((kind for kind in known if kind.name.startswith("AVIF")), known[0]) if known else _VIDEO
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12])
    for where, magic, kind in _MAGIC:
        if head[where : where + len(magic)] == magic and _is_plausible(head, magic):
            return kind
    text = head.lower()
    return next((kind for start, kind in _TEXTS if start in text), None)
