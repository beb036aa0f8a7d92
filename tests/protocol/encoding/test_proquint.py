"""Proquints: the examples of the paper, every word there and back, and what a person may type."""

import re

import pytest

from protocol.encoding import proquint

# arXiv:0901.4016, its table of IPv4 addresses.
PUBLISHED = {
    "127.0.0.1": "lusab-babad",
    "63.84.220.193": "gutih-tugad",
    "63.118.7.35": "gutuk-bisog",
    "140.98.193.141": "mudof-sakat",
    "64.255.6.200": "haguz-biram",
    "128.30.52.45": "mabiv-gibot",
    "147.67.119.2": "natag-lisaf",
    "212.58.253.68": "tibup-zujah",
    "216.35.68.215": "tobog-higil",
    "216.68.232.21": "todah-vobij",
    "198.81.129.136": "sinid-makam",
    "12.110.110.204": "budov-kuras",
}


@pytest.mark.parametrize(("address", "words"), PUBLISHED.items())
def test_the_published_examples(address: str, words: str) -> None:
    data = bytes(int(part) for part in address.split("."))
    assert proquint.encode(data) == words
    assert proquint.decode(words) == data


def test_every_word_is_said_and_read_back() -> None:
    everything = b"".join(value.to_bytes(2, "big") for value in range(2**16))
    words = proquint.encode(everything)
    assert len(set(words.split("-"))) == 2**16
    assert re.fullmatch(r"[a-z]{5}(-[a-z]{5})*", words)
    assert proquint.decode(words) == everything


@pytest.mark.parametrize(
    "typed", ["LUSAB-BABAD", "lusab babad", " Lusab,  babad.", "lusab\nbabad\n", "lusab - babad", "lusab; BABAD"]
)
def test_a_person_s_way_of_writing_is_read(typed: str) -> None:
    assert proquint.decode(typed) == b"\x7f\x00\x00\x01"


@pytest.mark.parametrize(
    ("typed", "word"),
    [("lusab-baba", "'baba'"), ("lusabbabad", "'lusabbabad'"), ("lusab-bebad", "'bebad'"), ("12345", "'12345'")],
)
def test_what_is_no_word_is_named(typed: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        proquint.decode(typed)


def test_an_odd_byte_has_no_word() -> None:
    with pytest.raises(ValueError, match="two bytes"):
        proquint.encode(b"abc")
