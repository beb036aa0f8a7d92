"""Archives of unknown origin: their files come out as bytes, and nothing else comes out at all."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.errors import InputError
from protocol.pictures.archives import MAX_MEMBERS, read_members


def archive(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


WANTED = member("folder/wanted", b"content")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_the_named_files_come_out(mode: str) -> None:
    data = archive(member("folder", type=tarfile.DIRTYPE), WANTED, member("folder/other", b"x"), mode=mode)
    assert read_members(data, ["folder/wanted"], "it", max_bytes=100) == {"folder/wanted": b"content"}
    assert read_members(data, ["folder/wanted", "folder/other"], "it", max_bytes=100)["folder/other"] == b"x"


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a link": lambda: archive(WANTED, member("folder/link", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
    "a link in the place of a file": lambda: archive(
        member("folder/wanted", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    ),
    "a hard link": lambda: archive(WANTED, member("folder/link", type=tarfile.LNKTYPE, linkname="folder/wanted")),
    "a device": lambda: archive(WANTED, member("folder/device", type=tarfile.CHRTYPE, devmajor=1, devminor=5)),
    "a pipe": lambda: archive(WANTED, member("folder/pipe", type=tarfile.FIFOTYPE)),
    "a name above": lambda: archive(WANTED, member("folder/../../escaped", b"x")),
    "an absolute name": lambda: archive(WANTED, member("/tmp/escaped", b"x")),
    "a file that unpacks to more": lambda: archive(WANTED, member("folder/bomb", bytes(8 << 20))),
    "a header that says more": lambda: archive(member("folder/wanted", b"x" * 600), mode="w")[:1024],
    "a long name that unpacks to more": lambda: archive(
        member("././@LongLink", bytes(8 << 20), type=tarfile.GNUTYPE_LONGNAME), WANTED
    ),
    "an end that is missing": lambda: archive(WANTED)[:-20],
    "too many files": lambda: archive(WANTED, *[member(f"folder/{number}") for number in range(MAX_MEMBERS)]),
    "a name twice": lambda: archive(WANTED, WANTED),
    "nothing that is asked for": lambda: archive(member("folder/other", b"x")),
    "no archive": lambda: b"no archive" * 100,
    "half an archive": lambda: archive(member("folder/wanted", os.urandom(5000)))[:2000],
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_attack_an_archive_with_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        read_members(HOSTILE[name](), ["folder/wanted"], "the archive", max_bytes=1 << 16)
    assert str(caught.value).startswith("the archive ")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_the_name_above_is_dangerous_to_a_plain_reader(tmp_path: Path) -> None:
    """The control: it writes where the archive says."""
    (tmp_path / "here").mkdir()
    with tarfile.open(fileobj=io.BytesIO(HOSTILE["a name above"]())) as tar:
        tar.extractall(tmp_path / "here", filter="fully_trusted")
    assert (tmp_path / "escaped").exists()
