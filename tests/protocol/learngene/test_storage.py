"""How a blob holds a learngene: rounding against torch's own, stated error bounds, sizes, and what is too large."""

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol.encoding import blob
from protocol.encoding.blob import Dtype
from protocol.errors import MalformedError, NonFiniteError
from protocol.learngene import storage
from protocol.learngene.architecture import Architecture
from protocol.learngene.learngene import Learngene
from tests.protocol.parties import architecture, learngene

DTYPES: tuple[Dtype, ...] = get_args(Dtype)
WEIGHT = "block.0.conv.weight"
FISHER = f"fisher.{WEIGHT}"
#: Largest relative error of a value that is no subnormal: half of the last binary digit.
RELATIVE = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}
_FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def stored_as(dtype: Dtype, seed: int = 0) -> Learngene:
    """A learngene of random weights of both signs."""
    made = learngene(seed)
    rng = np.random.default_rng(seed)
    tensors = dict(made.tensors)
    for number in range(len(made.architecture.blocks)):
        name = f"block.{number}.conv.weight"
        tensors[name] = rng.standard_normal(tensors[name].shape).astype(np.float32)
        tensors[f"fisher.{name}"] = (10.0 ** rng.uniform(-12, 0, tensors[name].shape)).astype(np.float32)
    return replace(made, architecture=of_dtype(dtype), tensors=tensors)


def of_dtype(dtype: Dtype) -> Architecture:
    return architecture().model_copy(update={"dtype": dtype})


def there_and_back(made: Learngene) -> dict[str, NDArray[np.float32]]:
    return storage.decode(made.architecture, storage.encode(made.architecture, made.tensors), fisher=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_learngene_comes_back_as_float32_within_the_bound_of_its_dtype(dtype: Dtype) -> None:
    made = stored_as(dtype)
    back = there_and_back(made)
    Learngene(made.architecture, back, made.fisher)  # the same names, shapes and order, all float32
    assert list(back) == sorted(made.tensors)
    for name, array in made.tensors.items():
        if array.ndim == 1:
            np.testing.assert_array_equal(back[name], array, strict=True)
        elif name.startswith("fisher."):
            bound = RELATIVE["float32" if dtype == "float32" else "bfloat16"]
            assert (np.abs(back[name] - array) <= bound * array).all()
        elif dtype == "int8":  # half a step of the channel's own scale, and the rounding of the product
            bound = np.abs(array).max((1, 2, 3), keepdims=True) / 127 * (0.5 + 1e-5)
            assert (np.abs(back[name] - array) <= bound).all()
            assert not np.array_equal(back[name], array)
        else:
            assert (np.abs(back[name] - array) <= np.maximum(RELATIVE[dtype] * np.abs(array), 2.0**-25)).all()
            assert np.array_equal(back[name], array) == (dtype == "float32")


@pytest.mark.parametrize(("dtype", "torchs"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
@given(values=st.lists(_FINITE | st.sampled_from([0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11]), min_size=1))
def test_sixteen_bits_are_rounded_as_torch_rounds_them(dtype: Dtype, torchs: torch.dtype, values: list[float]) -> None:
    """To the nearest, ties to even. What becomes infinite there is refused here."""
    made = learngene()
    weights = np.resize(np.array(values, np.float32), made.tensors[WEIGHT].shape)
    rounded = torch.from_numpy(weights).to(torchs).float().numpy()
    made = Learngene(of_dtype(dtype), {**made.tensors, WEIGHT: weights}, made.fisher)
    if np.isfinite(rounded).all():
        np.testing.assert_array_equal(there_and_back(made)[WEIGHT].view(np.uint32), rounded.view(np.uint32))
    else:
        with pytest.raises(NonFiniteError, match=WEIGHT):
            there_and_back(made)


def test_what_was_rounded_once_stays_as_it_is() -> None:
    for dtype in ("bfloat16", "float16"):
        made = stored_as(dtype)
        once = there_and_back(made)
        again = there_and_back(replace(made, tensors=once))
        for name, array in once.items():
            np.testing.assert_array_equal(again[name], array)


def test_the_size_is_the_one_that_the_architecture_says() -> None:
    sizes = {}
    for dtype in DTYPES:
        made = stored_as(dtype)
        data = storage.encode(made.architecture, made.tensors)
        assert len(data) == storage.encoded_size(made.architecture, fisher=True)
        sizes[dtype] = len(data)
    assert sizes["int8"] < sizes["float16"] == sizes["bfloat16"] < sizes["float32"]
    weights = sum(array.size for name, array in made.tensors.items() if array.ndim == 4)  # Fisher entries included
    assert sizes["float32"] - sizes["bfloat16"] == pytest.approx(2 * weights, abs=64)


@pytest.mark.parametrize(
    ("dtype", "name", "value"),
    [
        ("float16", WEIGHT, 65520.0),
        ("float16", WEIGHT, -1e6),
        ("bfloat16", WEIGHT, 3.4e38),
        ("int8", WEIGHT, math.inf),
        ("float16", FISHER, 3.4e38),
        ("int8", FISHER, 3.4e38),
    ],
)
def test_a_value_that_its_dtype_cannot_hold_is_refused(dtype: Dtype, name: str, value: float) -> None:
    made = stored_as(dtype)
    tensors = {**made.tensors, name: made.tensors[name].copy()}
    tensors[name].reshape(-1)[3] = 60000.0
    storage.encode(made.architecture, tensors)
    tensors[name].reshape(-1)[3] = value
    with pytest.raises(NonFiniteError, match=rf"{name}.*blob_dtype"):
        storage.encode(made.architecture, tensors)
    if math.isfinite(value):
        storage.encode(of_dtype("float32"), tensors)


def test_channels_of_zeros_and_of_the_smallest_values_have_a_scale() -> None:
    made = stored_as("int8")
    weights = made.tensors[WEIGHT].copy()
    weights[0], weights[1] = 0, np.finfo(np.float32).smallest_subnormal
    back = there_and_back(replace(made, tensors={**made.tensors, WEIGHT: weights}))[WEIGHT]
    assert (back[0] == 0).all()
    assert (np.abs(back[1]) < 1e-37).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_allow_list_is_read(dtype: Dtype) -> None:
    """Each tensor left out, in another dtype, and one beyond."""
    made = stored_as(dtype)
    held = blob.decode(storage.encode(made.architecture, made.tensors))
    storage.decode(made.architecture, blob.encode(held), fisher=True)
    others = {np.dtype(kind) for kind in (np.float32, np.float16, np.uint16, np.int8)}
    for name, array in held.items():
        rest = {other: value for other, value in held.items() if other != name}
        wrong = [rest, *(rest | {name: array.astype(kind)} for kind in others - {array.dtype})]
        for content in wrong:
            with pytest.raises(MalformedError, match="allows"):
                storage.decode(made.architecture, blob.encode(content), fisher=True)
    beyond = {"scale.block.0.norm.weight": np.ones(4, np.float32)}
    with pytest.raises(MalformedError, match="allows"):
        storage.decode(made.architecture, blob.encode(held | beyond), fisher=True)
    for other in set(DTYPES) - {dtype}:
        with pytest.raises(MalformedError, match="allows"):
            storage.decode(of_dtype(other), blob.encode(held), fisher=True)
