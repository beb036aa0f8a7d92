"""Changes to training numbers: every number by its own text, lists and nothing, through Flower's own reading."""

import json

import pytest

from protocol.errors import InputError
from sims.run.changes import as_text, join_changes
from sims.run.profiles import PROFILES
from sims.run.settings import from_run_config, resolve


@pytest.mark.parametrize("party", ["collective", "individual"])
def test_every_training_number_can_be_set_by_its_own_text(party: str) -> None:
    for profile in (*PROFILES["cifar100"].values(), *PROFILES["imagenet100"].values()):
        for name, value in getattr(profile, party):
            change = f"{party}.{name}={as_text(value)}"
            settings = from_run_config({"profile": "smoke", "set": join_changes([change])})
            assert getattr(getattr(settings, party), name) == value
            assert resolve(settings.options()) == settings


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("'collective.expansion=widen 2 +64,deepen 5 identity'", "expansion", ("widen 2 +64", "deepen 5 identity")),
        ("collective.expansion='widen 2 +64, deepen 5 identity'", "expansion", ("widen 2 +64", "deepen 5 identity")),
        ("collective.expansion=", "expansion", ()),
        ("collective.compare_strategies=none,ewc", "compare_strategies", ("none", "ewc")),
        ("collective.layers=none", "layers", None),
        ("collective.layers=2", "layers", 2),
        ("individual.own_front=none", "own_front", None),
        ("individual.methods=paper individual.own_front=", "own_front", ()),
        ("individual.methods=paper individual.own_front=32,64", "own_front", (32, 64)),
    ],
)
def test_lists_empty_lists_and_nothing_can_be_set(text: str, name: str, value: object) -> None:
    settings = from_run_config({"profile": "smoke", "set": text})
    party = settings.individual if hasattr(settings.individual, name) else settings.collective
    assert getattr(party, name) == value
    assert resolve(settings.options()) == settings
    # Through Flower's own reading of `--run-config`, which knows no escapes.
    from flwr.common.config import parse_config_args

    line = " ".join(f"{key}={json.dumps(item)}" for key, item in settings.options().model_dump(by_alias=True).items())
    assert from_run_config(parse_config_args([line], flatten=False)) == settings


def test_a_number_with_a_key_of_its_own_can_be_set_once() -> None:
    assert from_run_config({"set": "collective.tasks=3"}) == from_run_config({"tasks": 3})
    with pytest.raises(InputError, match="tasks"):
        from_run_config({"set": "collective.tasks=3", "tasks": 3})
