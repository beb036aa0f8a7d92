"""The check of values, which looks at each tensor in one pass, against one that looks at every value by itself."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol.errors import NonFiniteError
from protocol.exchange.blob_content import check_values
from tests.protocol.parties import architecture, learngene

ARCHITECTURE = architecture()
SHAPES = {name: shape for name, (_, shape) in ARCHITECTURE.tensors(fisher=True).items()}
LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
# Every bit pattern, and the ones at which a fast check could go wrong more often than chance would draw them.
EDGES = (math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, LARGEST, -LARGEST, SMALLEST, -SMALLEST, 1e30, -1e30, -1.0)
VALUES = st.sampled_from(EDGES) | st.floats(width=32)


def plainly_refused(tensors: dict[str, NDArray[np.float32]]) -> bool:
    """The same question, one value at a time."""
    for name, array in tensors.items():
        for value in map(float, array.reshape(-1)):
            if not math.isfinite(value):
                return True
            if (name.startswith("fisher.") or name.endswith(".running_var")) and value < 0:
                return True
            if name == "input.std" and value <= 0:
                return True
    return False


def refused(tensors: dict[str, NDArray[np.float32]]) -> bool:
    try:
        check_values(ARCHITECTURE, tensors)
    except NonFiniteError:
        return True
    return False


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(sorted(SHAPES)), st.integers(0, 2**16), VALUES), max_size=4))
def test_refuses_exactly_what_a_plain_check_refuses(changes: list[tuple[str, int, float]]) -> None:
    tensors = {name: array.copy() for name, array in learngene().tensors.items()}
    for name, place, value in changes:
        tensors[name].flat[place % tensors[name].size] = value
    assert refused(tensors) == plainly_refused(tensors)


@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7F800001, 0x7FC00000, 0xFF800001, 0xFFFFFFFF])
@pytest.mark.parametrize("name", ["block.0.conv.weight", "fisher.block.0.conv.weight", "block.1.norm.running_var"])
def test_finds_one_value_that_is_not_finite_wherever_it_stands(name: str, bits: int) -> None:
    """Vector instructions treat the first and the last values of an array in their own ways."""
    tensors = {other: array.copy() for other, array in learngene().tensors.items()}
    for place in range(tensors[name].size):
        sound = tensors[name].flat[place]
        tensors[name].reshape(-1).view(np.uint32)[place] = bits
        with pytest.raises(NonFiniteError):
            check_values(ARCHITECTURE, tensors)
        tensors[name].flat[place] = sound
    check_values(ARCHITECTURE, tensors)


def test_large_values_that_are_finite_are_accepted() -> None:
    """Their squares overflow, and so does their sum."""
    tensors = dict(learngene().tensors)
    tensors["block.1.conv.weight"] = np.full(SHAPES["block.1.conv.weight"], LARGEST, np.float32)
    check_values(ARCHITECTURE, tensors)
    tensors["block.1.conv.weight"] = np.full(SHAPES["block.1.conv.weight"], -LARGEST, np.float32)
    check_values(ARCHITECTURE, tensors)
