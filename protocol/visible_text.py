"""Text from outside in a form that is safe to show: on a terminal, in a log, in a table, on a page.

A file's name, a class's name or an error of another program can hold characters that control a terminal (ECMA-48),
reorder a line (Unicode Standard Annex 9) or are invisible. They are shown by their number, as in a Python literal:
``\\x1b``, ``\\n``, ``\\u202e``. Characters of ordinary names are unchanged, also the joiners of Persian, of Indic
scripts and of emoji.
"""

import os
import re
import unicodedata
from collections.abc import Callable

#: Most characters of a name, of a path, and of a whole line, as they are shown; a longer text loses its middle.
NAME_LENGTH = 200
PATH_LENGTH = 1000
LINE_LENGTH = 4000

# More marks on one letter than any script puts there climb over the lines above (Tibetan and Hebrew use up to four).
_MOST_MARKS = 5
# So far back is a mark's letter: all its marks, a selector and a skin tone between them.
_BASE_WITHIN = _MOST_MARKS + 2
_JOINERS = "\u200c\u200d"
_SPACES = " \u3000"
# Of category letter, mark or symbol, and yet nothing is seen. The first line: Default_Ignorable_Code_Point of Unicode's
# DerivedCoreProperties. The second: a blank glyph (of Braille, Khitan, Egyptian hieroglyphs, music), and the one that
# stands for an object that is not there.
_UNSEEN = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0"
    "\u2800\U00016fe4\U00013441\U00013442\U0001d159\ufffc"
)
# Marks that join two letters of their own script and are not drawn themselves (IndicSyllabicCategory:
# Invisible_Stacker, Number_Joiner; the joiner of Tifinagh).
_STACKERS = frozenset(
    "\u1039\u17d2\u1a60\u2d7f\uaaf6\U00010a3f\U0001107f\U00011133\U000113d0\U0001193e\U00011a47\U00011a99\U00011d45"
    "\U00011d97\U00011f42"
)
# Shown as text or as emoji, and of no symbols' category.
_ALSO_EMOJI = frozenset("\u00a9\u00ae\u203c\u2049\u2139\u3030\u303d")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}
_PLAIN_NAME = re.compile(r"[ -\[\]-~]*")
_PLAIN_LINE = re.compile(r"[ -~]*")


def visible_name(name: str | os.PathLike[str], *, length: int | None = None) -> str:
    """A name from outside, for use in a line.

    No two names look the same by an escape: a backslash of the name's own is doubled, so that a name which spells
    ``\\x1b`` out differs from one that holds that character. A name that is too long loses its middle, and says how
    many characters that were: ``begin…\\(4800 more)…end``.

    Args:
        length: most characters, as they are shown; default: a name's, or a path's.
    """
    if length is None:
        length = NAME_LENGTH if isinstance(name, str) else PATH_LENGTH
    return _shown(os.fspath(name), _name_units, length, _PLAIN_NAME)


def visible_line(text: str, *, length: int = LINE_LENGTH) -> str:
    """One line that may hold anything, made safe to show: the last gate of all output.

    Backslashes stay single, so that a name which :func:`visible_name` has shown passes unchanged, and so does a line
    that passed here before. If a name must not be mistaken for another, give it to :func:`visible_name` first.
    """
    return _shown(text, _line_units, length, _PLAIN_LINE)


#: What is written for characters of our own texts where an encoding lacks them.
_INSTEAD = {
    **{"−": "-", "–": "-", "—": "-", "±": "+-", "→": "->", "×": "x", "…": "...", "·": ".", "≤": "<=", "≥": ">="},
    **{"ε": "epsilon", "δ": "delta", "λ": "lambda"},
}


def in_encoding(text: str, encoding: str) -> str:
    """A text with only characters that an encoding has; another one is written by its number, or in words if it is
    one of our own texts' (``−`` is ``-``).

    Args:
        encoding: as of a stream; an unknown one is left alone.
    """
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(_encodable(character, encoding) for character in text)
    except LookupError:
        pass
    return text


def _encodable(character: str, encoding: str) -> str:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return _INSTEAD.get(character) or _number(character)
    return character


def is_utf8(text: str | os.PathLike[str]) -> bool:
    """Whether a text can be written as UTF-8. The name of a file can hold bytes that are none; Python decodes each to a
    surrogate (PEP 383).
    """
    return not any("\ud800" <= character <= "\udfff" for character in os.fspath(text))


def is_plain(text: str) -> bool:
    """Whether nothing in a text would be shown by its number."""
    return "".join(_line_units(text)) == text


