"""A frame: one command to a node or its answer, with its header in one canonical form.

On the wire: a four-byte big-endian length, a header of that many bytes (canonical JSON) and then the parts, one after
the other, in the order of their names. The header holds ``numbers``, ``parts`` (name: size), ``word`` and ``words``.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from protocol.errors import MalformedError, TooLargeError

MAX_HEADER_BYTES = 64 * 1024
#: Most bytes of all parts of a frame together.
MAX_PARTS_BYTES = 512 * 1024 * 1024
MAX_ENTRIES = 64
MAX_WORD_CHARACTERS = 1024
#: State of a node's long work, in its answer to ``status``.
JobState = Literal["idle", "working", "done", "failed"]

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_INTEGER_LIMIT = 2**63


@dataclass(frozen=True)
class Frame:
    """One command to a node, or its answer.

    Attributes:
        name: name of the command or answer, such as ``status`` or ``refused``.
        numbers: named 64-bit integers.
        fields: named short ASCII texts.
        parts: named bytes, at most ``MAX_PARTS_BYTES`` together.
    """

    name: str
    numbers: Mapping[str, int] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, bytes] = field(default_factory=dict)

    def part(self, name: str) -> bytes:
        """The part of that name.

        Raises:
            MalformedError: there is none.
        """
        if name not in self.parts:
            raise MalformedError(f"the frame {self.name!r} comes without its part {name!r}")
        return self.parts[name]


def encode_header(frame: Frame) -> bytes:
    """The header of a frame.

    Raises:
        MalformedError: a name, word or number is outside the format.
        TooLargeError: the header or the parts are over their limits.
    """
    sizes = {name: len(frame.parts[name]) for name in sorted(frame.parts)}
    content = {"numbers": dict(frame.numbers), "parts": sizes, "word": frame.name, "words": dict(frame.fields)}
    _check(content)
    header = _encode(content)
    if len(header) > MAX_HEADER_BYTES:
        raise TooLargeError(f"a frame's header of {len(header)} bytes is over the limit of {MAX_HEADER_BYTES}")
    return header


def decode_header(header: bytes) -> tuple[Frame, dict[str, int]]:
    """A frame without its parts, and the size of every part in the order in which they follow.

    Raises:
        MalformedError: not a header in its canonical form.
        TooLargeError: it announces more than the limits allow.
    """
    if len(header) > MAX_HEADER_BYTES:
        raise TooLargeError(f"a frame's header of {len(header)} bytes is over the limit of {MAX_HEADER_BYTES}")
    try:
        content = json.loads(header.decode("ascii"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise MalformedError("a frame's header is not JSON in ASCII") from error
    _check(content)
    # Only the canonical form is accepted: no repeated key, no other order or spacing.
    if _encode(content) != header:
        raise MalformedError("a frame's header is not in its canonical form")
    return Frame(content["word"], content["numbers"], content["words"]), content["parts"]


def _encode(content: object) -> bytes:
    """The one form of a header. It takes more than ``canonical_json`` does: any ASCII text, and 64-bit integers."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _check(content: object) -> None:
    if not isinstance(content, dict) or set(content) != {"numbers", "parts", "word", "words"}:
        raise MalformedError("a frame's header holds word, words, numbers and parts, and nothing else")
    word, words, numbers, parts = content["word"], content["words"], content["numbers"], content["parts"]
    if not isinstance(word, str) or not _NAME.fullmatch(word):
        raise MalformedError("a frame's word is outside the format")
    for table in (words, numbers, parts):
        if not isinstance(table, dict) or len(table) > MAX_ENTRIES or not all(map(_NAME.fullmatch, table)):
            raise MalformedError(f"a frame's names are outside the format, or more than {MAX_ENTRIES}")
    for value in words.values():
        if not isinstance(value, str) or len(value) > MAX_WORD_CHARACTERS or not value.isascii():
            raise MalformedError(f"a frame's words are ASCII of at most {MAX_WORD_CHARACTERS} characters")
    for value in (*numbers.values(), *parts.values()):
        if type(value) is not int or not -_INTEGER_LIMIT <= value < _INTEGER_LIMIT:
            raise MalformedError("a frame's numbers are 64-bit integers")
    if any(size < 0 for size in parts.values()):
        raise MalformedError("a part cannot have fewer than 0 bytes")
    if sum(parts.values()) > MAX_PARTS_BYTES:
        raise TooLargeError(f"a frame's parts have {sum(parts.values())} bytes, the limit is {MAX_PARTS_BYTES}")
