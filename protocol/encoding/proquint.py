"""Proquints (arXiv:0901.4016): sixteen bits as a word of five letters that can be read aloud."""

import re

_CONSONANTS = "bdfghjklmnprstvz"
_VOWELS = "aiou"
_SEPARATORS = re.compile(r"[\s,;.\-]+")


def encode(data: bytes) -> str:
    """An even number of bytes as words with ``-`` between: ``7f000001`` is ``lusab-babad``."""
    if len(data) % 2:
        raise ValueError("a proquint holds two bytes")
    return "-".join(_word(int.from_bytes(data[at : at + 2], "big")) for at in range(0, len(data), 2))


def decode(text: str) -> bytes:
    """Read words as people write and say them: with spaces, commas or line breaks between, and in capitals.

    Raises:
        ValueError: a word is no proquint; the text says which.
    """
    return b"".join(_value(word).to_bytes(2, "big") for word in filter(None, _SEPARATORS.split(text.lower())))


def _word(value: int) -> str:
    return (
        _CONSONANTS[value >> 12]
        + _VOWELS[value >> 10 & 3]
        + _CONSONANTS[value >> 6 & 15]
        + _VOWELS[value >> 4 & 3]
        + _CONSONANTS[value & 15]
    )


def _value(word: str) -> int:
    letters = (_CONSONANTS, _VOWELS, _CONSONANTS, _VOWELS, _CONSONANTS)
    value = 0
    if len(word) != len(letters):
        raise ValueError(f"the word {word!r} has not five letters")
    for letter, alphabet in zip(word, letters, strict=True):
        if letter not in alphabet:
            raise ValueError(f"the word {word!r} is not made of consonants and vowels as a fingerprint's words are")
        value = value * len(alphabet) + alphabet.index(letter)
    return value
