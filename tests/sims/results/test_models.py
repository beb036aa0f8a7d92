"""``results.json``: valid by its schema, read back as it was written, the paper's figures beside their dataset."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from collective_node.records import ChanceLevels, CycleFigures, StreamMetrics
from collective_node.settings import Score, Strategy
from sims.data.division_choice import OWN
from sims.results.collection import collect
from sims.results.models import CHANCE_LEVELS, CollectiveResult, Results, chance_of, load, schema
from sims.results.paper_figures import PAPER_FIGURES
from tests.sims.made_run import make_run


def test_the_file_is_valid_by_its_schema_and_reads_back(made: tuple[Path, Results]) -> None:
    folder, results = made
    Draft202012Validator.check_schema(schema())
    Draft202012Validator(schema()).validate(json.loads((folder / "results.json").read_text(encoding="utf-8")))
    assert load(folder) == results


@pytest.mark.parametrize("how", [{"division": "tuning"}, {"source": "stand-in"}, {}])
def test_images_that_are_not_the_papers_are_valid_with_their_notice(tmp_path: Path, how: dict[str, str]) -> None:
    folder = make_run(tmp_path, **how)
    collect(folder)
    document = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    Draft202012Validator(schema()).validate(document)
    del document["dataset"]["division"]  # as earlier versions wrote the file
    assert Results.model_validate(document).dataset.division == OWN


def test_the_schema_refuses_what_it_should(made: tuple[Path, Results]) -> None:
    good = json.loads((made[0] / "results.json").read_text(encoding="utf-8"))
    changes: list[Callable[[Any], object]] = [
        lambda d: d.pop("paired"),
        lambda d: d.update(extra=1),
        lambda d: d["dataset"].update(source="internet"),
        lambda d: d["dataset"].update(source="stand-in"),  # without its notice
        lambda d: d["dataset"].update(division={"name": "tuning", "seed": 0}),  # the same
        lambda d: d["dataset"].update(division={"name": "novel", "seed": 0}),
        lambda d: d["dataset"].update(notice="of the dataset's own division"),
        lambda d: d["methods"]["scratch"]["10"].update(mean=101),
        lambda d: d["methods"]["scratch"].update({"ten": d["methods"]["scratch"]["10"]}),
        lambda d: d["methods"]["scratch"]["10"].update(ci95_tasks=-1),
        lambda d: d["methods"]["scratch"]["10"].update(ci95_classes=-1),
        lambda d: d["methods"]["scratch"]["10"].pop("ci95_classes"),
        lambda d: d["paired"]["condensed-scratch"]["10"].update(ci95=1.0),
        lambda d: d["task_classes"].__setitem__(0, "abcde"),
        lambda d: d["crossings"][0].update(digest="abc"),
        lambda d: d["crossings"][0].update(image="pixels"),
        lambda d: d["seconds"].update(total=1),
        lambda d: d["collective"].update(extra=1),
        lambda d: d["collective"]["tasks"][0].update(seconds=1.0),
        lambda d: d["collective"]["gradient_trend"]["rho"][0].__setitem__(0, 1.5),
        lambda d: d["collective"]["criterion"].update(chosen=[0]),
        lambda d: d["collective"]["open_world"]["cycles"][0].update(seconds=1.0),
        lambda d: d["collective"]["open_world"]["cycles"][0].update(strategy="hope"),
        lambda d: d["collective"]["open_world"]["cycles"][0]["before"].update(guess=None),
        lambda d: d["collective"]["open_world"]["cycles"][0]["after"]["msp"].update(auroc=101),
        lambda d: d["collective"]["open_world"]["cycles"][0]["after"]["msp"]["chance"].pop("aupr"),
        lambda d: d["collective"]["open_world"]["comparisons"][0].pop("score"),
    ]
    for change in changes:
        bad = json.loads(json.dumps(good))
        change(bad)
        with pytest.raises(ValidationError):
            Draft202012Validator(schema()).validate(bad)


def test_the_schema_names_what_the_models_hold(made: tuple[Path, Results]) -> None:
    properties = schema()["properties"]
    assert isinstance(properties, dict)
    assert set(properties) == set(Results.model_fields)
    assert set(properties["collective"]["properties"]) == set(CollectiveResult.model_fields)
    definitions = schema()["$defs"]
    assert isinstance(definitions, dict)
    assert set(definitions["cycle"]["properties"]) == set(CycleFigures.model_fields)
    assert set(definitions["stream_metrics"]["properties"]) == set(StreamMetrics.model_fields)
    assert set(definitions["chance_levels"]["properties"]) == set(ChanceLevels.model_fields) == set(CHANCE_LEVELS)
    assert definitions["score"]["enum"] == list(get_args(Score))
    assert definitions["strategy"]["enum"] == list(get_args(Strategy))


@pytest.mark.parametrize(("name", "source"), [("cifar100", "folder"), ("imagenet100", "folder"), ("birds", "folder")])
def test_the_papers_figures_stand_beside_their_own_dataset_only(tmp_path: Path, name: str, source: str) -> None:
    results = collect(make_run(tmp_path, dataset=name, source=source, target_tasks="10:1"))
    assert results.paper == PAPER_FIGURES.get(name)
    drawn = collect(make_run(tmp_path, source="stand-in", target_tasks="10:1"))
    assert drawn.paper is None


def test_a_run_of_before_the_open_world_still_loads(made: tuple[Path, Results], tmp_path: Path) -> None:
    document = json.loads((made[0] / "results.json").read_text(encoding="utf-8"))
    for name in ("open_world", "criterion"):
        del document["collective"][name]
    (tmp_path / "results.json").write_text(json.dumps(document), encoding="utf-8")
    assert load(tmp_path).collective.open_world.every == ()


def test_a_run_of_before_chance_levels_were_measured_still_loads_and_fits_the_schema(
    made: tuple[Path, Results], tmp_path: Path
) -> None:
    document = json.loads((made[0] / "results.json").read_text(encoding="utf-8"))
    for found in (document["collective"]["open_world"], *document["collective"]["open_world"]["comparisons"]):
        for cycle in found["cycles"]:
            del cycle["open_only_accuracy_before"], cycle["open_only_accuracy_after"]
            for metrics in (*cycle["before"].values(), *cycle["after"].values()):
                del metrics["chance"]
    Draft202012Validator(schema()).validate(document)
    (tmp_path / "results.json").write_text(json.dumps(document), encoding="utf-8")
    cycle = load(tmp_path).collective.open_world.cycles[0]
    assert chance_of(cycle.before) is None
    assert cycle.open_only_accuracy_after is None
