"""Several runs in one summary: means over runs, their intervals, and runs that do not belong together."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from scipy import stats

from collective_node.settings import SCORES
from protocol.errors import InputError
from sims.results.class_interval import over_new_classes
from sims.results.collection import collect
from sims.results.models import CHANCE_LEVELS, Results, chance_of, level_of
from sims.results.summary import Summary, of_folders, summarise, write
from sims.results.tables import summary_table
from sims.results.wording import interval_text
from tests.sims.made_run import edit, make_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[Results], Summary]:
    out = tmp_path_factory.mktemp("runs")
    folders = [make_run(out, seed=seed, target_tasks="10:5") for seed in (0, 1, 2)]
    return folders, [collect(folder) for folder in folders], of_folders(folders)


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width by scipy's t distribution, two degrees of freedom for three runs."""
    return float(stats.tmean(values)), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def test_accuracies_and_differences_are_means_over_runs(made: tuple[list[Path], list[Results], Summary]) -> None:
    _, results, summary = made
    found = summary.methods["paper"][10]
    assert (found.mean, found.ci95_seeds) == pytest.approx(interval([one.methods["paper"][10].mean for one in results]))
    difference = summary.paired["condensed-scratch"][10]
    expected = [one.paired["condensed-scratch"][10].mean for one in results]
    assert difference.per_run == tuple(expected)
    assert (difference.mean, difference.ci95_seeds) == pytest.approx(interval(expected))
    assert [run.seed for run in summary.runs] == [0, 1, 2]
    assert [run.criterion for run in summary.runs] == [one.collective.criterion for one in results]


def test_the_interval_over_new_classes_comes_from_the_tasks_of_all_runs(
    made: tuple[list[Path], list[Results], Summary],
) -> None:
    folders, results, summary = made
    values = [value for one in results for value in one.methods["paper"][10].per_task]
    classes = [of_task for one in results for of_task in one.task_classes]
    assert summary.methods["paper"][10].ci95_classes == over_new_classes(values, classes)
    without = results[1].model_copy(update={"task_classes": ()})
    mixed = summarise([(folders[0], results[0]), (folders[1], without)])
    assert mixed.methods["paper"][10].ci95_classes is None
    assert mixed.methods["paper"][10].ci95_seeds is not None


def test_the_open_world_is_summarised_by_score_strategy_and_cycle(
    made: tuple[list[Path], list[Results], Summary],
) -> None:
    _, results, summary = made
    kinds = [(kind.score, kind.strategy, kind.own) for kind in summary.open_world]
    assert kinds[0] == ("max-logit", "replay", True)
    assert ("max-logit", "ewc", False) in kinds
    for number, kind in enumerate(summary.open_world):
        for cycle in kind.cycles:
            records = [one.collective.open_world.every[number].cycles[cycle.cycle] for one in results]
            lost = [record.base_accuracy_before - record.base_accuracy_after for record in records]
            assert cycle.figures["forgotten"].per_run == tuple(lost)
            assert cycle.figures["classes"].mean == 8.0
            learned = [record.open_accuracy_after for record in records]
            assert cycle.figures["open_accuracy_after"].per_run == tuple(learned)
            for score, found in cycle.stream.items():
                values = []
                for record in records:
                    assert record.before is not None
                    metrics = record.before[score]
                    assert metrics is not None
                    values.append(metrics.auroc)
                auroc = found.before["auroc"]
                assert auroc.ci95_classes is None
                assert (auroc.mean, auroc.ci95_seeds) == pytest.approx(interval(values))
            assert set(cycle.stream) == set(SCORES)
            assert cycle.figures["found"].per_run == tuple(record.found for record in records)
            assert cycle.figures["found"].mean + cycle.figures["given"].mean == cycle.figures["named"].mean
            chances = [chance_of(record.after) for record in records]
            for level, over in cycle.chance.after.items():
                assert over.per_run == tuple(level_of(chance, level) for chance in chances)
            assert set(cycle.chance.before) == set(cycle.chance.after) == set(CHANCE_LEVELS)


def test_one_run_has_no_interval_and_what_one_run_lacks_is_left_out_of_its_mean(
    made: tuple[list[Path], list[Results], Summary],
) -> None:
    folders, results, _ = made
    alone = summarise([(folders[0], results[0])])
    assert alone.methods["paper"][10].ci95_seeds is None
    assert alone.methods["paper"][10].ci95_classes == pytest.approx(results[0].methods["paper"][10].ci95_classes)
    difference = alone.paired["condensed-paper"][10].ci95_classes
    assert difference == pytest.approx(results[0].paired["condensed-paper"][10].ci95_classes)
    without = results[1].model_copy(
        update={"collective": results[1].collective.model_copy(update={"condensed_accuracy": None})}
    )
    found = summarise([(folders[0], results[0]), (folders[1], without)]).collective["condensed_accuracy"]
    assert (found.mean, found.ci95_seeds, found.runs, found.per_run) == (50.3, None, 1, (50.3, None))


def test_the_file_and_the_table_hold_the_summary(
    made: tuple[list[Path], list[Results], Summary], tmp_path: Path
) -> None:
    summary = made[2]
    path = write(summary, tmp_path)
    assert Summary.model_validate_json(path.read_bytes()) == summary
    console = Console(width=200, file=StringIO())
    console.print(summary_table(summary))
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert interval_text(summary.methods["floor"][10]) in text
    assert interval_text(summary.paired["condensed-floor"][10], sign=True) in text
    for kind in summary.open_world:
        for cycle in kind.cycles:
            assert interval_text(cycle.figures["forgotten"]) in text
    for found in summary.open_world[0].cycles[0].stream.values():
        assert interval_text(found.before["auroc"]) in text
        assert interval_text(found.after["oscr"]) in text
    for over in summary.open_world[0].cycles[0].chance.before.values():
        assert interval_text(over) in text
    assert text.count("layers chosen: 11–13") == 3


def test_runs_of_different_experiments_or_one_seed_are_refused(
    made: tuple[list[Path], list[Results], Summary], tmp_path: Path
) -> None:
    folders = made[0]
    other = make_run(tmp_path, seed=7, target_tasks="10:6")
    collect(other)
    with pytest.raises(InputError, match="different experiments, see target_tasks"):
        of_folders([folders[0], other])
    with pytest.raises(InputError, match="both have seed 0"):
        of_folders([folders[0], folders[0]])
    drawn = make_run(tmp_path, seed=8, target_tasks="10:5", source="stand-in")
    collect(drawn)
    with pytest.raises(InputError, match="different images"):
        of_folders([folders[0], drawn])
    tuning = make_run(tmp_path, seed=9, target_tasks="10:5", division="tuning")
    collect(tuning)
    with pytest.raises(InputError, match="different experiments, see division"):
        of_folders([folders[0], tuning])
    with pytest.raises(InputError, match="no folder of a run"):
        of_folders([folders[0], tmp_path / "nowhere"])


def test_runs_of_one_experiment_may_lie_and_compute_anywhere(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, seed=seed, target_tasks="10:2") for name, seed in (("a", 0), ("b", 1))]
    edit(folders[1] / "settings.json", lambda d: d["settings"].update(threads=4, collective_device="cuda"))
    for folder in folders:
        collect(folder)
    assert len(of_folders(folders).runs) == 2


def test_no_run_has_no_summary() -> None:
    with pytest.raises(ValueError, match="at least one"):
        summarise([])
