"""The whole measurement on drawn images: complete, repeatable, resumable; its controls; the command and the report."""

import json
import shutil
from io import StringIO
from pathlib import Path

import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from collective_node.collective_images import CollectiveImages
from collective_node.pipeline import Evolved
from protocol.commands.learngene import make
from protocol.errors import InputError
from sims.leakage import attacked_run, leakage_figures, leakage_results, measurement
from sims.leakage.attack_metrics import Bounds
from sims.leakage.attacked_run import AttackedRun
from sims.leakage.leakage_results import AttackResult, Control, Leakage, Measure, sentences
from sims.leakage.leakage_table import leakage_tables
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
    assert len(found.of("membership")) == 8 + 5 + 13
    assert len(found.of("class presence")) == 4 + 5 + 9
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
    assert len(by_kind["positive"]) == 8 + 5 + 2 + 1
    assert len(by_kind["negative"]) == 13 + 9 + 2
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


def test_other_numbers_of_an_attack_are_tried_on_the_shadows_that_are_there(
    measured: tuple[AttackedRun, Path, Leakage, Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is trained again but the one twin, whose results depend on the settings."""
    run, folder, found, _ = measured
    shutil.copytree(folder, tmp_path / "again")
    trained: list[int] = []
    evolve = Recipe.evolve

    def counted(self: Recipe, images: CollectiveImages, seed: int, working: Path) -> Evolved:
        trained.append(seed)
        return evolve(self, images, seed, working)

    monkeypatch.setattr(Recipe, "evolve", counted)
    other = SMALL.model_copy(update={"rmia_gamma": 1.5, "rmia_a": 0.9})
    again = measurement.measure(run, other, tmp_path / "again", "a command", lambda *_: None)
    assert len(trained) == 1
    changed = {one.attack for one, two in zip(found.attacks, again.attacks, strict=True) if one != two}
    assert changed == {"RMIA offline", "RMIA online"}


def test_results_survive_the_disk_and_others_are_refused(
    measured: tuple[AttackedRun, Path, Leakage, Said], tmp_path: Path
) -> None:
    *_, found, _ = measured
    path = tmp_path / "leakage.json"
    leakage_results.write(path, found)
    assert leakage_results.load(path) == found
    document = json.loads(path.read_text())
    earlier = {name: value for name, value in document.items() if name != "chance_of_strongest"}
    path.write_text(json.dumps(earlier))  # as the versions before the strongest attack was named wrote it
    assert leakage_results.load(path).attacks == found.attacks
    assert sentences(leakage_results.load(path))
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


def with_auroc(row: AttackResult, value: float) -> AttackResult:
    shadows = row.shadows.model_copy(update={"auroc": Measure(value=value, low=value - 0.01, high=value + 0.02)})
    return row.model_copy(update={"shadows": shadows})


def test_the_claim_is_the_strongest_attacks_on_either_side_of_chance(
    measured: tuple[AttackedRun, Path, Leakage, Said],
) -> None:
    """Without what noise on the release would give: nobody received that."""
    *_, found, _ = measured
    rows = [with_auroc(row, 0.5) for row in found.of("membership")]
    noisy = next(number for number, row in enumerate(rows) if "noise" in row.variant)
    rows[noisy] = with_auroc(rows[noisy], 0.99)
    rows[2] = with_auroc(rows[2], 0.6)
    above = found.model_copy(update={"attacks": tuple(rows)})
    assert above.strongest("membership") == rows[2]
    assert above.strongest("class presence") is None
    text = sentences(above)[0]
    assert rows[2].attack in text
    assert "0.600 (0.590 to 0.620)" in text
    assert f"strongest of {8 + 5} attacks" in text
    chance = found.chance_of_strongest["membership"]
    assert f"{chance.low:.3f} to {chance.high:.3f}" in text
    rows[5] = with_auroc(rows[5], 0.3)
    below = found.model_copy(update={"attacks": tuple(rows)})
    assert below.strongest("membership") == rows[5]
    text = sentences(below)[0]
    assert "turned round" in text
    assert "0.700 (0.680 to 0.710)" in text


def test_by_chance_the_strongest_is_no_weaker_than_each(measured: tuple[AttackedRun, Path, Leakage, Said]) -> None:
    *_, found, _ = measured
    for question in ("membership", "class presence"):
        of_all = found.chance_of_strongest[question]
        assert 0.5 <= of_all.low <= of_all.value <= of_all.high
        for row in found.on_release(question):
            assert max(row.by_chance.value, 1 - row.by_chance.value) <= of_all.value


def test_the_table_marks_the_strongest_and_gives_every_attack_its_rates(
    measured: tuple[AttackedRun, Path, Leakage, Said],
) -> None:
    *_, found, _ = measured
    stream = StringIO()
    Console(file=stream, width=300).print(leakage_tables(found))
    lines = stream.getvalue().splitlines()
    assert sum("(strongest)" in line for line in lines) == 2
    for row in found.of("membership"):
        rates = (
            (row.shadows.auroc, 1, 3),
            (row.shadows.tpr_at_1_percent, 100, 1),
            (row.shadows.tpr_at_01_percent, 100, 1),
        )
        cells = [
            f"{factor * one.value:.{digits}f} ± {factor * (one.high - one.low) / 2:.{digits}f}"
            for one, factor, digits in rates
        ]
        assert any(row.attack in line and all(cell in line for cell in cells) for line in lines)


def test_a_measure_is_shown_in_per_cent() -> None:
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
    assert leakage_results.load(copy) == found
    copy.unlink()
    again = call(*arguments)
    assert isinstance(again.exception, InputError)
    assert "--resume" in str(again.exception)
    assert call(*arguments, "--resume").exit_code == 0
    (out / "mine.png").write_bytes(b"mine")
    copy.unlink()
    assert isinstance(call(*arguments, "--resume").exception, InputError)


def test_what_nobody_inherited_cannot_be_attacked(measured: tuple[AttackedRun, Path, Leakage, Said]) -> None:
    run, *_ = measured
    with pytest.raises(InputError, match="never started"):
        attacked_run.released(run.folder)
