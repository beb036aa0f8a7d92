"""Settings of a run: profiles, overrides, the round trip through Flower, and what is refused."""

import os
import pwd
import shlex
from pathlib import Path

import pytest

from protocol.errors import InputError
from sims.data.datasets import DATASETS, DatasetName
from sims.data.division_choice import DivisionChoice
from sims.run.changes import join_changes
from sims.run.options import Value, defaults
from sims.run.profiles import PROFILES, ProfileName
from sims.run.settings import check_machine, from_run_config, resolve

SIMS = Path(__file__).parents[3] / "sims"


@pytest.mark.parametrize(
    ("dataset", "profile"), [(dataset, profile) for dataset in PROFILES for profile in PROFILES[dataset]]
)
def test_the_defaults_are_the_profile(dataset: DatasetName, profile: ProfileName) -> None:
    settings = from_run_config({"dataset": dataset, "profile": profile})
    wanted = PROFILES[dataset][profile]
    assert (settings.dataset, settings.profile) == (dataset, profile)
    assert settings.individual == wanted.individual
    assert resolve(settings.options()) == settings
    assert settings.target_tasks == wanted.target_tasks
    assert settings.collective == wanted.collective
    assert settings.out.is_absolute()


def test_overrides_win_over_the_profile(tmp_path: Path) -> None:
    config: dict[str, Value] = {
        "profile": "small",
        "seed": 7,
        "data": str(tmp_path),
        "out": str(tmp_path / "runs"),
        "shots": "5,10",
        "target-tasks": "5:3,10:4",
        "individuals": 3,
        "tasks": 6,
        "width": 0.125,
        "threads": 2,
        "individual-device": "cpu",
        "set": "collective.classes_per_task=4 collective.forms=paper,condensed individual.retain_weight=10 "
        "collective.sigma=1e-4",
    }
    settings = from_run_config(config)
    assert settings.target_tasks == {5: 3, 10: 4}
    assert settings.shots == (5, 10)
    assert (settings.collective.tasks, settings.collective.width) == (6, 0.125)
    assert (settings.collective.classes_per_task, settings.collective.forms) == (4, ("paper", "condensed"))
    assert (settings.collective.sigma, settings.individual.retain_weight) == (1e-4, 10.0)
    changed = {"tasks", "width", "classes_per_task", "forms", "sigma"}
    small = PROFILES["cifar100"]["small"]
    assert settings.collective.model_dump(exclude=changed) == small.collective.model_dump(exclude=changed)
    # The profile's methods that find their learngene among the named forms.
    without = {"direct", "whole"}
    assert settings.individual.methods == tuple(name for name in small.individual.methods if name not in without)
    unchanged = {"retain_weight", "methods"}
    assert settings.individual.model_dump(exclude=unchanged) == small.individual.model_dump(exclude=unchanged)
    assert resolve(settings.options()) == settings


