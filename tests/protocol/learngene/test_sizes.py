"""Sizes of a learngene: which networks they are, descent by identities, and hostile architectures."""

import dataclasses
import json
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from protocol.encoding.blob import MAX_TENSORS
from protocol.errors import InputError
from protocol.learngene import storage
from protocol.learngene.architecture import (
    MOST_SIZES,
    Architecture,
    Block,
    BlockRole,
    InputContract,
    Size,
    SizeName,
    SizeWeights,
    sized_blocks,
)
from protocol.learngene.learngene import FisherDescription, Learngene
from protocol.learngene.network import build_blocks
from protocol.learngene.sizes import descend, largest_size
from tests.protocol.learngene.forward import features

FISHER = FisherDescription(source="collective", estimator="sampled", samples=1024, clip_micro=0)
SIZES: tuple[SizeName, ...] = ("x0.25", "x0.5-shallow", "x0.5", "x1-shallow")
EVERY: tuple[Size, ...] = (*SIZES, "full")
ALL_NAMES: tuple[SizeName, ...] = get_args(SizeName)


def block(role: BlockRole, before: int, after: int, *, pool: bool) -> Block:
    return Block(role=role, in_channels=before, out_channels=after, pool=pool)


#: The fifth and sixth neither pool nor change the channels; only the first of them is not its role's last.
BLOCKS = (
    block("stem", 3, 8, pool=True),
    block("stem", 8, 16, pool=False),
    block("top", 16, 24, pool=True),
    block("top", 24, 24, pool=True),
    block("top", 24, 24, pool=False),
    block("top", 24, 24, pool=False),
)


def made_architecture(
    sizes: tuple[SizeName, ...] = SIZES, weights: SizeWeights = "nested", **more: object
) -> Architecture:
    contract = InputContract(height=16, width=16, channels=3)
    fields = {"form": "condensed", "input": contract, "blocks": BLOCKS, "sizes": sizes, "size_weights": weights} | more
    return Architecture(**fields)  # type: ignore[arg-type]


def made(architecture: Architecture, fisher: bool = True) -> Learngene:
    rng = np.random.default_rng(0)
    tensors = {
        name: (rng.standard_normal(shape) if name.endswith("conv.weight") else rng.uniform(0.5, 1, shape))
        for name, (_, shape) in architecture.tensors(fisher=fisher).items()
    }
    arrays = {
        n: np.abs(t).astype(np.float32) if n.startswith("fisher") else t.astype(np.float32) for n, t in tensors.items()
    }
    return Learngene(architecture, arrays, FISHER if fisher else None)


