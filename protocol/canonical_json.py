"""Canonical JSON: sorted keys, no spaces, integers and printable ASCII words only; one value has one encoding.

A subset of RFC 8785 in which nothing is left to choose: no floats, no escapes, no characters outside ASCII.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import NoReturn, TypeAlias

from protocol.errors import MalformedError, TooLargeError

Value: TypeAlias = "bool | int | str | Sequence[Value] | Mapping[str, Value] | None"

#: Bytes of the largest text that is read at all.
MAX_BYTES = 64 * 1024
#: Integers that every JSON reader keeps exactly (RFC 7493, section 2.2).
MAX_INTEGER = 2**53 - 1
# Printable ASCII without the quote and the backslash, so that no text ever needs an escape.
_WORD = re.compile(r"[ !#-\[\]-~]*")


def encode(value: Value) -> bytes:
    """The one encoding of ``value``.

    Raises:
        TypeError: a type that the subset does not hold (a float, bytes, a key that is no text).
        ValueError: an integer beyond 2^53 - 1 or a text outside printable ASCII.
    """
    _check(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain).encode("ascii")


def decode(data: bytes, *, max_depth: int = 4, max_bytes: int = MAX_BYTES) -> dict[str, Value]:
    """Read an object that must be in its canonical encoding.

    Raises:
        TooLargeError: more than ``max_bytes``.
        MalformedError: not an object, a duplicate key, a float, deeper than ``max_depth``, or not canonical.
    """
    value = parse(data, max_depth=max_depth, max_bytes=max_bytes)
    try:
        canonical = encode(value)
    except (TypeError, ValueError) as error:
        raise MalformedError(f"the JSON holds what the protocol does not allow: {error}") from None
    if canonical != data:
        raise MalformedError("the JSON is not in its canonical encoding: it was altered, or made by other software")
    return value


def parse(data: bytes, *, max_depth: int = 4, max_bytes: int = MAX_BYTES) -> dict[str, Value]:
    """Read an object strictly, but in any order of keys and with spaces; ``decode`` asks for the canonical encoding.

    Raises:
        TooLargeError: more than ``max_bytes``.
        MalformedError: not an ASCII JSON object, an escape, a duplicate key, a float or an integer beyond 2^53 - 1,
            or deeper than ``max_depth``.
    """
    if len(data) > max_bytes:
        raise TooLargeError(f"{len(data)} bytes of JSON, at most {max_bytes} are read")
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise MalformedError("the JSON holds bytes outside ASCII") from None
    if "\\" in text:
        raise MalformedError("the JSON holds an escape, and the protocol has none")
    # Before json.loads: a text of opening brackets would otherwise run into Python's recursion limit.
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


def _plain(value: object) -> object:
    """What json.dumps does not know by itself: mappings and sequences other than dict, list and tuple."""
    return dict(value) if isinstance(value, Mapping) else list(value)  # type: ignore[call-overload]


def _check(value: Value) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise ValueError("an integer beyond 2^53 - 1")
    elif isinstance(value, str):
        if not _WORD.fullmatch(value):
            raise ValueError("a text outside printable ASCII, or with a quote or a backslash")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError("a key that is no text")
            _check(key)
            _check(item)
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        for item in value:
            _check(item)
    else:
        raise TypeError(f"a value of type {type(value).__name__}")


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
