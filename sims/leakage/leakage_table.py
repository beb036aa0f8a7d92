"""The results of a leakage measurement as tables for a terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from protocol.output import PlainTable, plain
from sims.leakage.leakage_results import AttackResult, Leakage, Measure, Question, sentences
from sims.results.tables import titled


def leakage_tables(found: Leakage) -> RenderableType:
    """Attacks by question and variant, reconstruction by number of images, the controls, and the sentences."""
    parts: list[RenderableType] = []
    counts: dict[Question, str] = {
        "membership": f"{found.members} training images against {found.outsiders} others of {found.classes} classes",
        "class presence": f"{found.present} learned classes against {found.absent} others",
    }
    for question, text in counts.items():
        rows = found.of(question)
        if rows:
            parts.append(_attacks(f"{question}: {text}", rows, found.strongest(question), question == "membership"))
    if found.reconstruction:
        parts.append(_reconstruction(found))
    parts.append(_controls(found))
    parts += [plain(sentence) for sentence in sentences(found)]
    if found.notice:
        parts.append(plain(found.notice, style="bold yellow"))
    return Group(*parts)


def _attacks(title: str, rows: tuple[AttackResult, ...], strongest: AttackResult | None, images: bool) -> PlainTable:
    table = titled(title)
    for heading in ("received", "attack"):
        table.add_column(heading)
    headings = ["AUROC", "by chance", "AUROC, release"]
    headings += ["TPR at 1 % FPR, %", "at 0.1 %, %", "accuracy, %", "release, %"] if images else []
    for heading in headings:
        table.add_column(heading, justify="right")
    before = rows[0].variant
    for row in rows:
        if row.variant != before:
            table.add_section()
            before = row.variant
        own = row.release
        cells = [_short(row.shadows.auroc), _short(row.by_chance), "–" if own is None else _short(own.auroc)]
        if images:
            cells += [
                _short(row.shadows.tpr_at_1_percent, 100),
                _short(row.shadows.tpr_at_01_percent, 100),
                _short(row.shadows.balanced_accuracy, 100),
                "–" if own is None else _short(own.balanced_accuracy, 100),
            ]
        name = f"{row.attack} (strongest)" if row == strongest else row.attack
        table.add_row(row.variant, name, *cells)
    return table


def _reconstruction(found: Leakage) -> PlainTable:
    table = titled(f"Fisher diagonals of few images; released: {found.fisher_samples} (mean over the convolutions)")
    for heading in ("template", "noise"):
        table.add_column(heading)
    for heading in (
        "images",
        "correlation, behind it",
        "not behind it",
        "without a diagonal",
        "AUROC",
        "picked out, %",
    ):
        table.add_column(heading, justify="right")
    for row in sorted(found.reconstruction, key=lambda one: (one.template, one.noise, one.samples)):
        if row.layer == "mean":
            table.add_row(
                row.template,
                f"{row.noise:g}",
                str(row.samples),
                _short(row.inside),
                _short(row.outside),
                _short(row.guess),
                _short(row.auroc),
                _short(row.match, 100),
            )
    return table


def _controls(found: Leakage) -> PlainTable:
    table = titled("controls")
    table.add_column("")
    table.add_column("what")
    table.add_column("AUROC", justify="right")
    table.add_column("holds")
    for control in found.controls:
        held = Text("yes") if control.holds else Text("NO", style="bold red")
        table.add_row(control.kind, control.text, _short(control.auroc), held)
    return table


def _short(found: Measure, factor: float = 1.0) -> str:
    """A value and half of its interval, ``0.52 ± 0.02``; in per cent with the factor 100."""
    half, digits = (found.high - found.low) / 2, 1 if factor == 100 else 3
    return f"{factor * found.value:.{digits}f} ± {factor * half:.{digits}f}"
