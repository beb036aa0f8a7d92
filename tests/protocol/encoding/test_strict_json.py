"""Strict JSON of a site's own files: one reading, bounded in depth and in numbers, never a traceback."""

import json

import pytest

from protocol.encoding.strict_json import parse, parse_object


@pytest.mark.parametrize(
    "value", [{}, {"a": [1, -2.5e-7, True, None, "ö\u202e\\\n"]}, {"k": {"k": {"k": [2**53 - 1]}}}, {"": 0.1}]
)
def test_what_a_node_writes_is_read_as_it_is(value: dict[str, object]) -> None:
    for ascii_only in (True, False):
        assert parse_object(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting"),
        (b'"\xff"', "UTF-8"),
        (b'{"a": 1, "a": 1}', "twice"),
        (b'{"a": {"b": 1, "b": 2}}', "twice"),
        (b"NaN", "NaN"),
        (b"[-Infinity]", "Infinity"),
        (b"1e999", "too large"),
        (b"1" * 100_000, "2\\^53"),
        (b"0." + b"1" * 100_000, "too long"),
        (b"9007199254740992", "2\\^53"),
        (b'"\\ud800"', "half a character"),
        (b'{"\\udfff": 1}', "half a character"),
        (b"[" * 13 + b"]" * 13, "deep"),
        (b"[" * 500_000, "deep"),
        (b'{"a":' * 500_000, "deep"),
    ],
)
def test_everything_else_is_refused_in_one_line(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        parse(data)
    assert "\n" not in str(refused.value)


def test_depth_is_counted_to_the_letter() -> None:
    assert parse(b"[" * 12 + b"]" * 12) == json.loads("[" * 12 + "]" * 12)
    with pytest.raises(ValueError, match="no JSON object"):
        parse_object(b"[]")
