"""Reading pictures: every good one as before, and what is none refused in one line, whatever it is meant to do."""

import io
import os
import socket
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from protocol.errors import InputError
from protocol.learngene.architecture import InputContract
from protocol.pictures import wire
from protocol.pictures.reader import PictureReader
from protocol.visible_text import LINE_LENGTH
from tests.protocol.pictures.made_pictures import OPTIONS, drawn, good_pictures, png, read_plainly, tiff, zeros

COLOUR = InputContract(height=8, width=12, channels=3)
GREY = InputContract(height=8, width=12, channels=1)
SAME = InputContract(height=21, width=34, channels=3)


@pytest.fixture(scope="module")
def reader() -> Iterator[PictureReader]:
    with PictureReader(1) as opened:
        yield opened


def refused(reader: PictureReader, file: Path) -> str:
    """The one line with which a file is refused; it names the file."""
    with pytest.raises(InputError) as caught:
        reader.read(file, COLOUR)
    line = str(caught.value)
    assert line.startswith(str(file)) or str(file) in line
    assert "\n" not in line
    assert "; " in line or "is not a file" in line
    return line


def whole(reader: PictureReader, folder: Path) -> None:
    """A good picture is read."""
    (folder / "good.png").write_bytes(picture_bytes("PNG"))
    np.testing.assert_array_equal(reader.read(folder / "good.png", COLOUR), drawn(8, 12, 3))


def picture_bytes(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(drawn(8, 12, 3)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_good_picture_has_the_pixels_that_it_always_had(reader: PictureReader, tmp_path: Path, kind: str) -> None:
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    files, made = [], list(good_pictures(kind))
    for number, (_, data) in enumerate(made):
        files.append(tmp_path / str(number))
        files[-1].write_bytes(data)
    assert files
    for contract in (COLOUR, GREY, SAME):
        for file, found, (name, data) in zip(files, reader.read_all(files, contract), made, strict=True):
            np.testing.assert_array_equal(found, read_plainly(data, contract), err_msg=f"{file}: {kind}, {name}")


def test_pictures_come_in_the_order_of_their_files_from_any_number_of_decoders(tmp_path: Path) -> None:
    files = []
    for number in range(150):
        files.append(tmp_path / f"{number}.png")
        # Every tenth takes longer.
        side = 600 if number % 10 == 0 else 12
        Image.new("RGB", (side, side), (number, 0, 0)).save(files[-1])
    with PictureReader(3) as several:
        assert [int(found[0, 0, 0]) for found in several.read_all(files, COLOUR)] == list(range(150))


def test_all_bad_pictures_are_named_at_once_and_the_good_ones_can_be_had(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(60)]
    for file in files:
        file.write_bytes(picture_bytes("PNG"))
    for bad in (20, 21, 50):
        files[bad].write_bytes(b"no picture")
    with PictureReader(2) as several:
        read = []
        with pytest.raises(InputError) as caught:
            read.extend(several.read_all(files, COLOUR))
        assert len(read) == 20
        line = str(caught.value)
        assert "\n" not in line
        assert [number for number in range(60) if f"/{number}.png" in line] == [20, 21, 50]
        found = list(several.read_each(files, COLOUR))
        assert [number for number, one in enumerate(found) if isinstance(one, InputError)] == [20, 21, 50]
        whole(several, tmp_path)


def test_of_very_many_bad_pictures_some_are_named_and_all_are_counted(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(1000)]
    for file in files:
        file.write_bytes(b"no picture")
    with PictureReader(1) as one, pytest.raises(InputError, match="1000 of 1000") as caught:
        list(one.read_all(files, COLOUR))
    assert len(str(caught.value)) < LINE_LENGTH


# What the values mean.


def grey_file(path: Path, values: np.ndarray, **options: object) -> Path:
    Image.fromarray(values).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("bits", "name", "kind"),
    [(12, "a.png", "<u2"), (12, "a.tif", "<u2"), (14, "a.tif", ">u2"), (10, "b.tif", "<i4")],
)
def test_greys_of_fewer_bits_than_their_file_has_are_asked_for_and_then_stretched(
    tmp_path: Path, bits: int, name: str, kind: str
) -> None:
    largest = (1 << bits) - 1
    values = np.linspace(0, largest, 8 * 12).round().reshape(8, 12)
    file = grey_file(tmp_path / name, values.astype(kind))
    with PictureReader(1) as unsaid:
        assert "--bits" in refused(unsaid, file)
        # A picture that is black all over means the same in any range.
        assert not unsaid.read(grey_file(tmp_path / name, np.zeros((8, 12)).astype(kind)), GREY).any()
    file = grey_file(tmp_path / name, values.astype(kind))
    with PictureReader(1, bits=bits) as said:
        np.testing.assert_array_equal(said.read(file, GREY)[:, :, 0], (values * 255 / largest).round())
        grey_file(file, (values + 1).astype(kind))
        assert "beyond the bits" in refused(said, file)
    with PictureReader(1, bits=16) as said:
        np.testing.assert_array_equal(said.read(file, GREY)[:, :, 0], ((values + 1) / 257).round())


def test_a_file_that_says_its_range_is_not_asked_about(reader: PictureReader, tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 8 * 12).round().reshape(8, 12).astype(np.uint16)
    expected = (values * (255 / 4095)).round()
    (tmp_path / "a.pgm").write_bytes(b"P5 12 8 4095\n" + values.astype(">u2").tobytes())
    np.testing.assert_allclose(reader.read(tmp_path / "a.pgm", GREY)[:, :, 0], expected, atol=1)
    pairs = values.reshape(-1, 2).astype(int)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    (tmp_path / "a.tif").write_bytes(
        tiff((256, 3, 1, 12), (257, 3, 1, 8), (258, 3, 1, 12), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 122),
             (277, 3, 1, 1), (278, 3, 1, 8), (279, 4, 1, 144)) + packed.astype(np.uint8).tobytes()
    )  # fmt: skip
    np.testing.assert_array_equal(reader.read(tmp_path / "a.tif", GREY)[:, :, 0], expected)


