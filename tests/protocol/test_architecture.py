"""Tests of the architecture: what it allows, what it refuses, and that its JSON says everything."""

import numpy as np
import pytest
from pydantic import ValidationError

from protocol.architecture import Architecture, Block, InputContract
from protocol.learngene import FisherDescription, Learngene

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


def test_blocks_that_do_not_fit_are_refused_and_both_widths_are_named() -> None:
    with pytest.raises(ValidationError, match="4 channels meet a block that expects 5"):
        Architecture(form="condensed", input=INPUT, blocks=(STEM, TOP.model_copy(update={"in_channels": 5})))


def test_a_condensed_learngene_starts_at_the_image_and_the_papers_holds_top_blocks_only() -> None:
    with pytest.raises(ValidationError, match="image's channels"):
        Architecture(form="condensed", input=INPUT, blocks=(TOP,))
    with pytest.raises(ValidationError, match="top blocks only"):
        Architecture(form="paper", input=INPUT, blocks=(STEM, TOP))


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
