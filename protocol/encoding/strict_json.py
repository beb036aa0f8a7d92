"""JSON that a node wrote for its own site, read strictly: with only one meaning, and limits on depth and numbers.

Wider than :mod:`protocol.encoding.canonical_json`, which is for messages: it takes real numbers, escapes and any
language.
"""

import json
import math
from typing import NoReturn

from protocol.encoding.text import text_of

#: Integers that every JSON reader keeps exactly (RFC 7493, section 2.2).
_MAX_INTEGER = 2**53 - 1
_MOST_DIGITS = 40


def parse(data: bytes, *, max_depth: int = 12) -> object:
    """Read one JSON value. The caller must limit the number of bytes.

    Raises:
        ValueError: no text (:func:`protocol.encoding.text.text_of`) or no JSON; a key twice, NaN or infinity, an
            integer beyond 2^53 - 1, half a character (a lone surrogate), or deeper than ``max_depth``.
    """
    text = text_of(data)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_real,
            parse_constant=_constant,
        )
    except RecursionError:
        raise ValueError(f"it is nested deeper than {max_depth}") from None
    # Only an escape can bring half a character in.
    _check(value, max_depth, halves="\\u" in text)
    return value


def parse_object(data: bytes, *, max_depth: int = 12) -> dict[str, object]:
    """As ``parse``, for an object.

    Raises:
        ValueError: as ``parse``, or the value is no object.
    """
    value = parse(data, max_depth=max_depth)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def _check(value: object, depth: int, *, halves: bool) -> None:
    if isinstance(value, dict | list):
        if depth <= 0:
            raise ValueError("it is nested too deep")
        for item in value if isinstance(value, list) else [*value, *value.values()]:
            _check(item, depth - 1, halves=halves)
    elif halves and isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("it holds half a character") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("it names a key twice")
    return result


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS or abs(int(digits)) > _MAX_INTEGER:
        raise ValueError("it holds an integer beyond 2^53 - 1")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits) if len(digits) <= _MOST_DIGITS else math.inf
    if not math.isfinite(value):
        raise ValueError("it holds a number that is too large or too long")
    return value


def _constant(word: str) -> NoReturn:
    raise ValueError(f"it holds {word}, which is no number")
