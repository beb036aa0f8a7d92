"""The report and its figures: self-contained, complete, escaped, and plain about the stand-in."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from sims.results import figures, report
from sims.results.collection import collect
from sims.results.comparison import pairs
from sims.results.models import CHANCE_LEVELS, METRICS, PairedResult, Results, chance_of, level_of, metric_of
from sims.results.tables import results_tables
from sims.results.wording import (
    CLASSES_UNKNOWN,
    WHICH_INTERVAL,
    change_text,
    intervals_text,
    layers_text,
    number_text,
    pair_label,
    verdict,
)
from tests.sims.made_run import ALL_METHODS, edit, make_run


class Page(HTMLParser):
    """Text and links of a page; fails on tags that do not close."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results, Page]:
    folder = make_run(tmp_path_factory.mktemp("runs"))
    results = collect(folder)
    return folder, results, Page(report.write(folder).read_text(encoding="utf-8"))


def test_the_page_needs_nothing_but_itself(made: tuple[Path, Results, Page]) -> None:
    folder, _, page = made
    assert len(page.links) == len(figures.FIGURES)
    for link, name in zip(page.links, figures.FIGURES, strict=True):
        head, _, data = link.partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data) == (folder / name).read_bytes()
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert not re.search(r"https?:|url\(|@import|<link", html)


def test_the_page_holds_every_result_difference_crossing_and_setting(made: tuple[Path, Results, Page]) -> None:
    _, results, page = made
    for by_shots in results.methods.values():
        for found in by_shots.values():
            assert intervals_text(found) in page.text
    for first, second in [pair for group in pairs(results.methods).values() for pair in group]:
        assert pair_label(first, second) in page.text
        for difference in results.paired[f"{first}-{second}"].values():
            assert intervals_text(difference, sign=True) in page.text
            assert verdict(difference) in page.text
    assert WHICH_INTERVAL in page.text
    assert WHICH_INTERVAL in " ".join(shown(results).split())
    for crossing in results.crossings:
        assert crossing.digest in page.text
    for wanted in ("58.86 ± 3.12", "64.24 ± 1.89", "unconfined", "learngene run cifar100", "0" * 32, "class_63"):
        assert wanted in page.text
    for name, version in results.versions.items():
        assert f"{name}{version}" in page.text
    assert "stand-in" not in page.text


def test_page_and_terminal_hold_the_whole_open_world(made: tuple[Path, Results, Page]) -> None:
    _, results, page = made
    terminal = shown(results)
    for kind in results.collective.open_world.every:
        for cycle in kind.cycles:
            for text in (page.text, terminal):
                assert change_text(cycle.open_accuracy_before, cycle.open_accuracy_after) in text
                assert change_text(cycle.open_only_accuracy_before, cycle.open_only_accuracy_after) in text
                assert change_text(cycle.base_accuracy_before, cycle.base_accuracy_after) in text
                assert number_text(cycle.base_accuracy_after - cycle.base_accuracy_before, sign=True) in text
                assert str(cycle.unknown_set) in text
                assert str(cycle.truly_unknown) in text
    for cycle in results.collective.open_world.cycles:
        assert cycle.before is not None
        assert cycle.after is not None
        for score, before in cycle.before.items():
            for metric in METRICS:
                change = change_text(metric_of(before, metric), metric_of(cycle.after[score], metric))
                assert change in page.text
                assert change in terminal
        before, after = chance_of(cycle.before), chance_of(cycle.after)
        for level in CHANCE_LEVELS:
            assert level_of(before, level) is not None
            change = change_text(level_of(before, level), level_of(after, level))
            assert change in page.text
            assert change in terminal
        assert f"{cycle.found} + {cycle.given}" in terminal
        for name in cycle.classes:
            assert name in page.text
    assert results.collective.open_world.by_chance == (100 / 80, 100 / 16)
    assert page.text.count("45.88 ± 2.99") == 2
    assert "11–13" in page.text
    assert "layers chosen: 11–13; settled: 9–13; most like a pseudo-descendant's: 9–11" in terminal


def test_a_run_without_cycles_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path, target_tasks="10:2")
    empty = {"cycles": [], "comparisons": []}
    edit(
        folder / "nodes" / "collective" / "state" / "metrics.json", lambda d: d.update(open_world=empty, criterion=None)
    )
    results = collect(folder)
    page = page_of(folder, results)
    assert "This run had no open-world cycle" in page.text
    assert "Table 2" not in page.text + shown(results)
    assert figures.open_world_scores_figure(results) is None
    assert figures.open_world_accuracy_figure(results) is None


