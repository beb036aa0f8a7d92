"""Nothing invisible or steering comes out, two names never look the same by an escape, and people's names stay."""

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.visible_text import LINE_LENGTH, NAME_LENGTH, is_plain, visible_line, visible_name

#: Any text, unpaired surrogates among it, and rich in what matters here.
SPECIAL = "\x1b\x07\x9b\x7f\n\r\t\\\u200c\u200d\u200b\u202e\u2066\u2028\ufeff\u00ad\u0301\u064e\u094d\ufe0f\U000e0100"
SPECIAL += "\u061c\u2d7f\u1039\ufffc\U0001d159"
SPECIAL += "\U000e0041\ue000\ud800\udc9b\u115f\u3164\u0627\u0645\u0915\u2764\U0001f468\U0001f3fd\u845b1#\u20e3ax\u00a0 "
TEXTS = st.text(st.one_of(st.sampled_from(SPECIAL), st.characters()), max_size=60)
ESCAPE = re.compile(r"\\(?:([\\nrt])|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")


def read_back(shown: str) -> str:
    """The name that was shown: every backslash begins an escape."""
    plain = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}

    def one(match: re.Match[str]) -> str:
        return plain[match[1]] if match[1] else chr(int(match[2] or match[3] or match[4], 16))

    assert "\\" not in ESCAPE.sub("", shown)
    return ESCAPE.sub(one, shown)


@given(TEXTS)
@example("\\x1b")
@example("\x1b")
@example("\\\\n\n\\n")
def test_a_name_can_be_read_back(name: str) -> None:
    """So two names that differ are shown differently."""
    assert read_back(visible_name(name, length=10**6)) == name


@given(TEXTS, TEXTS)
def test_a_name_that_is_shown_passes_the_gate_unchanged_also_within_a_line(name: str, other: str) -> None:
    shown = visible_name(name)
    assert visible_line(shown) == shown
    line = f"error: '{shown}' is not {visible_name(other)!s}; see (x)"
    assert visible_line(line) == line


@given(st.text(st.one_of(st.sampled_from(SPECIAL), st.characters()), max_size=400), st.integers(30, 90))
def test_a_cut_name_passes_the_gate_unchanged_too(name: str, length: int) -> None:
    shown = visible_name(name, length=length)
    assert visible_line(shown) == shown


@given(TEXTS)
def test_the_gate_changes_nothing_twice(text: str) -> None:
    assert visible_line(visible_line(text)) == visible_line(text)
    assert is_plain(visible_line(text))


@given(TEXTS)
def test_nothing_that_steers_or_hides_comes_out(text: str) -> None:
    for shown in (visible_name(text), visible_line(text)):
        for character in shown:
            category = unicodedata.category(character)
            assert category not in ("Cc", "Cs", "Co", "Zl", "Zp"), ascii(shown)
            assert category != "Cf" or character in "\u200c\u200d", ascii(shown)
            assert category != "Zs" or character in " \u3000", ascii(shown)


