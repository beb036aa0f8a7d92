"""Accuracy against epsilon over runs: which runs belong together, means and intervals, figure, report, schema."""

import functools
import json
from io import StringIO
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from rich.console import Console

from collective_node.differential_privacy.accounting import plan
from collective_node.differential_privacy.mechanism import Mechanism
from collective_node.differential_privacy.randomness import PrivateRandomness
from collective_node.settings import CollectiveSettings
from protocol.errors import InputError
from protocol.learngene.learngene import PrivacyScope
from sims.results import privacy_figure, report
from sims.results.collection import collect
from sims.results.models import load, schema
from sims.results.privacy_table import PRIVACY_FIGURE, of_folders, write
from sims.results.tables import privacy_tables
from sims.results.wording import guarantee_sentences, interval_text
from tests.sims.made_run import make_run


@functools.cache
def mechanism(epsilon: float, scope: PrivacyScope = "weights-and-fisher") -> Mechanism:
    settings = CollectiveSettings(forms=("condensed",), cycles=0, privacy_epsilon=epsilon, privacy_scope=scope)
    return plan(settings, 5000, fishers=1, randomness=PrivateRandomness())


def private_run(
    out: Path, epsilon: float | None, seed: int = 0, scope: PrivacyScope = "weights-and-fisher", lift: float = 0.0
) -> Path:
    """A made run whose collective states a guarantee, as its program does where there is no sequence of tasks."""
    methods = {"condensed": 60.0 + lift, "scratch": 45.0}
    run_id = f"{seed:016d}{round(10 * (epsilon or 0)):016d}"
    folder = make_run(out, seed=seed, target_tasks="10:6", methods=methods, run_id=run_id)
    if epsilon is not None:
        path = folder / "nodes" / "collective" / "state" / "metrics.json"
        metrics = json.loads(path.read_text())
        for name in ("gradient_trend", "criterion", "open_world", "base_accuracy", "weights_sha256"):
            metrics.pop(name, None)
        metrics |= {"tasks": [], "privacy": mechanism(epsilon, scope).model_dump(mode="json")}
        path.write_text(json.dumps(metrics))
        settings = folder / "settings.json"
        document = json.loads(settings.read_text())
        document["settings"]["collective"] |= {"privacy_epsilon": epsilon, "cycles": 0, "forms": ["condensed"]}
        document["settings"]["collective"]["privacy_scope"] = scope
        document["settings"]["individual"]["methods"] = ["condensed", "scratch"]
        settings.write_text(json.dumps(document))
    collect(folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("runs")
    return [
        private_run(out, 8.0, lift=5),
        private_run(out, 1.0),
        private_run(out, 1.0, seed=1),
        private_run(out, None, lift=9),
    ]


def test_points_go_by_epsilon_and_the_one_without_a_guarantee_is_last(runs: list[Path]) -> None:
    table = of_folders(runs)
    assert [point.epsilon for point in table.points] == [1.0, 8.0, None]
    assert [len(point.runs) for point in table.points] == [2, 1, 1]
    assert table.methods == ("condensed", "scratch")
    assert table.shots == (10,)
    assert (table.scope, table.delta) == ("weights-and-fisher", mechanism(1.0).delta)


def test_intervals_are_over_runs_where_there_are_several_else_over_tasks(runs: list[Path]) -> None:
    several, single, _ = of_folders(runs).points
    means = [load(folder).methods["condensed"][10].mean for folder in runs[1:3]]
    found = several.methods["condensed"][10]
    assert (found.over, found.count) == ("runs", 2)
    assert found.mean == pytest.approx(sum(means) / 2)
    assert found.ci95 == pytest.approx(12.706204736 * abs(means[0] - means[1]) / 2)  # Student's t with one degree
    alone, own = single.methods["condensed"][10], load(runs[0]).methods["condensed"][10]
    assert (alone.over, alone.count, alone.mean, alone.ci95) == ("target tasks", 6, own.mean, own.ci95_tasks)


def test_table_and_files_hold_the_points(runs: list[Path], tmp_path: Path) -> None:
    table = of_folders(runs)
    stream = StringIO()
    Console(file=stream, width=200).print(privacy_tables(table))
    for point in table.points:
        assert interval_text(point.methods["condensed"][10]) in stream.getvalue()
    assert "ε = 8" in stream.getvalue()
    assert "no guarantee" in stream.getvalue()
    assert json.loads(write(table, tmp_path).read_text()) == table.model_dump(mode="json")


def test_the_figure_becomes_one_of_the_report(runs: list[Path]) -> None:
    folder = runs[0]
    assert PRIVACY_FIGURE not in report.write(folder).read_text()
    image = privacy_figure.draw(of_folders(runs))
    assert image.startswith(b"\x89PNG")
    (folder / PRIVACY_FIGURE).write_bytes(image)
    page = report.write(folder).read_text()
    assert page.count("data:image/png") == 1 + len([p for p in folder.glob("*.png") if p.name != PRIVACY_FIGURE])
    assert "against epsilon" in page


@pytest.mark.parametrize("scope", ["weights-and-fisher", "fisher-given-weights"])
def test_the_report_states_the_guarantee_in_words(tmp_path: Path, scope: PrivacyScope) -> None:
    folder = private_run(tmp_path, 8.0, scope=scope)
    page = report.write(folder).read_text()
    for sentence in guarantee_sentences(mechanism(8.0, scope)):
        assert sentence in page
    assert f"ε = 8, δ = 1e-{mechanism(8.0, scope).guarantee.delta_exponent}" in page
    assert ("The weights themselves carry no guarantee" in page) == (scope == "fisher-given-weights")
    plain = report.write(private_run(tmp_path / "plain", None)).read_text()
    assert "No guarantee" in plain
    assert "ε =" not in plain


def test_results_with_a_guarantee_fit_the_schema(runs: list[Path]) -> None:
    document = json.loads((runs[0] / "results.json").read_text())
    Draft202012Validator(schema()).validate(document)
    assert document["collective"]["privacy"]["epsilon"] == 8.0
    document["collective"]["privacy"]["epsilon"] = 0
    assert list(Draft202012Validator(schema()).iter_errors(document))


@pytest.mark.parametrize("wrong", ["none", "twice", "scope", "experiment"])
def test_runs_that_do_not_belong_together_are_refused(runs: list[Path], tmp_path: Path, wrong: str) -> None:
    if wrong == "none":
        with pytest.raises(InputError, match="none of these runs has a guarantee"):
            of_folders(runs[3:])
    elif wrong == "twice":
        with pytest.raises(InputError, match="one epsilon and one seed"):
            of_folders([runs[0], private_run(tmp_path, 8.0)])
    elif wrong == "scope":
        with pytest.raises(InputError, match="different scopes"):
            of_folders([runs[0], private_run(tmp_path, 2.0, scope="fisher-given-weights")])
    else:
        other = private_run(tmp_path, 2.0)
        document = json.loads((other / "settings.json").read_text())
        document["settings"]["collective"]["width"] = 0.5
        (other / "settings.json").write_text(json.dumps(document))
        with pytest.raises(InputError, match=r"different experiments, see collective\.width"):
            of_folders([runs[0], other])