def test_a_deployment_without_truth_says_so_and_still_shows_what_it_kept(tmp_path: Path) -> None:
    folder = make_run(tmp_path, target_tasks="10:2")

    def forget(document: dict[str, Any]) -> None:
        for found in (document["open_world"], *document["open_world"]["comparisons"]):
            for cycle in found["cycles"]:
                cycle.update(before=None, after=None, truly_unknown=None)
                cycle.update(open_accuracy_before=None, open_accuracy_after=None)

    edit(folder / "nodes" / "collective" / "state" / "metrics.json", forget)
    results = collect(folder)
    page = page_of(folder, results)
    assert "Nobody knows the truth about this stream" in page.text
    assert "Nobody knows the truth about this stream" in shown(results)
    assert "410 (–)" in shown(results)
    assert "AUROC" not in page.text
    assert change_text(60.1257302, 58.6257302) in page.text
    assert figures.open_world_scores_figure(results) is None
    assert figures.open_world_accuracy_figure(results) is not None


def test_a_part_of_the_stream_without_unknown_images_shows_a_dash(tmp_path: Path) -> None:
    folder = make_run(tmp_path, target_tasks="10:2")
    edit(
        folder / "nodes" / "collective" / "state" / "metrics.json",
        lambda d: d["open_world"]["cycles"][1].update(after=dict.fromkeys(d["open_world"]["cycles"][1]["after"])),
    )
    results = collect(folder)
    before = results.collective.open_world.cycles[1].before
    assert before is not None
    page = page_of(folder, results)
    for text in (page.text, shown(results)):
        assert f"{number_text(metric_of(before['msp'], 'auroc'))} → –" in text


def test_every_method_fits_into_report_and_figures(tmp_path: Path) -> None:
    folder = make_run(tmp_path, methods=ALL_METHODS, target_tasks="10:2")
    results = collect(folder)
    page = page_of(folder, results)
    for name in ALL_METHODS:
        assert name in page.text
    for first, second in [pair for group in pairs(ALL_METHODS).values() for pair in group]:
        assert pair_label(first, second) in page.text
    assert "about one in twenty" in page.text
    for image in (figures.accuracy_figure(results), figures.curves_figure(results)):
        assert image is not None
        assert max(Image.open(BytesIO(image)).size) < 2000  # pixels: fits a page


def test_without_the_classes_of_its_tasks_a_run_says_that_one_interval_is_unknown(tmp_path: Path) -> None:
    folder = make_run(tmp_path, target_tasks="10:3")
    edit(folder / "nodes" / "individual-2" / "state" / "metrics.json", lambda d: d.pop("task_classes"))
    results = collect(folder)
    found = results.methods["condensed"][10]
    assert results.task_classes == ()
    assert (found.ci95_classes, results.paired["condensed-scratch"][10].ci95_classes) == (None, None)
    assert found.ci95_tasks is not None
    page = page_of(folder, results)
    assert f"{number_text(found.ci95_tasks)} (± –)" in page.text
    assert CLASSES_UNKNOWN in page.text
    assert CLASSES_UNKNOWN in " ".join(shown(results).split())
    with_classes = collect(make_run(tmp_path / "control", target_tasks="10:3"))
    assert CLASSES_UNKNOWN not in page_of(folder, with_classes).text
    assert figures.accuracy_figure(with_classes) != figures.accuracy_figure(results)


def test_a_layer_that_was_not_there_is_not_drawn_as_one_without_gradients(made: tuple[Path, Results, Page]) -> None:
    folder, results, _ = made
    trend = results.collective.gradient_trend
    assert trend is not None
    filled = tuple(tuple(0.0 if share is None else share for share in row) for row in trend.rho)
    other = results.collective.model_copy(update={"gradient_trend": trend.model_copy(update={"rho": filled})})
    changed = results.model_copy(update={"collective": other})
    assert figures.gradient_trend_figure(changed) != (folder / "gradient_trend.png").read_bytes()


def test_chosen_and_settled_layers_are_marked_on_the_heat_map(made: tuple[Path, Results, Page]) -> None:
    folder, results, _ = made
    criterion = results.collective.criterion
    assert criterion is not None
    whole = (folder / "gradient_trend.png").read_bytes()
    for changed in (
        criterion.model_copy(update={"chosen": (9, 10, 11)}),
        criterion.model_copy(update={"settled": (False,) * 13}),
        criterion.model_copy(update={"similarity": None}),
    ):
        other = results.collective.model_copy(update={"criterion": changed})
        assert figures.gradient_trend_figure(results.model_copy(update={"collective": other})) != whole