def test_white_that_is_zero_is_white_with_16_bits_too(reader: PictureReader, tmp_path: Path) -> None:
    """As scanners of films write it: tag PhotometricInterpretation, 0."""
    for kind in (np.uint8, np.uint16):
        white = np.iinfo(kind).max
        values = np.linspace(0, white, 8 * 12).reshape(8, 12).astype(kind)
        grey_file(tmp_path / "film.tif", values, tiffinfo={262: 0})
        stored = (tmp_path / "film.tif").read_bytes()
        with Image.open(tmp_path / "film.tif") as opened:
            assert opened.tag_v2[262] == 0, len(stored)
            (raw,) = [stored[offset : offset + values.nbytes] for offset in opened.tag_v2[273]]
        black_is_white = np.frombuffer(raw, kind).reshape(8, 12)
        expected = 255 - (black_is_white * (255 / white)).round()
        np.testing.assert_allclose(reader.read(tmp_path / "film.tif", GREY)[:, :, 0], expected, atol=1)


def test_colours_of_fewer_bits_than_their_file_has_are_not_read_as_black(reader: PictureReader, tmp_path: Path) -> None:
    def rows(values: np.ndarray) -> bytes:
        return b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def png16(values: np.ndarray) -> bytes:
        header = struct.pack(">IIBBBBB", 12, 8, 16, 2, 0, 0, 0)
        eight = png((b"IDAT", zlib.compress(rows(values))), width=12, height=8)
        return eight.replace(_chunk(eight), header + struct.pack(">I", zlib.crc32(b"IHDR" + header)))

    def _chunk(data: bytes) -> bytes:
        return data[16:33]

    bright = drawn(8, 12, 3).astype(np.uint16) * 257
    file = tmp_path / "deep.png"
    file.write_bytes(png16(bright))
    np.testing.assert_array_equal(reader.read(file, COLOUR), drawn(8, 12, 3))
    file.write_bytes(png16(bright >> 4))
    assert "--bits 16" in refused(reader, file)
    with PictureReader(1, bits=16) as said:
        np.testing.assert_array_equal(said.read(file, COLOUR), bright >> 12)


def test_bits_that_no_grey_value_has_are_refused() -> None:
    for bits in (7, 17, -1):
        with pytest.raises(InputError, match="8 to 16"):
            PictureReader(1, bits=bits)


def test_the_operating_system_confines_the_decoder_where_it_can(reader: PictureReader, tmp_path: Path) -> None:
    from protocol.confinement import landlock, seccomp

    whole(reader, tmp_path)
    assert reader.confined is (landlock.abi() > 0 and seccomp.offered())


