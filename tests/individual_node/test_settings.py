"""Tests of the individual's settings and of the table of methods."""

import pytest
from pydantic import ValidationError

from individual_node.method_table import METHODS
from individual_node.settings import DEFAULT_METHODS, IndividualSettings, OwnLayers


def test_every_method_has_its_name_and_every_default_is_a_method() -> None:
    assert all(name == method.name for name, method in METHODS.items())
    assert IndividualSettings().methods == DEFAULT_METHODS
    assert set(DEFAULT_METHODS) <= set(METHODS)


@pytest.mark.parametrize("base", ["condensed-eq9", "paper", "paper-middle", "paper-front"])
def test_a_variant_differs_in_what_its_name_says_and_in_nothing_else(base: str) -> None:
    plain = METHODS[base]
    assert (plain.adaptation, plain.fisher, plain.frozen) == ("eq9", "collective", False)
    for suffix, fisher, frozen in (
        ("individual", "individual", False),
        ("none", "none", False),
        ("frozen", "none", True),
    ):
        variant = METHODS[f"{base}-{suffix}"]
        assert (variant.fisher, variant.frozen) == (fisher, frozen)
        assert (variant.form, variant.adaptation, variant.start) == (plain.form, plain.adaptation, plain.start)


def test_an_unknown_method_is_refused_and_the_known_ones_are_listed() -> None:
    with pytest.raises(ValidationError) as caught:
        IndividualSettings(methods=("condensed", "paper-top"))
    assert "unknown method 'paper-top'" in str(caught.value)
    assert all(name in str(caught.value) for name in METHODS)


@pytest.mark.parametrize("name", ["condensed-eq9", "condensed-eq9-frozen", "scratch", "paper-front-individual"])
def test_own_blocks_in_front_are_refused_where_the_learngene_takes_the_image(name: str) -> None:
    with pytest.raises(ValidationError, match=f"no place in the method '{name}'"):
        IndividualSettings(methods=("condensed", name), own_front=(8, 16))
    assert IndividualSettings(methods=("condensed", name), own_back=(8,)).own_layers == OwnLayers(back=(8,))


def test_own_layers_are_what_the_settings_say() -> None:
    settings = IndividualSettings(methods=("condensed", "paper-middle"), own_front=(8, 16), own_back=(), hidden=5)
    assert settings.own_layers == OwnLayers((8, 16), (), 5)
    for wrong in ({"own_front": (0,)}, {"own_back": (8, 5000)}, {"hidden": 0}, {"own_back": (8,) * 25}):
        with pytest.raises(ValidationError):
            IndividualSettings.model_validate({"methods": ("paper",), **wrong})