def by_hand(learngene: Learngene, size: SizeName, x: Tensor) -> Tensor:
    """The forward pass of a size, straight from the definition: slices, the size's own statistics, blocks left out."""
    whole, number = learngene.architecture, learngene.architecture.sizes.index(size)
    share, shallow = float(size[1:].split("-")[0]), size.endswith("-shallow")
    for index, one in enumerate(whole.blocks):
        if shallow and index == 4:
            continue
        channels = int(share * one.out_channels)
        kernel = torch.from_numpy(learngene.tensors[f"block.{index}.conv.weight"].copy())[:channels, : x.shape[1]]
        weight, bias, mean, variance = (
            torch.from_numpy(learngene.tensors[f"size.{number}.block.{index}.norm.{name}"].copy())[:, None, None]
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        x = nn.functional.conv2d(x, kernel, padding=1)
        x = ((x - mean) / (variance + 1e-5).sqrt() * weight + bias).clamp(min=0)
        x = nn.functional.max_pool2d(x, 2) if one.pool else x
    return x


def test_the_full_size_is_the_learngene_without_sizes() -> None:
    learngene = made(made_architecture())
    full = descend(learngene, "full")
    assert full.architecture == made_architecture(())
    for name, array in full.tensors.items():
        np.testing.assert_array_equal(array, learngene.tensors[name])
    plain = made(made_architecture(()))
    assert descend(plain, "full") == plain
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(features(full, x), features(learngene, x))


@pytest.mark.parametrize("size", SIZES)
def test_a_descended_network_computes_what_the_sliced_one_computes(size: SizeName) -> None:
    learngene = made(made_architecture())
    x = torch.randn(3, 3, 16, 16)
    found, wanted = features(descend(learngene, size), x), by_hand(learngene, size, x)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", EVERY)
def test_a_size_has_as_many_weights_as_its_architecture_says(size: Size) -> None:
    learngene = made(made_architecture())
    small = descend(learngene, size)
    network = build_blocks(small.architecture.blocks)
    assert small.architecture.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert small.architecture == learngene.architecture.of_size(size)
    assert not small.architecture.sizes


@pytest.mark.parametrize("size", SIZES)
def test_the_fisher_diagonal_of_a_size_is_the_wholes_at_its_weights(size: SizeName) -> None:
    learngene = made(made_architecture())
    small = descend(learngene, size)
    assert small.fisher == learngene.fisher
    for number, index in enumerate(sized_blocks(BLOCKS, size)):
        for name in ("conv.weight", "norm.weight", "norm.bias"):
            ours = small.tensors[f"fisher.block.{number}.{name}"]
            theirs = learngene.tensors[f"fisher.block.{index}.{name}"]
            np.testing.assert_array_equal(ours, theirs[tuple(slice(side) for side in ours.shape)])
    assert descend(made(made_architecture(), fisher=False), size).fisher is None


@pytest.mark.parametrize("size", SIZES)
def test_a_size_with_weights_of_its_own_has_nothing_of_the_wholes(size: SizeName) -> None:
    learngene = made(made_architecture(form="direct", weights="own"))
    small = descend(learngene, size)
    changed = {
        name: array + 1 if name.startswith(("block.", "fisher.")) else array
        for name, array in learngene.tensors.items()
    }
    again = descend(dataclasses.replace(learngene, tensors=changed), size)
    assert small.fisher is None
    for name, array in small.tensors.items():
        np.testing.assert_array_equal(array, again.tensors[name])


def test_a_shallow_size_leaves_out_what_neither_pools_nor_changes_the_channels_but_a_roles_last() -> None:
    assert list(sized_blocks(BLOCKS, "x1-shallow")) == [0, 1, 2, 3, 5]
    assert list(sized_blocks(BLOCKS, "x0.5")) == [0, 1, 2, 3, 4, 5]
    positions = {size: features(descend(made(made_architecture()), size), torch.randn(1, 3, 16, 16)) for size in EVERY}
    assert {found.shape[2:] for found in positions.values()} == {torch.Size([2, 2])}


@pytest.mark.parametrize("size", ALL_NAMES)
def test_every_size_has_first_channels_at_least_one_and_the_images_own(size: SizeName) -> None:
    for blocks in (BLOCKS, (block("stem", 3, 1, pool=True), block("top", 1, 2, pool=False))):
        found = sized_blocks(blocks, size)
        before = 3
        for index, one in found.items():
            assert one.in_channels == before
            assert 1 <= one.out_channels <= blocks[index].out_channels
            assert (one.role, one.pool) == (blocks[index].role, blocks[index].pool)
            before = one.out_channels
        assert {one.role for one in found.values()} == {"stem", "top"}


def test_the_largest_size_below_a_number_of_weights() -> None:
    architecture = made_architecture()
    counts = {size: architecture.of_size(size).parameters for size in EVERY}
    assert list(counts.values()) == sorted(counts.values())
    for size, count in counts.items():
        assert largest_size(architecture, count) == size
        smaller = [other for other in EVERY if counts[other] < count]
        if smaller:
            assert largest_size(architecture, count - 1) == smaller[-1]
    with pytest.raises(InputError, match=f"{counts['x0.25']:,} weights"):
        largest_size(architecture, counts["x0.25"] - 1)
    with pytest.raises(InputError, match=r"x0\.7"):
        descend(made(architecture), "x0.7")


@pytest.mark.parametrize("weights", ["nested", "own"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_sizes_survive_the_blob_and_the_signed_description(weights: SizeWeights, dtype: str) -> None:
    architecture = made_architecture(weights=weights, dtype=dtype, form="direct")
    assert Architecture.model_validate_json(architecture.model_dump_json()) == architecture
    learngene = made(architecture)
    data = storage.encode(architecture, learngene.tensors)
    assert len(data) == storage.encoded_size(architecture, fisher=True)
    back = Learngene(architecture, storage.decode(architecture, data, fisher=True), FISHER)
    for size in EVERY:
        small, wanted = descend(back, size), descend(learngene, size)
        for name, array in small.tensors.items():
            if dtype == "float32" or array.ndim == 1:
                np.testing.assert_array_equal(array, wanted.tensors[name])
    nested = storage.encoded_size(made_architecture(dtype=dtype), fisher=True)
    assert (len(data) > nested) == (weights == "own")


def _deep(blocks: int, weights: SizeWeights = "nested") -> Architecture:
    chain = [block("stem", 3, 32, pool=True), *(block("top", 32, 32, pool=False) for _ in range(blocks - 1))]
    return made_architecture(("x0.25", "x0.35", "x0.5", "x0.6", "x0.7", "x0.85"), weights, blocks=tuple(chain))


def _hostile(**fields: object) -> dict[str, object]:
    return made_architecture().model_dump(mode="json") | fields


@pytest.mark.parametrize(
    "fields",
    [
        {"sizes": ["x0.5", "x0.25"]},  # unsorted
        {"sizes": ["x0.25", "x0.25"]},
        {"sizes": ["x1"]},
        {"sizes": ["full"]},
        {"sizes": ["x2"]},  # more channels than the blocks have
        {"sizes": ["x0.3"]},
        {"sizes": ["x0.5-nopool"]},
        {"sizes": [{"name": "x0.5", "channels": [4096]}]},
        {"sizes": "x0.5"},
        {"sizes": ["x0.25"] * (MOST_SIZES + 1)},
        {"size_weights": "theirs"},
        {"sizes": [], "size_weights": "own"},
        {"form": "whole"},
        {"form": "direct-inherited"},
        {"form": "paper", "blocks": [made_architecture().model_dump(mode="json")["blocks"][5]], "sizes": ["x0.5"]},
        # The shallow size of a network that has nothing to leave out is the whole.
        {"blocks": made_architecture().model_dump(mode="json")["blocks"][:3], "sizes": ["x1-shallow"]},
        {"blocks": [one | {"norm": "group"} for one in made_architecture().model_dump(mode="json")["blocks"]]},
    ],
)
def test_hostile_sizes_are_refused(fields: dict[str, Any]) -> None:
    Architecture.model_validate_json(json.dumps(_hostile()))
    with pytest.raises(ValidationError):
        Architecture.model_validate_json(json.dumps(_hostile(**fields)))


def test_more_tensors_than_a_blob_holds_are_refused() -> None:
    fitting = _deep(7)
    assert len(fitting.stored(fisher=True)) <= MAX_TENSORS
    storage.encoded_size(fitting, fisher=True)
    for blocks, weights in ((9, "nested"), (7, "own")):
        with pytest.raises(ValidationError, match=str(MAX_TENSORS)):
            _deep(blocks, "own" if weights == "own" else "nested")