# Names and kinds.


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + bytes(40), "PostScript"),
        (b"%PDF-1.7\n", "PDF"),
        (b"8BPS\x00\x01", "Photoshop"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIC"),
        (b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00mif1heic", "HEIC"),
        (b"\x00\x00\x00\x1cftypmif1\x00\x00\x00\x00mif1avifmiaf", "AVIF"),
        (b"\x00\x00\x00\x18ftypavif\x00\x00\x00\x00mif1avif", "AVIF"),
        (b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isommp41", "video"),
        (b"RIFF\x00\x00\x00\x00AVI LIST", "video"),
        (b"II*\x00\x10\x00\x00\x00CR\x02\x00", "CR2"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"\xd7\xcd\xc6\x9a" + bytes(40), "WMF"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"PK\x03\x04", "ZIP"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n", "git lfs pull"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x0a\x00", "JPEG XL"),
        (tiff((50706, 1, 4, 0x0401), (256, 3, 1, 8), (257, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
              (278, 3, 1, 8), (279, 4, 1, 8)), "DNG"),
    ],
)  # fmt: skip
def test_other_kinds_are_refused_by_their_content_whatever_their_name(
    reader: PictureReader, tmp_path: Path, head: bytes, said: str
) -> None:
    file = tmp_path / "holiday.jpg"
    file.write_bytes(head.ljust(64, b" "))
    assert said in refused(reader, file)
    whole(reader, tmp_path)


def test_attack_an_eps_that_is_called_a_jpeg(
    reader: PictureReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: Pillow without a list of formats takes it for its EPS reader, which would start Ghostscript."""
    from PIL import EpsImagePlugin

    file = tmp_path / "picture.jpg"
    Image.fromarray(drawn(8, 12, 3)).save(file, "EPS")
    asked = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: asked.append(1) or Image.new("RGB", (1, 1)).im)
    with Image.open(file) as opened:
        opened.load()
    assert asked
    assert "PostScript" in refused(reader, file)


# What is no file.


def test_attack_a_pipe_a_socket_a_device_or_a_folder_with_a_picture_s_name(
    reader: PictureReader, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.png"))
        for name in ("pipe", "folder", "device", "gone", "loop", "socket"):
            with pytest.raises(InputError, match=f"{name}.png"):
                reader.read(tmp_path / f"{name}.png", COLOUR)
    (tmp_path / "link.png").symlink_to(tmp_path / "good.png")
    whole(reader, tmp_path)
    np.testing.assert_array_equal(reader.read(tmp_path / "link.png", COLOUR), drawn(8, 12, 3))


def test_attack_a_file_of_ten_gigabytes_is_refused_by_its_size(reader: PictureReader, tmp_path: Path) -> None:
    file = tmp_path / "huge.png"
    with file.open("wb") as sparse:
        sparse.write(picture_bytes("PNG"))
        sparse.truncate(10 << 30)
    assert str(wire.MAX_FILE_BYTES) in refused(reader, file)


# Bombs.


#: Bytes that a bomb unpacks to, and that it has.
LARGE, LITTLE = 256 << 20, 2 << 20


def memory_of(file: Path) -> int:
    """Bytes that a fresh decoder took at most, beside what it takes for a good picture, to refuse a file."""
    with PictureReader(1) as fresh:
        fresh.read(file.parent / "good.png", COLOUR)
        (decoder,) = fresh._decoders
        status = Path(f"/proc/{decoder.pid}/status")
        before = _peak(status)
        refused(fresh, file)
        return _peak(status) - before


def _peak(status: Path) -> int:
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


def test_attack_a_small_png_of_huge_size(reader: PictureReader, tmp_path: Path) -> None:
    """Pillow alone reads what is just below its own limit: 178 million pixels, in several copies."""
    side = 13_300
    data = png((b"IDAT", zeros(side * (1 + side * 4))), width=side, height=side, colours=6)
    assert len(data) < 1 << 20
    file = tmp_path / "bomb.png"
    file.write_bytes(data)
    with warnings.catch_warnings(action="ignore"), Image.open(file) as control:
        assert control.width * control.height > wire.MAX_PIXELS
    whole(reader, tmp_path)
    assert "too many pixels" in refused(reader, file)
    assert memory_of(file) < 16 << 20
    whole(reader, tmp_path)


BOMBS: dict[str, Callable[[], bytes]] = {
    "text": lambda: png((b"zTXt", b"a\x00\x00" + zeros(LARGE))),
    "international text": lambda: png((b"iTXt", b"a\x00\x01\x00\x00\x00" + zeros(LARGE))),
    "colour profile": lambda: png((b"iCCP", b"a\x00\x00" + zeros(LARGE))),
    "many texts": lambda: png(*[(b"zTXt", b"%d\x00\x00" % number + zeros(1 << 20)) for number in range(200)]),
    "a huge tag": lambda: tiff((256, 3, 1, 8), (257, 3, 1, 8), (270, 2, 0xFFFFFFF0, 8)),
    "a huge list of strips": lambda: tiff(
        (256, 3, 1, 8), (257, 3, 1, 8), (273, 4, 0x3FFFFFFF, 8), (279, 4, 0x3FFFFFFF, 8)
    ),
    "a directory that follows itself": lambda: tiff((256, 3, 1, 8), (257, 3, 1, 8), next_ifd=8),
    "a huge tiff": lambda: tiff((256, 4, 1, 1 << 20), (257, 4, 1, 1 << 20), (258, 3, 1, 8), (262, 3, 1, 1)),
    "a huge gif": lambda: b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + b";",
    "a huge bmp": lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 1 << 30, 1 << 30, 1, 24, *[0] * 6),
    "a huge ppm": lambda: b"P6 1000000 1000000 255\n" + bytes(100),
    "a huge number in a ppm": lambda: b"P6 " + b"9" * (1 << 20) + b" 1 255\n",
    "a huge webp": lambda: b"RIFF\x1a\x00\x00\x00WEBPVP8L\x0d\x00\x00\x00\x2f" + b"\xff" * 12,
}


@pytest.mark.parametrize("name", BOMBS)
def test_attack_a_bomb_is_refused_and_takes_little(reader: PictureReader, tmp_path: Path, name: str) -> None:
    file = tmp_path / "bomb.png"
    file.write_bytes(BOMBS[name]())
    assert file.stat().st_size < LITTLE
    whole(reader, tmp_path)
    refused(reader, file)
    assert memory_of(file) < LARGE // 2
    whole(reader, tmp_path)


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_picture_that_was_cut_or_changed_is_read_or_refused_and_the_next_one_read(
    reader: PictureReader, tmp_path: Path, kind: str
) -> None:
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    data = picture_bytes(kind)
    file, random = tmp_path / "picture", np.random.default_rng(0)
    tried = [data[:keep] for keep in range(0, len(data) - 60, max(1, len(data) // 20))]
    for _ in range(30):
        changed = bytearray(data)
        for place in random.integers(0, len(data), 3):
            changed[place] = random.integers(256)
        tried.append(bytes(changed))
    came = []
    for content in tried:
        file.write_bytes(content)
        try:
            came.append(reader.read(file, COLOUR).shape)
        except InputError as error:
            came.append(str(error).startswith(f"{file} "))
    assert all(came)
    assert True in came
    whole(reader, tmp_path)


def test_a_picture_of_the_largest_size_is_read(tmp_path: Path) -> None:
    """As many pixels as are allowed, transparent and turned, in the memory that a decoder has."""
    side = int(wire.MAX_PIXELS**0.5)
    exif = struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 0x0112, 3, 1, 6, 0)
    rows = zeros(side * (1 + side * 4))
    (tmp_path / "large.png").write_bytes(png((b"eXIf", exif), (b"IDAT", rows), width=side, height=side, colours=6))
    with PictureReader(1) as reader:
        # All of it is transparent.
        assert (reader.read(tmp_path / "large.png", COLOUR) == 255).all()


def test_a_contract_that_is_not_for_pictures_is_refused(reader: PictureReader, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 channels"):
        reader.read(tmp_path / "any.png", InputContract(height=8, width=8, channels=2))


def test_an_empty_list_of_pictures_starts_nothing() -> None:
    with PictureReader(1, command=("/nowhere/at/all",)) as reader:
        assert list(reader.read_all([], COLOUR)) == []


def test_zlib_of_a_bomb_is_what_it_says() -> None:
    """The control of the bombs above: they do unpack to what they threaten with."""
    assert zlib.decompress(zeros(3_000_000)) == bytes(3_000_000)