@pytest.mark.parametrize(
    ("shots", "tasks", "expected"),
    [
        ("", "", {10: 40, 20: 10}),
        ("20", "", {20: 10}),
        ("", "8", {10: 8, 20: 8}),
        ("5", "", {5: 10}),
        ("", "1:2", {1: 2}),
        (" 20, 10", "", {10: 40, 20: 10}),
    ],
)
def test_target_tasks_by_shots(shots: str, tasks: str, expected: dict[int, int]) -> None:
    assert from_run_config({"profile": "quick", "shots": shots, "target-tasks": tasks}).target_tasks == expected


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"profile": "huge"}, "huge"),
        ({"dataset": "mnist"}, "cifar100, imagenet100, folder"),
        ({"set": "collective.expansion='widen 2"}, "No closing quotation"),
        ({"set": "collective.expansion=widen 2 +64"}, "collective.NAME=VALUE"),  # not in quotes
        ({"set": "collective.base_widths="}, "collective.base_widths"),
        ({"sead": 1}, "sead"),
        ({"seed": -1}, "seed"),
        ({"seed": "one"}, "seed"),
        ({"resume": "yes"}, "resume"),
        ({"data": "/no/such/folder"}, "/no/such/folder"),
        ({"data": "relative"}, "absolute"),
        ({"out": "relative"}, "absolute"),
        ({"shots": "10,x"}, "x"),
        ({"shots": "0"}, "shots"),
        ({"shots": "501"}, "501"),
        ({"target-tasks": "10:0"}, "target-tasks"),
        ({"target-tasks": "4,5"}, "target-tasks"),
        ({"shots": "10", "target-tasks": "20:4"}, "20"),
        ({"individuals": 65}, "individuals"),
        ({"test-images": -1}, "test-images"),
        ({"division": "novel"}, "division"),
        ({"division-seed": 1}, "division-seed is the seed of the tuning division"),
        ({"division": "tuning", "division-seed": -1}, "division-seed"),
        ({"tasks": -2}, "tasks"),
        ({"width": 99.0}, "width"),
        ({"threads": -1}, "threads"),
        ({"collective-device": "gpu"}, "gpu"),
        ({"set": "retain_weight"}, "individual.NAME=VALUE"),
        ({"set": "retain_weight=1"}, "individual.retain_weight?"),
        ({"set": "human.retain_weight=1"}, "human.retain_weight"),
        ({"set": "individual.retian_weight=1"}, "individual.retain_weight?"),
        ({"set": "colective.epochs=1"}, "collective.epochs?"),
        ({"set": "collective.momentun=1"}, "collective.momentum?"),
        ({"set": "individual.nothing_like_it=1"}, "--dry-run"),  # it lists the valid ones
        ({"set": "individual.retain_weight=much"}, "individual.retain_weight"),
        ({"set": "individual.retain_weight=-1"}, "individual.retain_weight"),
        ({"set": "individual.retain_weight=inf"}, "individual.retain_weight"),
        ({"set": "individual.epochs=1.5"}, "individual.epochs"),
        ({"set": "individual.epochs=none"}, "individual.epochs"),
        ({"set": "individual.methods=scratch,magic"}, "individual.methods"),
        ({"set": "individual.epochs=1 individual.epochs=2"}, "twice"),
    ],
)
def test_wrong_settings_get_one_line_that_names_them(config: dict[str, Value], said: str) -> None:
    with pytest.raises(InputError) as caught:
        from_run_config(config)
    text = str(caught.value)
    assert said in text
    assert "\n" not in text


def test_the_environment_names_the_data_where_nothing_else_does(tmp_path: Path) -> None:
    named, typed = tmp_path / "named", tmp_path / "typed"
    named.mkdir()
    typed.mkdir()
    environment = {"LEARNGENE_DATA": str(named)}
    assert from_run_config({}, environment=environment).data == named
    assert from_run_config({"data": str(typed)}, environment=environment).data == typed
    assert from_run_config({"stand-in": True}, environment=environment).data is None
    assert from_run_config({}).data is None
    with pytest.raises(InputError, match="exclude"):
        from_run_config({"stand-in": True, "data": str(typed)})


def test_the_individuals_are_those_that_are_connected() -> None:
    assert from_run_config({}, individuals=3).individuals == 3
    assert from_run_config({"individuals": 3}, individuals=3).individuals == 3
    with pytest.raises(InputError, match="num-supernodes=3"):
        from_run_config({"individuals": 2}, individuals=5)


def test_a_profile_that_needs_cuda_is_refused_without_it() -> None:
    paper = from_run_config({"profile": "paper"})
    with pytest.raises(InputError, match="CUDA"):
        check_machine(paper, lambda: 0)
    check_machine(paper, lambda: 1)
    with pytest.raises(InputError, match="collective-device"):
        check_machine(paper.model_copy(update={"collective_device": "cpu"}), lambda: 1)


def test_a_device_that_is_not_there_is_refused() -> None:
    settings = from_run_config({"individual-device": "cuda:1"})
    with pytest.raises(InputError, match="individual-device"):
        check_machine(settings, lambda: 1)
    check_machine(settings, lambda: 2)


