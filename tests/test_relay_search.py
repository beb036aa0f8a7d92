"""The search for plaintext finds what is there, whatever the encoding and wherever it begins, and nothing else."""

import base64
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.relay_search import (
    CONFIRMED,
    SURELY_FOUND,
    Pieces,
    encodings,
    holding,
    memory_can_be_read,
    search_files,
    search_process,
)

LEARNGENE, OTHER = secrets.token_bytes(3000), secrets.token_bytes(500)
PIECES = Pieces({"a learngene": LEARNGENE, "another": OTHER})


@pytest.mark.parametrize("encoding", encodings(b""))
def test_finds_every_part_of_the_smallest_length_at_every_alignment(encoding: str) -> None:
    text = encodings(LEARNGENE)[encoding]
    for start in (*range(0, len(text) - SURELY_FOUND, 61), len(text) - SURELY_FOUND):
        part = text[start : start + SURELY_FOUND]
        for shift in range(8):
            data = secrets.token_bytes(40 + shift) + part + secrets.token_bytes(40)
            assert PIECES.found_in(data) == {f"a learngene ({encoding})"}


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_finds_base64_of_a_message_around_it(encode: Callable[[bytes], bytes], before: int) -> None:
    message = encode(secrets.token_bytes(30 + before) + LEARNGENE + b"!")
    assert any("a learngene (base64" in name for name in PIECES.found_in(message))


def test_finds_nothing_where_there_is_nothing() -> None:
    assert PIECES.found_in(secrets.token_bytes(1 << 20)) == set()
    assert PIECES.found_in(bytes(1 << 20)) == set()
    assert PIECES.found_in(b"") == set()


def test_a_few_common_bytes_are_no_piece() -> None:
    part = LEARNGENE[1000 : 1000 + CONFIRMED - 1]
    assert PIECES.found_in(secrets.token_bytes(64) + part + secrets.token_bytes(64)) == set()


def test_two_pieces_are_told_apart() -> None:
    data = LEARNGENE[100:300] + OTHER[100:300].hex().encode()
    assert PIECES.found_in(data) == {"a learngene (raw)", "another (hexadecimal)"}


def test_searches_files_in_folders(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "planted").write_bytes(b"log: " + LEARNGENE[500:600])
    (tmp_path / "clean").write_bytes(secrets.token_bytes(5000))
    assert search_files(tmp_path, PIECES) == {"planted": {"a learngene (raw)"}}


def test_searches_the_memory_of_another_process() -> None:
    if not memory_can_be_read():
        pytest.skip("the memory of other processes cannot be read here")
    with holding(b"held: " + OTHER[50:150].hex().encode()) as pid:
        assert search_process(pid, PIECES) == {"another (hexadecimal)"}
    with holding(secrets.token_bytes(1 << 20)) as pid:
        assert search_process(pid, PIECES) == set()


def test_a_process_that_has_ended_holds_nothing() -> None:
    with holding(OTHER) as pid:
        pass
    assert search_process(pid, PIECES) == set()


def test_finds_what_repeats_itself() -> None:
    """Every word of a header stands in it many times; only a longer part says which of them it is."""
    header = b"".join(b'"layer.%d":{"dtype":"F32","shape":[8,8,3,3]},' % number for number in range(12))
    pieces = Pieces({"a header": header})
    for start in range(0, len(header) - SURELY_FOUND, 11):
        assert "a header (raw)" in pieces.found_in(b"!" + header[start : start + SURELY_FOUND] + b"!")
