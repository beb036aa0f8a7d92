"""Arrays out of files: numbers as they were stored, and in one line no to everything else."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import InputError
from protocol.pictures.arrays import read_array


def npy(header: str, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A file with any header."""
    text = header.encode("latin1")
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + content


def stored(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4", "<f4", "<f8", "?", "<u2"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4), (0, 3)])
def test_arrays_of_numbers_are_read_as_they_were_stored(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    for made in (array, np.asfortranarray(array)):
        (tmp_path / "array.npy").write_bytes(stored(made))
        found = read_array(tmp_path / "array.npy")
        np.testing.assert_array_equal(found, made, strict=True)
        assert found.dtype == made.dtype


HOSTILE = {
    "empty": b"",
    "no array": b"PK\x03\x04" + bytes(100),
    "objects, which would be unpickled": stored(np.array([{}, 1], object), allow_pickle=True),
    "objects in a header": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", bytes(8)),
    "objects in a field": npy("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,)}", bytes(8)),
    "fields": stored(np.zeros(2, [("a", "u1"), ("b", "<f4")])),
    "text": stored(np.array(["a"])),
    "times": stored(np.array([0], "M8[s]")),
    "an array of arrays": npy("{'descr': ('u1', (1000000,)), 'fortran_order': False, 'shape': (1,)}", b"x"),
    "a huge shape": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000000000)}", bytes(80)),
    "a shape that overflows": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296)}"),
    "a shape beyond all bits": npy("{'descr': 'u1', 'fortran_order': False, 'shape': (" + "9" * 4000 + ",)}"),
    "a huge number": npy("{'descr': 'u1', 'fortran_order': False, 'shape': (" + "9" * 9000 + ",)}"),
    "a negative side": npy("{'descr': 'u1', 'fortran_order': False, 'shape': (-1, -1)}", b"x"),
    "a side that is true": npy("{'descr': 'u1', 'fortran_order': False, 'shape': (True,)}", b"x"),
    "many axes": npy("{'descr': 'u1', 'fortran_order': False, 'shape': (" + "1," * 40 + ")}", b"x"),
    "a deep header": npy("(" * 4000 + ")" * 4000),
    "a long header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 30) + b"{",
    "an unknown version": npy("{'descr': 'u1', 'fortran_order': False, 'shape': (1,)}", b"x", version=b"\x09\x00"),
    "code in a header": npy("__import__('os').system('true')"),
    "a type that takes nothing": npy("{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000000,)}"),
    "a wrong type": npy("{'descr': 'no', 'fortran_order': False, 'shape': (1,)}", b"x"),
    "too little": stored(np.zeros(9, np.uint8))[:-1],
    "too much": stored(np.zeros(9, np.uint8)) + b"x",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_attack_anything_else_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / "array.npy"
    file.write_bytes(HOSTILE[name])
    with pytest.raises(InputError) as caught:
        read_array(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_huge_shape_is_dangerous_to_a_plain_reader(tmp_path: Path) -> None:
    """The control: it takes the memory that the header asks for, or fails for want of it."""
    (tmp_path / "array.npy").write_bytes(HOSTILE["a huge shape"])
    with pytest.raises(MemoryError):
        np.load(tmp_path / "array.npy", allow_pickle=False)


def test_attack_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "device.npy").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "device", "nowhere"):
        with pytest.raises(InputError, match=f"{name}.npy"):
            read_array(tmp_path / f"{name}.npy")