def _shown(text: str, units: Callable[[str], list[str]], length: int, plain: re.Pattern[str]) -> str:
    if len(text) <= length:
        if plain.fullmatch(text):
            return text
        whole = "".join(units(text))
        if len(whole) <= length:
            return whole
    head = _fitting(lambda count: "".join(units(text[:count])), len(text), length * 2 // 3)
    tail = _fitting(lambda count: "".join(units(text[len(text) - count :])), len(text), length // 3)
    cut = len(text) - head[0] - tail[0]
    return f"{head[1]}…\\({cut} more)…{tail[1]}"


def _fitting(piece: Callable[[int], str], most: int, length: int) -> tuple[int, str]:
    """The most characters whose ``piece`` is at most ``length`` long, and that piece."""
    low, high = 0, min(most, length)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(piece(middle)) <= length else (low, middle - 1)
    return low, piece(low)


def _name_units(text: str) -> list[str]:
    return ["\\\\" if unit == "\\" else unit for unit in _line_units(text)]


def _line_units(text: str) -> list[str]:
    """Every character as it is shown."""
    units: list[str] = []
    marks = _MOST_MARKS  # At the beginning there is no letter to carry one.
    begin = 0  # Behind the latest escape: what stands before is not there to be joined, or to be changed.
    for place, character in enumerate(text):
        category = unicodedata.category(character)
        before = text[max(begin, place - _BASE_WITHIN) : place]
        if category in ("Mn", "Me") and not _is_selector(character):
            marks += 1
            stays = marks <= _MOST_MARKS and character not in _UNSEEN
            stays = stays and (character not in _STACKERS or _stacks(before, character))
        else:
            stays = _stays(before, character, text[place + 1 : place + 2], category)
            if not (stays and (character in _JOINERS or _is_selector(character))):
                marks = 0
        units.append(character if stays else _number(character))
        if not stays or category == "Zs":
            # A mark behind would stand on the escape's last digit.
            marks = _MOST_MARKS
        if not stays:
            begin = place + 1
    return units


def _stays(before: str, character: str, behind: str, category: str) -> bool:
    if character in _JOINERS:
        return _joins(before, character, behind)
    if _is_selector(character):
        return _selects(before[-1:], character, behind)
    if category == "Zs":
        return character in _SPACES
    if category == "Cn":
        return _is_newer_emoji(character)
    return category[0] != "C" and category not in ("Zl", "Zp") and character not in _UNSEEN


def _joins(before: str, joiner: str, behind: str) -> bool:
    """Whether a joiner does what joiners are for (after RFC 5892, appendix A.1 and A.2), or is only hidden there."""
    if before and unicodedata.combining(before[-1]) == _VIRAMA:
        return True
    base = _base(before)
    if _is_emoji(base) and joiner == "\u200d":
        return _is_emoji(behind)
    return all(one and _is_arabic_letter(one) for one in (base, behind))


def _is_arabic_letter(character: str) -> bool:
    return unicodedata.bidirectional(character) == "AL" and unicodedata.category(character)[0] == "L"


def _stacks(before: str, stacker: str) -> bool:
    """Whether an undrawn joiner stands behind a letter of its own script, which the names of both begin with."""
    base = _base(before)
    return bool(base) and unicodedata.name(base, "").split()[:1] == unicodedata.name(stacker, " ").split()[:1]


# Canonical combining class of the sign that takes an Indic consonant's vowel away.
_VIRAMA = 9


def _base(before: str) -> str:
    """The last character that is neither a mark nor a selector nor a skin tone."""
    for character in reversed(before):
        if unicodedata.category(character) not in ("Mn", "Me", "Sk"):
            return character
    return ""


def _selects(base: str, selector: str, behind: str) -> bool:
    """Whether a variation selector stands behind what has variations; elsewhere it carries what cannot be seen."""
    if base in tuple("0123456789#*"):
        return selector + behind == "\ufe0f\u20e3"
    if selector in "\ufe0e\ufe0f":
        return _is_emoji(base) or base in _ALSO_EMOJI
    return "\u3400" <= base <= "\u9fff" or "\uf900" <= base <= "\ufaff" or "\U00020000" <= base <= "\U0003ffff"


def _is_selector(character: str) -> bool:
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"


def _is_emoji(character: str) -> bool:
    if not character or character < "\u2190":
        return False
    seen = unicodedata.category(character) in ("So", "Sm") and character not in _UNSEEN
    return seen or _is_newer_emoji(character)


def _is_newer_emoji(character: str) -> bool:
    """In the blocks that Unicode keeps for emoji, of which this Python may not know all."""
    return "\U0001f000" <= character <= "\U0001faff"


def _number(character: str) -> str:
    code = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
