"""Tests of the architecture: what it allows, what it refuses, and that its JSON says everything."""

from itertools import combinations
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError

from protocol.learngene.architecture import MOST_BLOCKS, Architecture, Block, BlockRole, Form, InputContract
from protocol.learngene.learngene import FisherDescription, Learngene

INPUT = InputContract(height=32, width=32, channels=3)
STEM = Block(role="stem", in_channels=3, out_channels=4, pool=True)
TOP = Block(role="top", in_channels=4, out_channels=6, pool=False)


def test_the_allow_list_is_sorted_and_complete() -> None:
    allowed = Architecture(form="condensed", input=INPUT, blocks=(STEM, TOP)).tensors(fisher=True)
    assert list(allowed) == sorted(allowed)
    assert allowed["block.0.conv.weight"] == ("weight", (4, 3, 3, 3))
    assert allowed["block.1.norm.running_var"] == ("statistic", (6,))
    assert allowed["fisher.block.1.norm.bias"] == ("fisher", (6,))
    assert allowed["input.mean"] == ("input", (3,))
    assert len(allowed) == 2 * (5 + 3) + 2
    assert "fisher.block.0.norm.running_mean" not in allowed


def test_without_a_fisher_diagonal_none_is_allowed() -> None:
    allowed = Architecture(form="condensed", input=INPUT, blocks=(STEM,)).tensors(fisher=False)
    assert not any(name.startswith("fisher") for name in allowed)


def test_a_block_with_group_norm_has_no_statistics() -> None:
    blocks = tuple(block.model_copy(update={"norm": "group"}) for block in (STEM, TOP))
    allowed = Architecture(form="condensed", input=INPUT, blocks=blocks).tensors(fisher=True)
    assert not any(role == "statistic" or "running" in name for name, (role, _) in allowed.items())
    assert len(allowed) == 2 * (3 + 3) + 2
    mixed = Architecture(form="condensed", input=INPUT, blocks=(blocks[0], TOP)).tensors(fisher=False)
    assert {name for name, (role, _) in mixed.items() if role == "statistic"} == {
        "block.1.norm.running_mean", "block.1.norm.running_var"
    }  # fmt: skip


def test_blocks_that_do_not_fit_are_refused_and_both_widths_are_named() -> None:
    with pytest.raises(ValidationError, match="4 channels meet a block that expects 5"):
        Architecture(form="condensed", input=INPUT, blocks=(STEM, TOP.model_copy(update={"in_channels": 5})))


def blocks(*roles: BlockRole, channels: int = 3) -> tuple[Block, ...]:
    """A chain with these roles that takes ``channels`` and gives 4 from its first block on."""
    return tuple(
        Block(role=role, in_channels=4 if number else channels, out_channels=4, pool=False)
        for number, role in enumerate(roles)
    )


def test_a_condensed_learngene_is_a_stem_from_the_image_on_and_then_top_blocks() -> None:
    Architecture(form="condensed", input=INPUT, blocks=blocks("stem", "stem", "top"))
    with pytest.raises(ValidationError, match="image's channels"):
        Architecture(form="condensed", input=INPUT, blocks=(TOP,))
    wrong: list[tuple[BlockRole, ...]] = [("top", "stem"), ("stem", "middle"), ("front", "top")]
    for roles in wrong:
        with pytest.raises(ValidationError, match="a stem and then top blocks"):
            Architecture(form="condensed", input=INPUT, blocks=blocks(*roles))


@pytest.mark.parametrize(
    ("form", "allowed"),
    [
        ("paper", {"front", "middle", "top"}),
        ("paper-middle", {"middle"}),
        ("paper-front", {"front"}),
    ],
)
def test_a_form_of_the_collectives_own_layers_allows_its_positions_and_no_other(form: Form, allowed: set[str]) -> None:
    for role in get_args(BlockRole):
        if role in allowed:
            made = Architecture(form=form, input=INPUT, blocks=blocks(role, role))
            assert Architecture.model_validate_json(made.model_dump_json()) == made
        else:
            with pytest.raises(ValidationError, match=f"in the form {form} holds blocks of one role"):
                Architecture(form=form, input=INPUT, blocks=blocks(role, role))


@pytest.mark.parametrize("form", ["paper", "paper-middle", "paper-front"])
def test_layers_from_two_positions_are_no_learngene(form: Form) -> None:
    for first, second in combinations(get_args(BlockRole), 2):
        with pytest.raises(ValidationError, match="of one role"):
            Architecture(form=form, input=INPUT, blocks=blocks(first, second))


def test_only_front_layers_must_take_the_images_channels() -> None:
    forms: list[Form] = ["paper", "paper-front"]
    for form in forms:
        with pytest.raises(ValidationError, match="a front learngene must take the image's channels"):
            Architecture(form=form, input=INPUT, blocks=blocks("front", channels=8))
    positions: list[BlockRole] = ["middle", "top"]
    for role in positions:
        Architecture(form="paper", input=INPUT, blocks=blocks(role, channels=8))


def test_blocks_cannot_pool_more_often_than_the_image_can_be_halved() -> None:
    pooling = [block.model_copy(update={"pool": True}) for block in blocks(*["top"] * 6)]
    Architecture(form="paper", input=INPUT, blocks=tuple(pooling[:5]))
    with pytest.raises(ValidationError, match="pool more often"):
        Architecture(form="paper", input=INPUT, blocks=tuple(pooling))


def test_a_learngene_has_an_end() -> None:
    for count in (0, MOST_BLOCKS + 1):
        with pytest.raises(ValidationError, match="item"):
            Architecture(form="paper", input=INPUT, blocks=blocks(*["top"] * count))


def test_json_and_back_is_the_same_architecture() -> None:
    architecture = Architecture(form="condensed", input=INPUT, blocks=(STEM, TOP))
    assert Architecture.model_validate_json(architecture.model_dump_json()) == architecture


@pytest.mark.parametrize("change", ["missing", "shape", "dtype"])
def test_a_learngene_whose_tensors_do_not_fit_cannot_be_made(change: str) -> None:
    architecture = Architecture(form="paper", input=INPUT, blocks=(TOP,))
    fisher = FisherDescription(source="collective", estimator="exact", samples=2000, clip_micro=0)
    tensors = {n: np.ones(shape, np.float32) for n, (_, shape) in architecture.tensors(fisher=True).items()}
    Learngene(architecture, tensors, fisher)
    if change == "missing":
        del tensors["fisher.block.0.norm.bias"]
    elif change == "shape":
        tensors["input.std"] = np.ones(4, np.float32)
    else:
        tensors["input.std"] = np.ones(3, np.float64)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"fisher\.block\.0\.norm\.bias|input\.std"):
        Learngene(architecture, tensors, fisher)
