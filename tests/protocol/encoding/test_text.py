"""Text as editors save it: the same characters whatever the encoding, and what no encoding explains is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from collective_node import collective_images
from protocol.encoding import canonical_json, strict_json
from protocol.encoding.text import text_of
from protocol.errors import InputError, MalformedError
from protocol.node import configuration
from protocol.trust.policy_file import load_policy
from sims.data.division import read_split
from sims.data.worlds import load_world

TEXT = '{"name": "grün 蝶 \U0001f98b"}'
SAVED = {
    "plain": TEXT.encode(),
    "with a mark": TEXT.encode("utf-8-sig"),
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-16, big end first": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "UTF-32": TEXT.encode("utf-32"),
}


@pytest.mark.parametrize("how", SAVED)
def test_text_is_the_same_however_it_was_saved(how: str) -> None:
    assert text_of(SAVED[how]) == TEXT
    assert strict_json.parse_object(SAVED[how]) == json.loads(TEXT)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("a\ngrün".encode("latin-1"), "0xfc in line 2"),
        (TEXT.encode("utf-16-le"), "UTF-16"),
        (TEXT.encode("utf-16")[:-1], "UTF-16"),
        (b"a\0b", "no text"),
    ],
)
def test_what_is_no_text_is_said_to_be_so(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        text_of(data)


def test_a_signed_text_that_an_editor_saved_again_is_refused_for_that_reason() -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        with pytest.raises(MalformedError, match="editor"):
            canonical_json.decode('{"a":1}'.encode(encoding))


SPLIT = json.dumps({"base": ["a", "b"], "open_world": ["grün"], "novel": ["d", "e"]}, ensure_ascii=False)
#: A file that people write or save again, its text, and what reads it.
FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "split.json": (SPLIT, read_split),
    "config.toml": ("# grün\n[node]\nparty = 'a'\n", configuration.read),
    "policy.toml": ("# grün\nminimum_fisher_samples = 2048\n", lambda path: load_policy(path, "collective")),
    "manifest.json": ('{"classes": ["grün"]}', lambda path: collective_images.read_manifest(path.parent)),
}


@pytest.mark.parametrize("name", FILES)
def test_the_files_of_people_are_read_as_their_editor_saves_them(tmp_path: Path, name: str) -> None:
    text, read = FILES[name]
    path = tmp_path / name
    found = []
    for data in (text.encode(), text.encode("utf-8-sig"), text.encode("utf-16"), text.replace("\n", "\r\n").encode()):
        path.write_bytes(data)
        path.chmod(0o600)
        found.append(read(path))
    assert found[1:] == found[:1] * 3
    for wrong in (text.encode("latin-1"), text.encode("utf-16-le")):
        path.write_bytes(wrong)
        with pytest.raises((InputError, ValueError), match="UTF-8"):
            read(path)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    for name, (_, read) in FILES.items():
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match=name):
            read(tmp_path / name)
    os.mkfifo(tmp_path / "world.json")
    with pytest.raises(InputError, match="is not a world"):
        load_world(tmp_path)