def test_a_run_without_cuda_never_asks_for_it() -> None:
    def fail() -> int:
        raise AssertionError("asked")

    check_machine(from_run_config({}), fail)


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_command_repeats_the_run(tmp_path: Path, dataset: DatasetName) -> None:
    settings = from_run_config(
        {
            "dataset": dataset,
            "profile": "smoke",
            "seed": 3,
            "data": str(tmp_path),
            "shots": "5",
            "individuals": 2,
            "width": 0.5,
            "set": "individual.epochs=3 collective.expansion='widen 2 +64,paper' collective.compare_scores=",
        }
    )
    words = shlex.split(settings.command())
    assert words[:3] == ["learngene", "run", dataset]
    config: dict[str, Value] = {"dataset": dataset}
    changes: list[str] = []
    for flag, value in zip(words[3::2], words[4::2], strict=True):
        key = flag.removeprefix("--")
        if key == "set":
            changes.append(value)
        else:
            config[key] = type(defaults()[key])(value)
    assert from_run_config({**config, "set": join_changes(changes)}) == settings


def test_a_task_s_test_images_are_all_or_a_number() -> None:
    assert from_run_config({}).plan.test_images is None
    settings = from_run_config({"test-images": 15})
    assert settings.plan.test_images == 15
    assert resolve(settings.options()) == settings
    assert settings.command().endswith("--test-images 15")
    assert settings.experiment() != from_run_config({}).experiment()


def test_the_command_names_the_division(tmp_path: Path) -> None:
    assert "--division" not in from_run_config({}).command()
    assert from_run_config({"division": "tuning"}).command().endswith("--division tuning")
    settings = from_run_config({"division": "tuning", "division-seed": 3, "data": str(tmp_path)})
    assert settings.command().endswith("--division tuning --division-seed 3")
    assert resolve(settings.options()) == settings
    assert settings.choice == DivisionChoice(name="tuning", seed=3)


def test_the_experiment_does_not_depend_on_where_it_is_written(tmp_path: Path) -> None:
    here = from_run_config({"out": str(tmp_path / "a")})
    there = from_run_config({"out": str(tmp_path / "b"), "resume": True})
    assert here.experiment() == there.experiment()
    assert here.experiment() != from_run_config({"seed": 1}).experiment()
    assert here.experiment() != from_run_config({"division": "tuning"}).experiment()
    assert here.experiment() != from_run_config({"set": "individual.retain_weight=7"}).experiment()


def test_a_method_without_its_form_of_learngene_is_refused_before_anything_starts() -> None:
    with pytest.raises(
        InputError, match=r"'paper-front' needs a learngene in the form 'paper-front': set collective\.forms"
    ):
        from_run_config({"set": "individual.methods=condensed,paper-front"})
    settings = from_run_config(
        {"set": "individual.methods=paper-front-individual,floor collective.forms=condensed,paper-front"}
    )
    assert settings.individual.methods == ("paper-front-individual", "floor")


@pytest.mark.parametrize("key", ["out", "data", "cache", "folder"])
def test_a_folder_whose_name_is_not_utf_8_is_refused_by_its_bytes(tmp_path: Path, key: str) -> None:
    """The settings of a run, and what its nodes are started with, are JSON and TOML."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    with pytest.raises(InputError, match=rf"^{key}: .*caf\\udce9"):
        from_run_config({key: str(folder)})


def test_a_user_without_a_home_is_told_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = from_run_config({"out": str(tmp_path), "profile": "smoke"})
    expected = settings.command()
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    with pytest.raises(InputError, match=r"^out: "):
        from_run_config({"profile": "smoke"})
    assert from_run_config({"out": str(tmp_path), "profile": "smoke"}).command() == expected
    assert f"--out {tmp_path}" in expected


@pytest.mark.parametrize("key", ["out", "data", "cache", "folder"])
def test_a_home_that_nobody_has_is_one_line_with_the_option_s_name(key: str) -> None:
    with pytest.raises(InputError, match=rf"^{key}: .*~nobody-at-all"):
        from_run_config({key: "~nobody-at-all/runs"})
