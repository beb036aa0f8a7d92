"""Output where the terminal is narrow, or its encoding lacks characters: it degrades, and the work goes on."""

import contextlib
import io
from collections.abc import Callable

import pytest
from rich.table import Table

from protocol.output import PlainTable, console, plain, print_table, say, table, warn
from protocol.visible_text import in_encoding

WORDS = ("nearest-neighbour", "relative-mahalanobis", "energy")
NUMBERS = ("−12.5 ± 4.0 → –", "0.1 → 100.0", "–")


def scores(kind: Callable[..., Table] = PlainTable) -> Table:
    made = kind(title="recognising unknown images")
    made.add_column("score and how")
    made.add_column("open-set accuracy", justify="right")
    made.add_column("remark")
    for name, number in zip(WORDS, NUMBERS, strict=True):
        made.add_row(f"{name} by hand", number, "of a stream that nobody has named")
    return made


def drawn(shown: Table, width: int, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    console(file=stream, width=width).print(shown)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("width", [1, 20, 40, 60, 61, 62, 63, 64, 65, 70, 80, 120, 1000])
def test_a_table_breaks_no_word_and_no_number_and_leaves_nothing_out(width: int) -> None:
    shown = drawn(scores(), width)
    for text in (*WORDS, *NUMBERS, "open-set", "recognising"):
        assert text in shown, shown
    assert "…" not in shown
    for word in ["of", "a", "stream", "that", "nobody", "has", "named", "by", "hand"]:
        assert shown.split().count(word) >= len(WORDS)


def test_the_control_rich_s_own_table_breaks_them() -> None:
    assert any(word not in drawn(scores(Table), 40) for word in WORDS)


def test_a_table_that_does_not_fit_has_one_line_for_each_value() -> None:
    lines = drawn(scores(), 30).splitlines()
    assert lines[:4] == [
        "recognising unknown images",
        "score and how: nearest-neighbour by hand",
        "  open-set accuracy: −12.5 ± 4.0 → –",
        "  remark: of a stream that nobody has named",
    ]
    assert len(lines) == 1 + 3 * len(WORDS)


def test_a_name_and_its_value_have_one_line_however_narrow() -> None:
    shown = table(title="a bundle")
    shown.add_row("digest", "0123456789abcdef" * 4)
    shown.add_row("form", "condensed")
    assert drawn(shown, 20).splitlines() == ["a bundle", f"digest  {'0123456789abcdef' * 4}", "form  condensed"]


def test_a_table_may_be_drawn_again_in_another_width() -> None:
    shown = scores()
    first = drawn(shown, 200)
    drawn(shown, 70)
    drawn(shown, 20)
    assert drawn(shown, 200) == first


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_an_encoding_lacks_is_written_in_other_characters(encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        say("−1.5 ± 2 → می\u200cخواهم \U0001f600")
        warn("ε is 1")
        print_table(scores())
        console().print(plain("−2"))
    stream.flush()
    text = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert "-1.5 " in text
    assert "-> \\u0645" in text
    assert "\\U0001f600" in text
    assert "warning: epsilon is 1" in text
    assert "-2" in text
    # The frame of a table stays straight: what takes a character's place counts in the layout.
    rows = [line for line in text.splitlines() if "by hand" in line]
    assert len(rows) == len(WORDS)
    assert len({len(row) for row in rows}) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "no such encoding"])
def test_the_control_nothing_changes_where_it_need_not(encoding: str) -> None:
    text = "−1.5 ± 2 → می‌خواهم \U0001f600"
    assert in_encoding(text, encoding) == text
