"""The whole measurement on drawn images: complete, repeatable, resumable; its controls; the command and the report."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from protocol.commands.learngene import make
from protocol.errors import InputError
from sims.leakage import attacked_run, leakage_figures, leakage_results, measurement
from sims.leakage.attack_metrics import Bounds
from sims.leakage.attacked_run import AttackedRun
from sims.leakage.leakage_results import Control, Leakage, Measure, sentences
from sims.leakage.shadow_collectives import Recipe
from sims.results import report
from tests.sims.leakage.made_attack import SMALL, make_attacked, with_release
from tests.sims.made_run import make_run

pytestmark = pytest.mark.slow

Said = list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[AttackedRun, Path, Leakage, Said]:
    folder = tmp_path_factory.mktemp("measured")
    (folder / "working").mkdir()
    (folder / "leakage").mkdir()
    run, _ = with_release(make_attacked(folder / "runs"), folder / "working")
    said: Said = []
    found = measurement.measure(run, SMALL, folder / "leakage", "a command", lambda *what: said.append(what))
    return run, folder / "leakage", found, said


def test_every_attack_is_tried_on_everything_that_it_can_read(
    measured: tuple[AttackedRun, Path, Leakage, Said],
) -> None:
    _, _, found, said = measured
    tried = {(row.question, row.variant, row.attack) for row in found.attacks}
    assert len(tried) == len(found.attacks)
    assert len(found.of("membership")) == 4 + 3 + 7
    assert len(found.of("class presence")) == 2 + 3 + 5
    for row in found.attacks:
        assert ("Fisher match" in row.attack or "all" in row.attack) <= ("Fisher" in row.variant)
        assert (row.release is not None) == (row.question == "membership")  # four classes are too few
        assert len(row.curve) == len(found.grid)
        assert row.curve[-1] == 1.0
    assert (found.members, found.outsiders, found.present, found.absent) == (24, 24, 2, 2)
    rows = {(row.samples, row.noise, row.template, row.layer) for row in found.reconstruction}
    layers = {row.layer for row in found.reconstruction}
    assert layers == {"mean", *(str(number) for number in range(1, len(layers)))}
    assert {(samples, noise) for samples, noise, *_ in rows} == {(1, 0), (8, 0), (1, 1), (8, 1)}
    for text in {text for text, *_ in said}:
        last = [(done, total) for other, done, total in said if other == text][-1]
        assert last[0] == last[1]


def test_controls_that_must_succeed_do(measured: tuple[AttackedRun, Path, Leakage, Said]) -> None:
    """As far as images drawn in seconds can show it: one image behind a diagonal is found, wherever it is."""
    *_, found, _ = measured
    by_kind = {kind: [one for one in found.controls if one.kind == kind] for kind in ("positive", "negative")}
    assert len(by_kind["positive"]) == 4 + 3 + 2 + 1
    assert len(by_kind["negative"]) == 7 + 5 + 2
    one_image = next(
        one for one in found.controls if one.text == "reconstruction, activations: a diagonal of one image"
    )
    assert one_image.holds
    assert one_image.auroc.value > 0.9
    alone = {row.samples: row for row in found.reconstruction if row.layer == "mean" and not row.noise}
    assert alone[1].inside.value > alone[8].inside.value


def test_what_is_there_is_used_and_comes_out_the_same(
    measured: tuple[AttackedRun, Path, Leakage, Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder, found, _ = measured
    monkeypatch.setattr(Recipe, "evolve", lambda *_: pytest.fail("it is there already"))
    again = measurement.measure(run, SMALL, folder, "a command", lambda *_: None)
    assert again.model_copy(update={"seconds": {}}) == found.model_copy(update={"seconds": {}})


def test_results_survive_the_disk_and_others_are_refused(
    measured: tuple[AttackedRun, Path, Leakage, Said], tmp_path: Path
) -> None:
    *_, found, _ = measured
    path = tmp_path / "leakage.json"
    leakage_results.write(path, found)
    assert leakage_results.load(path) == found
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"format": 2}))
    with pytest.raises(InputError, match="not what this version writes"):
        leakage_results.load(path)
    with pytest.raises(InputError, match="measure with"):
        leakage_results.load(tmp_path / "none.json")


def test_the_report_gains_a_section_where_there_is_a_measurement(
    measured: tuple[AttackedRun, Path, Leakage, Said], tmp_path: Path
) -> None:
    from sims.results.collection import collect

    *_, found, _ = measured
    folder = make_run(tmp_path)
    collect(folder)
    before = report.write(folder).read_text(encoding="utf-8")
    assert "What the learngene gives away" not in before
    assert "leakage is not measured" in before
    (folder / leakage_results.FOLDER).mkdir()
    leakage_results.write(folder / leakage_results.FOLDER / leakage_results.FILE, found)
    page = report.write(folder).read_text(encoding="utf-8")
    assert "What the learngene gives away" in page
    assert "leakage is not measured" not in page
    assert page.count("data:image/png") == before.count("data:image/png") + len(leakage_figures.FIGURES)
    for row in found.attacks:
        assert leakage_results.measure_text(row.shadows.auroc) in page
    for control in found.controls:
        assert control.text in page


def test_a_control_that_fails_is_said_loudly(measured: tuple[AttackedRun, Path, Leakage, Said]) -> None:
    *_, found, _ = measured
    good = Control.positive("a leaky one", Bounds(0.7, 0.6, 0.8))
    bad = Control.positive("a leaky one that was missed", Bounds(0.52, 0.49, 0.55))
    biased = Control.negative("nothing there", Bounds(0.56, 0.52, 0.6))
    assert (good.holds, bad.holds, biased.holds) == (True, False, False)
    assert "hold." in sentences(found.model_copy(update={"controls": (good,)}))[-1]
    said = sentences(found.model_copy(update={"controls": (good, bad, biased)}))[-1]
    assert "says nothing" in said
    assert bad.text in said
    assert biased.text in said
    assert good.text not in said.split("; ")


def test_sentences_name_the_best_attack_with_its_interval(measured: tuple[AttackedRun, Path, Leakage, Said]) -> None:
    *_, found, _ = measured
    best = max(found.of("membership"), key=lambda row: row.shadows.auroc.value)
    text = sentences(found)[0]
    assert leakage_results.measure_text(best.shadows.auroc) in text
    assert best.attack in text
    assert f"best of {len(found.of('membership'))} attacks" in text
    assert leakage_results.measure_text(Measure(value=0.013, low=0.009, high=0.018), per_cent=True) == (
        "1.3 % (0.9 to 1.8)"
    )


def call(*arguments: str) -> Result:
    return CliRunner().invoke(make(), ["leakage", *arguments])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--shadows", "5"], "shadows"),
        (["--candidates", "1"], "candidates"),
        (["--set", "colour=red"], "NAME=VALUE"),
        (["--set", "shadows=8"], "NAME=VALUE"),
        (["--set", "noise=0"], "above 0"),
        ([], "no folder of a run"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_trained(arguments: list[str], says: str, tmp_path: Path) -> None:
    done = call(str(tmp_path), *arguments)
    assert isinstance(done.exception, InputError)
    assert says in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_the_command_measures_writes_and_does_not_overwrite(
    measured: tuple[AttackedRun, Path, Leakage, Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _, found, _ = measured
    given: list[object] = []

    def measure(attacked: AttackedRun, settings: object, *_: object) -> Leakage:
        given.extend([attacked.images.classes, settings])
        return found

    monkeypatch.setattr(measurement, "measure", measure)
    monkeypatch.setattr(attacked_run, "released", lambda _: run.learngene)
    out, copy = tmp_path / "out", tmp_path / "copy.json"
    arguments = [str(run.folder), "--out", str(out), "--shadows", "6", "--set", "noise=0.5,2", "--json", str(copy)]
    done = call(*arguments)
    assert done.exit_code == 0, done.output
    assert given[0] == run.images.classes
    assert (given[1].shadows, given[1].noise) == (6, (0.5, 2.0))  # type: ignore[attr-defined]
    assert leakage_results.load(out / "leakage.json") == leakage_results.load(copy) == found
    assert {path.name for path in out.iterdir()} == {"leakage.json", *leakage_figures.FIGURES}
    assert "membership: 24 training images against 24 others" in done.output
    again = call(*arguments)
    assert isinstance(again.exception, InputError)
    assert "--resume" in str(again.exception)
    assert call(*arguments, "--resume").exit_code == 0


def test_what_nobody_inherited_cannot_be_attacked(measured: tuple[AttackedRun, Path, Leakage, Said]) -> None:
    run, *_ = measured
    with pytest.raises(InputError, match="never started"):
        attacked_run.released(run.folder)
