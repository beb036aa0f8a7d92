"""TOML within limits: on bytes, on the time that reading takes, and on depth. The file may be a stranger's."""

import tomllib

from protocol.encoding.text import text_of

#: Most bytes of a file. What `init` and a simulation write has 2,000.
MAX_BYTES = 64 * 1024
#: Reading takes a time that grows with the square of a key's parts, and for every line with the parts of its table's
#: name: with no limits, a minute and a half for 64 KiB. A file of ours has 30 dots.
_MOST_DOTS, _MOST_DOTS_OF_A_TABLE = 2048, 16
_MAX_DEPTH = 16


def parse(data: bytes) -> dict[str, object]:
    """The tables of a TOML document.

    Raises:
        ValueError: more than ``MAX_BYTES``, no text (:func:`protocol.encoding.text.text_of`), not TOML, or
            beyond another limit.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    text = text_of(data)
    tables = [line for line in text.split("\n") if line.lstrip().startswith("[")]
    if text.count(".") > _MOST_DOTS or any(line.count(".") > _MOST_DOTS_OF_A_TABLE for line in tables):
        raise ValueError("it holds more dots than any name has")
    try:
        document: dict[str, object] = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {_MAX_DEPTH}") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:
        # Python reads no integer of thousands of digits, and tomllib passes its error on.
        raise ValueError("it holds a number that is too long") from None
    _check(document, _MAX_DEPTH)
    return document


def _check(value: object, depth: int) -> None:
    if isinstance(value, dict | list):
        if depth <= 0:
            raise ValueError(f"it is nested deeper than {_MAX_DEPTH}")
        for item in value.values() if isinstance(value, dict) else value:
            _check(item, depth - 1)