@pytest.mark.parametrize(
    "name",
    [
        "می‌خواهم",
        "کتاب‌ها",
        "بَرنامه‌ای",
        "👨‍👩‍👧‍👦",
        "👩🏽‍⚖️",
        "❤️‍🔥",
        "🏳️‍🌈",
        "🏳️‍⚧️",
        "👁️‍🗨️",
        "🙂‍↔️",
        "🇮🇷",
        "1️⃣",
        "©️",
        "☎︎",
        "ශ්‍රී",
        "သတ္တဝါ",
        "ភាសាខ្មែរ",
        "ᨻᩕ᩠ᨿᩣ",
        "م\u064e\u200cخ",
        "ک\u200dک",
        "क्‍ष",
        "क्षि",
        "বাংলা",
        "ประเทศไทย",
        "དབང་ཕྱུག",
        "שָׁלוֹם",
        "e\u0301té",
        "naïve Ångström",
        "ラーメン　屋",
        "葛\U000e0100城",
        "한국어",
        "Việt Nam",
        "a_b-c (1).png",
        "10 % of $x$ [b]",
    ],
)
def test_people_s_names_stay(name: str) -> None:
    assert visible_name(name) == name
    assert visible_line(f"the class {name} has") == f"the class {name} has"
    assert is_plain(name)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b]0;x\x07", r"\x1b]0;x\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("gnp.\u202ejpg", r"gnp.\u202ejpg"),
        ("\u2066x\u2069", r"\u2066x\u2069"),
        ("a\u2028b", r"a\u2028b"),
        # A name that is not UTF-8, as os.fsdecode gives it, and the C1 control of the same number.
        ("caf\udce9", r"caf\udce9"),
        ("\udc9b\x9b", r"\udc9b\x9b"),
        ("\U000e0041", r"\U000e0041"),
        ("\ufeffx", r"\ufeffx"),
        ("a\u00a0b", r"a\xa0b"),
        # Joiners where they join nothing.
        ("pay\u200cpal", r"pay\u200cpal"),
        ("pay\u200dpal", r"pay\u200dpal"),
        ("\u200cx", r"\u200cx"),
        ("ا\u200c\u200cب", r"ا\u200c\u200cب"),
        ("👨\u200d", r"👨\u200d"),
        ("👨\u200dx", r"👨\u200dx"),
        # Selectors that select nothing, as they carry hidden text.
        ("x\ufe0f", r"x\ufe0f"),
        ("😀\ufe0f\ufe01\ufe02", "😀\ufe0f" + r"\ufe01\ufe02"),
        ("1\ufe0f", r"1\ufe0f"),
        ("a\U000e0101\U000e0102", r"a\U000e0101\U000e0102"),
        # A mark without a letter would stand on what is before.
        ("\u0301x", r"\u0301x"),
        (" \u0301", r" \u0301"),
        ("\x1b\u0301", r"\x1b\u0301"),
        ("\u3164", r"\u3164"),
        ("\u2800", r"\u2800"),
        ("\ue000", r"\ue000"),
        # Symbols and marks that are blank, or stand for what is not there.
        ("a\U0001d159b", r"a\U0001d159b"),
        ("a\ufffcb", r"a\ufffcb"),
        ("a\U00016fe4b", r"a\U00016fe4b"),
        ("a\U00013441b", r"a\U00013441b"),
        # Joiners of letters that are not drawn, elsewhere than in their own script.
        ("pay\u2d7fpal", r"pay\u2d7fpal"),
        ("pay\U0001107fpal", r"pay\U0001107fpal"),
        ("\u1000\u17d2\u1000", "\u1000" + r"\u17d2" + "\u1000"),
        # Behind what is not shown as itself, or in front of it, there is nothing to join or to change.
        ("\u061c\u200c\u0627", r"\u061c\u200c" + "\u0627"),
        ("\u0627\u200c\u061c", "\u0627" + r"\u200c\u061c"),
        ("\u094d\u200dx", r"\u094d\u200dx"),
        ("\u2800\u200d😀", r"\u2800\u200d" + "😀"),
        ("\ufffc\U0001f3fd\u200d😀", r"\ufffc" + "\U0001f3fd" + r"\u200d" + "😀"),
        ("😀\u200d\ufffc", "😀" + r"\u200d\ufffc"),
        ("\u2800\ufe0f", r"\u2800\ufe0f"),
        ("\u0627" + "\u0301" * 6 + "\u200c\u0628", "\u0627" + "\u0301" * 5 + r"\u0301\u200c" + "\u0628"),
    ],
)
def test_what_is_shown_by_its_number(name: str, shown: str) -> None:
    assert visible_name(name) == shown
    assert visible_line(name) == shown
    assert not is_plain(name)


#: DerivedCoreProperties of Unicode 15.1: Default_Ignorable_Code_Point; first and last.
IGNORABLE = (
    *((0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F)),
    *((0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF)),
    *((0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF)),
)


def test_nothing_that_unicode_leaves_undrawn_stays_between_letters() -> None:
    for first, last in IGNORABLE:
        for character in map(chr, range(first, last + 1)):
            assert visible_line(f"a{character}b") == f"a{ascii(character)[1:-1]}b"
            # Not to be seen as an emoji's part either, but for the joiner and the two selectors.
            joins = character in "\u200d\ufe0e\ufe0f"
            assert (visible_line(f"😀{character}😀") == f"😀{character}😀") == joins


def test_marks_do_not_climb() -> None:
    shown = visible_name("e" + "\u0301" * 100, length=10**4)
    assert 3 <= shown.count("\u0301") <= 6
    assert read_back(shown) == "e" + "\u0301" * 100
    # Marks of several kinds, and a selector in between, are one pile.
    for pile in ("e" + "\u0301\u0330" * 50, "葛" + "\u0301\U000e0100" * 50):
        assert len(re.sub(ESCAPE, "", visible_name(pile, length=10**5))) <= 12


@given(st.text(st.one_of(st.sampled_from(SPECIAL), st.characters()), max_size=400), st.integers(30, 90))
def test_what_is_too_long_loses_its_middle_and_says_how_much(name: str, length: int) -> None:
    shown = visible_name(name, length=length)
    assert len(shown) <= length + len("…\\(400 more)…")
    if match := re.search(r"…\\\((\d+) more\)…", shown):
        # No other text looks like that: a backslash of the name's own is doubled.
        begin, end = read_back(shown[: match.start()]), read_back(shown[match.end() :])
        assert name.startswith(begin)
        assert name.endswith(end)
        assert len(begin) + int(match[1]) + len(end) == len(name)
    else:
        assert read_back(shown) == name


@pytest.mark.parametrize("character", ["a", "\x00", "\u0301", "\U000e0041", "字"])
def test_a_huge_text_is_short_at_once(character: str) -> None:
    assert len(visible_name(character * 3_000_000)) < NAME_LENGTH + 30
    assert len(visible_line(character * 3_000_000)) < LINE_LENGTH + 30