@pytest.mark.parametrize(
    ("numbers", "said"), [((), "none"), ((3,), "3"), ((11, 12, 13), "11–13"), ((1, 3, 4, 9), "1, 3–4, 9")]
)
def test_layers_in_a_row_are_said_as_a_range(numbers: tuple[int, ...], said: str) -> None:
    assert layers_text(numbers) == said


@pytest.mark.parametrize(
    ("value", "said"), [(None, "–"), (71.62, "+71.6"), (-3.0, "−3.0"), (-0.04, "0.0"), (0.04, "0.0")]
)
def test_numbers_have_a_minus_sign_and_none_before_zero(value: float | None, said: str) -> None:
    assert number_text(value, sign=True) == said


@pytest.mark.parametrize("how", [{"source": "stand-in"}, {"division": "tuning"}])
def test_the_stand_in_and_the_tuning_division_are_said_in_page_and_figures(tmp_path: Path, how: dict[str, str]) -> None:
    folder = make_run(tmp_path, **how)
    results = collect(folder)
    page = Page(report.write(folder).read_text(encoding="utf-8"))
    assert results.dataset.notice is not None
    assert page.text.count(results.dataset.notice) >= 1 + len(figures.FIGURES)
    plain = results.model_copy(update={"dataset": results.dataset.model_copy(update={"notice": None})})
    for name in figures.FIGURES:
        assert title_is_red((folder / name).read_bytes())
    assert not title_is_red(figures.accuracy_figure(plain))
    assert "Table 2" not in page.text
    assert "Table 3" not in page.text


def test_figures_are_the_same_every_time_and_leave_matplotlibs_global_state_alone(
    made: tuple[Path, Results, Page],
) -> None:
    from matplotlib import pyplot

    for name, draw in figures.FIGURES.items():
        assert draw(made[1]) == (made[0] / name).read_bytes()
    assert pyplot.get_fignums() == []


def test_a_run_without_curves_and_trend_still_has_its_report(tmp_path: Path) -> None:
    folder = make_run(tmp_path, individuals=1, target_tasks="10:1")
    edit(folder / "nodes" / "individual-1" / "state" / "metrics.json", lambda d: d.update(curves={}))
    edit(folder / "nodes" / "collective" / "state" / "metrics.json", lambda d: d.pop("gradient_trend"))
    results = collect(folder)
    assert results.methods["scratch"][10].ci95_tasks is None
    assert results.methods["scratch"][10].ci95_classes is None
    text = Page(report.write(folder).read_text(encoding="utf-8")).text
    assert "± –" in text
    assert "no learning curves" in text
    assert "no gradient trend" in text


def test_names_from_files_are_escaped(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    attack = "<script>alert(1)</script>"
    edit(folder / "nodes" / "collective" / "state" / "metrics.json", lambda d: d["tasks"][0].update(classes=[attack]))
    collect(folder)
    html = report.write(folder).read_text(encoding="utf-8")
    assert attack not in html
    assert attack in Page(html).text


def test_a_report_can_be_made_again(made: tuple[Path, Results, Page]) -> None:
    folder = made[0]
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    report.write(folder)
    assert (folder / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("mean", "tasks", "classes", "said"),
    [
        (3.0, 1.0, 2.9, "better"),
        (-3.0, 1.0, 2.0, "worse"),
        (3.0, 3.0, 5.0, "not told apart"),
        (-1.0, 2.0, None, "not told apart"),
        (3.0, 2.9, 3.0, "better on these classes, not told apart on new ones"),
        (-3.0, 2.0, 4.0, "worse on these classes, not told apart on new ones"),
        (3.0, 2.9, None, "better on these classes"),
        (3.0, None, None, "one task: nothing can be said"),
    ],
)
def test_only_the_wider_interval_clear_of_zero_tells_methods_apart(
    mean: float, tasks: float | None, classes: float | None, said: str
) -> None:
    assert verdict(PairedResult(mean=mean, ci95_tasks=tasks, ci95_classes=classes, tasks=9)) == said


def page_of(folder: Path, results: Results) -> Page:
    """The page without its figures, which take their time."""
    return Page(report.render(folder, results, {}))


def shown(results: Results) -> str:
    """The tables on a wide terminal."""
    console = Console(width=200, file=StringIO())
    console.print(results_tables(results))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def title_is_red(png: bytes) -> bool:
    """Whether the top eighth of a figure holds the colour in which the stand-in is said."""
    pixels = np.asarray(Image.open(BytesIO(png)).convert("RGB"))
    top = pixels[: pixels.shape[0] // 8].reshape(-1, 3)
    return bool((top == (0xA0, 0x30, 0x00)).all(axis=1).any())
