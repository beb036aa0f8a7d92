"""The report and its figures: self-contained, complete, escaped, and plain about the stand-in."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sims import figures, report
from sims.results import Results, collect
from sims.wording import interval_text, pair_label, verdict
from tests.sims.made_run import make_run
from tests.sims.test_results import edit


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
            assert interval_text(found) in page.text
    for pair, differences in results.paired.items():
        assert pair_label(pair, results.methods) in page.text
        for difference in differences.values():
            assert interval_text(difference, sign=True) in page.text
    for crossing in results.crossings:
        assert crossing.digest in page.text
    for wanted in ("58.86 ± 3.12", "64.24 ± 1.89", "unconfined", "learngene run cifar100", "0" * 32, "class_63"):
        assert wanted in page.text
    for name, version in results.versions.items():
        assert f"{name}{version}" in page.text
    assert "stand-in" not in page.text


def test_the_stand_in_is_said_in_page_and_figures(tmp_path: Path) -> None:
    folder = make_run(tmp_path, source="stand-in")
    results = collect(folder)
    page = Page(report.write(folder).read_text(encoding="utf-8"))
    assert results.dataset.notice is not None
    assert page.text.count(results.dataset.notice) >= 1 + len(figures.FIGURES)
    plain = results.model_copy(update={"dataset": results.dataset.model_copy(update={"notice": None})})
    for draw in figures.FIGURES.values():
        assert title_is_red(draw(results))
        assert not title_is_red(draw(plain))


def test_figures_are_the_same_every_time(made: tuple[Path, Results, Page]) -> None:
    for draw in figures.FIGURES.values():
        assert draw(made[1]) == draw(made[1])


def test_figures_leave_matplotlibs_global_state_alone(made: tuple[Path, Results, Page]) -> None:
    from matplotlib import pyplot

    for draw in figures.FIGURES.values():
        draw(made[1])
    assert pyplot.get_fignums() == []


def test_a_run_without_curves_and_trend_still_has_its_report(tmp_path: Path) -> None:
    folder = make_run(tmp_path, individuals=1, target_tasks="10:1")
    edit(folder / "nodes" / "individual-1" / "metrics.json", lambda d: d.pop("curves"))
    edit(folder / "nodes" / "collective" / "metrics.json", lambda d: d.pop("gradient_trend"))
    results = collect(folder)
    assert results.methods["scratch"][10].ci95 is None
    assert "± –" in Page(report.write(folder).read_text(encoding="utf-8")).text


def test_names_from_files_are_escaped(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    attack = "<script>alert(1)</script>"
    edit(folder / "nodes" / "collective" / "metrics.json", lambda d: d["tasks"][0].update(classes=[attack]))
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
    ("mean", "ci95", "said"),
    [(3.0, 2.9, "better"), (3.0, 3.0, "not told apart"), (-3.0, 2.0, "worse"), (-1.0, 2.0, "not told apart")],
)
def test_only_an_interval_clear_of_zero_tells_methods_apart(mean: float, ci95: float, said: str) -> None:
    class Difference:
        pass

    difference = Difference()
    difference.mean, difference.ci95 = mean, ci95  # type: ignore[attr-defined]
    assert verdict(difference) == said  # type: ignore[arg-type]


def title_is_red(png: bytes) -> bool:
    """Whether the top eighth of a figure holds the colour in which the stand-in is said."""
    pixels = np.asarray(Image.open(BytesIO(png)).convert("RGB"))
    top = pixels[: pixels.shape[0] // 8].reshape(-1, 3)
    return bool((top == (0xA0, 0x30, 0x00)).all(axis=1).any())
