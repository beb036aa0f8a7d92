"""Canonical JSON: sorted keys, no spaces, integers and printable ASCII words only; one value has one encoding.

A subset of RFC 8785 without choices: no floats, no escapes, no characters outside ASCII.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from protocol.encoding.text import is_marked
from protocol.errors import MalformedError, TooLargeError

Value: TypeAlias = "bool | int | str | Sequence[Value] | Mapping[str, Value] | None"

#: Bytes of the largest text that is read.
MAX_BYTES = 64 * 1024
#: Integers that every JSON reader keeps exactly (RFC 7493, section 2.2).
MAX_INTEGER = 2**53 - 1
# Printable ASCII without the quote and the backslash, so that no text ever needs an escape.
_is_word = re.compile(r"[ !#-\[\]-~]*").fullmatch


def encode(value: Value) -> bytes:
    """The one encoding of ``value``.

    Raises:
        TypeError: a type that the subset does not hold (a float, bytes, a key that is no text).
        ValueError: an integer beyond 2^53 - 1 or a text outside printable ASCII.
    """
    _check(value)
    return _encode(value)


def decode(data: bytes, *, max_depth: int = 4, max_bytes: int = MAX_BYTES) -> dict[str, Value]:
    """Read an object that must be in its canonical encoding.

    Raises:
        TooLargeError: more than ``max_bytes``.
        MalformedError: not an object, a duplicate key, a float, deeper than ``max_depth``, or not canonical.
    """
    value = parse(data, max_depth=max_depth, max_bytes=max_bytes)
    # Parsed values are within the subset and need no second check.
    if _encode(value) != data:
        raise MalformedError("the JSON is not in its canonical encoding: it was altered, or made by other software")
    return value


def parse(data: bytes, *, max_depth: int = 4, max_bytes: int = MAX_BYTES) -> dict[str, Value]:
    """Read an object strictly, but in any order of keys and with spaces; ``decode`` asks for the canonical encoding.

    Raises:
        TooLargeError: more than ``max_bytes``.
        MalformedError: not an ASCII JSON object, an escape, a control character, a duplicate key, a float or an integer
            beyond 2^53 - 1, or deeper than ``max_depth``.
    """
    if len(data) > max_bytes:
        raise TooLargeError(f"{len(data)} bytes of JSON, at most {max_bytes} are read")
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        if is_marked(data):
            raise MalformedError(
                "an editor saved it again, with a byte-order mark or as UTF-16, and its bytes are not those that were "
                "signed; fetch it again"
            ) from None
        raise MalformedError("the JSON holds bytes outside ASCII") from None
    if "\\" in text:
        raise MalformedError("the JSON holds an escape, and the protocol has none")
    # json.loads refuses the other control characters inside of texts.
    if "\x7f" in text:
        raise MalformedError("the JSON holds what the protocol does not allow: a control character")
    # Check before json.loads: a text of opening brackets would otherwise exceed Python's recursion limit.
    _check_depth(text, max_depth)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except ValueError:
        raise MalformedError("the text is not JSON") from None
    if not isinstance(value, dict):
        raise MalformedError("the JSON is not an object")
    return value


def _encode(value: Value) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain).encode("ascii")


def _plain(value: object) -> object:
    """Convert types that json.dumps does not know: mappings and sequences other than dict, list and tuple."""
    return dict(value) if isinstance(value, Mapping) else list(value)  # type: ignore[call-overload]


def _check(value: object) -> None:
    # By the exact type: what was parsed, and what pydantic gives, has no others.
    _CHECKS.get(type(value), _check_another)(value)


def _check_another(value: object) -> None:
    """Check a value by its base type: a named tuple, a read-only mapping, a member of an enumeration of words."""
    if isinstance(value, int):
        _check_integer(value)
    elif isinstance(value, str):
        _check_word(value)
    elif isinstance(value, Mapping):
        _check_mapping(value)
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        _check_items(value)
    else:
        raise TypeError(f"a value of type {type(value).__name__}")


def _check_integer(value: int) -> None:
    if not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise ValueError("an integer beyond 2^53 - 1")


def _check_word(value: str) -> None:
    if not _is_word(value):
        raise ValueError("a text outside printable ASCII, or with a quote or a backslash")


def _check_mapping(value: Mapping[object, object]) -> None:
    for key, item in value.items():
        if not isinstance(key, str):
            raise TypeError("a key that is no text")
        _check_word(key)
        _check(item)


def _check_items(value: Sequence[object]) -> None:
    for item in value:
        _check(item)


def _check_nothing(_: object) -> None:
    """True, false and null need no check."""


_CHECKS: dict[type, Callable[[Any], None]] = {
    bool: _check_nothing,
    type(None): _check_nothing,
    int: _check_integer,
    str: _check_word,
    dict: _check_mapping,
    list: _check_items,
    tuple: _check_items,
}


def _check_depth(text: str, max_depth: int) -> None:
    depth = 0
    # There are no escapes, so every second piece between quotes lies outside the texts.
    for piece in text.split('"')[::2]:
        for character in piece:
            if character in "{[":
                depth += 1
                if depth > max_depth:
                    raise MalformedError(f"the JSON is nested deeper than {max_depth}")
            elif character in "}]":
                depth -= 1


def _object(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise MalformedError("the JSON names a key twice")
    return result


def _integer(digits: str) -> int:
    if len(digits) > 17 or abs(int(digits)) > MAX_INTEGER:
        raise MalformedError("the JSON holds an integer beyond 2^53 - 1")
    return int(digits)


def _refuse_number(_: str) -> NoReturn:
    raise MalformedError("the JSON holds a number that is no integer")
