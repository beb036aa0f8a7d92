"""Canonical JSON: one value, one encoding; everything else is refused."""

import enum
import json
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.encoding import canonical_json
from protocol.errors import MalformedError, TooLargeError

WORDS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters='"\\'), max_size=12)
SCALARS = st.none() | st.booleans() | WORDS | st.integers(-canonical_json.MAX_INTEGER, canonical_json.MAX_INTEGER)
# The root is one level, and each of these at most one more: depth 4 is reached and not passed.
NESTED: st.SearchStrategy[Any] = SCALARS
for _ in range(3):
    NESTED = SCALARS | st.lists(NESTED, max_size=4) | st.dictionaries(WORDS, NESTED, max_size=4)
OBJECTS = st.dictionaries(WORDS, NESTED, max_size=6)


@given(OBJECTS)
def test_decoding_what_was_encoded_gives_the_value_back(value: dict[str, Any]) -> None:
    data = canonical_json.encode(value)
    assert canonical_json.decode(data) == value
    assert json.loads(data) == value


@given(OBJECTS)
def test_the_order_of_keys_does_not_change_the_encoding(value: dict[str, Any]) -> None:
    assert canonical_json.encode(dict(reversed(value.items()))) == canonical_json.encode(value)


@given(OBJECTS)
def test_any_other_spelling_of_the_same_value_is_refused(value: dict[str, Any]) -> None:
    spaced = json.dumps(value, indent=1).encode()
    assert canonical_json.parse(spaced) == value
    if spaced != canonical_json.encode(value):
        with pytest.raises(MalformedError):
            canonical_json.decode(spaced)


@settings(max_examples=300)
@given(st.binary(max_size=60) | st.text('{}[]",:0123456789ab -.eE\\u', max_size=60).map(str.encode))
def test_what_is_decoded_encodes_to_the_same_bytes_and_all_else_is_refused(data: bytes) -> None:
    try:
        value = canonical_json.decode(data)
    except MalformedError:
        return
    assert canonical_json.encode(value) == data


@pytest.mark.parametrize("character", [bytes([number]) for number in range(256)])
def test_what_is_read_can_be_written_whatever_character_it_holds(character: bytes) -> None:
    """``decode`` checks no value again that ``parse`` has let through."""
    for data in (b'{"' + character + b'":1}', b'{"a":"' + character + b'"}', b'{"a":' + character + b"}"):
        try:
            value = canonical_json.parse(data)
        except MalformedError:
            with pytest.raises(MalformedError):
                canonical_json.decode(data)
        else:
            assert canonical_json.encode(value) == canonical_json._encode(value)


class Word(enum.StrEnum):
    """A kind of text."""

    GOOD = "good"
    BAD = "b\u00e4d"


class Pair(NamedTuple):
    """A kind of sequence."""

    first: canonical_json.Value
    second: canonical_json.Value


def test_kinds_of_the_types_are_checked_as_strictly() -> None:
    value = MappingProxyType({Word.GOOD: Pair(1, MappingProxyType({"a": (True, None)}))})
    assert canonical_json.encode(value) == b'{"good":[1,{"a":[true,null]}]}'
    for bad in (
        MappingProxyType({Word.BAD: 1}),
        Pair(1, Word.BAD),
        {"a": Pair(2**53, 0)},
        MappingProxyType({"a": "ä"}),
    ):
        with pytest.raises(ValueError, match=r"integer|printable"):
            canonical_json.encode(bad)
    for wrong in (MappingProxyType({1: 2}), Pair(1, 1.5), Pair(1, bytearray(b"x")), MappingProxyType({"a": {1}})):
        with pytest.raises(TypeError):
            canonical_json.encode(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a":1,"a":1}', "twice"),
        (b'{"a":1,"a":2}', "twice"),
        (b'{"a":[{"b":1,"b":1}]}', "twice"),
        (b'{"a":1.0}', "no integer"),
        (b'{"a":1e3}', "no integer"),
        (b'{"a":NaN}', "no integer"),
        (b'{"a":-Infinity}', "no integer"),
        (b'{"a":9007199254740992}', "beyond"),
        (b'{"a":' + b"9" * 5000 + b"}", "beyond"),
        (b'{"a":-0}', "canonical"),
        (b'{"a":01}', "not JSON"),
        (b'{"b":1,"a":1}', "canonical"),
        (b'{"a": 1}', "canonical"),
        (b'{"a":1}\n', "canonical"),
        (b'\xef\xbb\xbf{"a":1}', "editor"),
        ('{"a":"ä"}'.encode(), "ASCII"),
        (b'{"a":"\\u0041"}', "escape"),
        (b'{"a":"\n"}', "not JSON"),
        (b'{"a":"\x7f"}', "not allow"),
        (b"[1]", "not an object"),
        (b"", "not JSON"),
        (b'{"a":1}}', "not JSON"),
        (b'{"a":"b', "not JSON"),
        (b'{"a":[[[[]]]]}', "nested"),
        (b"[" * 60_000, "nested"),
        (b'{"a":' * 10_000, "nested"),
    ],
)
def test_malformed(data: bytes, reason: str) -> None:
    assert canonical_json.decode(b'{"a":[[[]]]}') == {"a": [[[]]]}
    with pytest.raises(MalformedError, match=reason):
        canonical_json.decode(data)


def test_too_large() -> None:
    word = b'{"a":"' + b"x" * (canonical_json.MAX_BYTES - 8) + b'"}'
    assert len(word) == canonical_json.MAX_BYTES
    canonical_json.decode(word)
    with pytest.raises(TooLargeError):
        canonical_json.decode(word[:-2] + b'x"}')


@pytest.mark.parametrize("value", [{"a": 1.5}, {"a": b"x"}, {1: 2}, {"a": {1, 2}}])
def test_types_outside_the_subset_cannot_be_encoded(value: canonical_json.Value) -> None:
    with pytest.raises(TypeError):
        canonical_json.encode(value)


@pytest.mark.parametrize("value", [{"a": 2**53}, {"a": "ä"}, {"a": 'quo"te'}, {"back\\slash": 1}])
def test_values_outside_the_subset_cannot_be_encoded(value: canonical_json.Value) -> None:
    with pytest.raises(ValueError, match=r"integer|printable"):
        canonical_json.encode(value)
