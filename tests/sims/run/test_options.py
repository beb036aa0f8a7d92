"""Options of a run: each is declared once, and the Flower apps and the command line have it from there."""

import tomllib
from pathlib import Path

import click
import pytest
import typer.main

from protocol.commands.terminal import make_app
from protocol.errors import InputError
from sims.data.datasets import DATASETS, DatasetName
from sims.run import run_command
from sims.run.options import Options, Value, defaults, keys, read_options
from sims.run.settings import from_run_config

SIMS = Path(__file__).parents[3] / "sims"


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_run_configuration_holds_exactly_the_keys_of_the_flower_app(dataset: DatasetName) -> None:
    text = (SIMS / dataset / "pyproject.toml").read_text(encoding="utf-8")
    declared = tomllib.loads(text)["tool"]["flwr"]["app"]["config"]
    assert declared == {**defaults(), "dataset": dataset}


def flags() -> dict[str, click.Parameter]:
    app = make_app("A test.")
    run_command.register(app)
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    return {flag: option for option in group.commands["run"].params for flag in option.opts}


def test_every_option_has_a_flag_with_its_help_but_those_that_the_command_gives_itself() -> None:
    found = flags()
    for name, key in keys():
        field = Options.model_fields[name]
        if name in ("dataset", "folder"):
            assert f"--{key}" not in found
            assert field.description is None
        else:
            option = found[f"--{key}"]
            assert isinstance(option, click.Option)
            assert option.help is not None
            assert field.description is not None
            assert option.help.startswith(field.description)
            assert option.is_flag == isinstance(field.default, bool)


def test_a_flag_that_is_not_typed_leaves_its_option_at_its_default() -> None:
    for name, key in keys():
        option = flags().get(f"--{key}")
        if option is not None:
            assert option.get_default(click.Context(click.Command("run"))) in (None, Options.model_fields[name].default)


def test_a_number_may_stand_for_text_as_flower_parses_it() -> None:
    assert from_run_config({"shots": 10, "target-tasks": 3, "width": 1}).target_tasks == {10: 3}


@pytest.mark.parametrize(
    "config",
    [
        {"sead": 1},
        {"seed": "one"},
        {"seed": True},
        {"seed": 2**31},
        {"threads": 1025},
        {"width": float("nan")},
        {"resume": "yes"},
        {"resume": 1},
        {"data": False},
        {"collective-device": "gpu"},
    ],
)
def test_a_key_or_a_value_of_the_wrong_kind_is_one_line_that_names_it(config: dict[str, Value]) -> None:
    [key] = config
    with pytest.raises(InputError, match=key) as refused:
        read_options(config)
    assert "\n" not in str(refused.value)
