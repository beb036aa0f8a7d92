"""Tests of blocks as modules: grouped networks are independent, and a learngene's tensors arrive where they belong."""

import numpy as np
import pytest
import torch

from protocol.learngene.architecture import Architecture, Block, InputContract, groups_of
from protocol.learngene.network import (
    ConvolutionBlock,
    block_tensors,
    build_blocks,
    describe,
    initialise,
    layers_of,
    load_blocks,
)

BLOCKS = (
    Block(role="stem", in_channels=3, out_channels=4, pool=True),
    Block(role="top", in_channels=4, out_channels=6, pool=False),
)
GROUPED = (
    Block(role="stem", in_channels=3, out_channels=8, pool=True, norm="group"),
    Block(role="top", in_channels=8, out_channels=6, pool=False, norm="group"),
)


def filled(seed: int, blocks: tuple[Block, ...] = BLOCKS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    architecture = Architecture(form="condensed", input=InputContract(height=8, width=8, channels=3), blocks=blocks)
    return {
        name: rng.uniform(0.2, 1, shape).astype(np.float32)
        for name, (role, shape) in architecture.tensors(fisher=False).items()
        if role != "input"
    }


@pytest.mark.parametrize("blocks", [BLOCKS, GROUPED])
@pytest.mark.parametrize("training", [False, True])
def test_networks_side_by_side_are_independent(training: bool, blocks: tuple[Block, ...]) -> None:
    joint = build_blocks(blocks, networks=2).train(training)
    singles = [build_blocks(blocks).train(training) for _ in range(2)]
    for index, single in enumerate(singles):
        load_blocks(layers_of(single), filled(index, blocks))
    with torch.no_grad():
        for name, tensor in block_tensors(layers_of(joint)).items():
            tensor.copy_(torch.cat([block_tensors(layers_of(single))[name] for single in singles]))
    x = torch.randn(5, 6, 8, 8)
    found = joint(x)
    for index, single in enumerate(singles):
        torch.testing.assert_close(
            found[:, 6 * index : 6 * index + 6], single(x[:, 3 * index : 3 * index + 3]), rtol=1e-4, atol=1e-5
        )


def test_with_group_norm_no_image_changes_another_and_nothing_is_kept_of_any() -> None:
    """The control is BatchNorm, which does both."""
    x, others = torch.randn(3, 3, 8, 8), torch.randn(5, 3, 8, 8)
    for blocks, independent in ((GROUPED, True), (BLOCKS, False)):
        chain = build_blocks(blocks).train()
        assert torch.allclose(chain(x), chain(torch.cat([x, others]))[:3], atol=1e-5) == independent
        assert (not list(chain.buffers())) == independent
        assert [block.describe("top").norm for block in layers_of(chain)] == [block.norm for block in blocks]


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (4, 1), (7, 1), (8, 2), (12, 3), (31, 1), (32, 8), (64, 16), (96, 16), (100, 10)]
)
def test_groups_are_equally_large_and_hold_four_channels_at_least(channels: int, groups: int) -> None:
    """A group of one channel, on a map of one position, is zero whatever the image."""
    assert groups_of(channels) == groups
    block = build_blocks([Block(role="top", in_channels=1, out_channels=channels, pool=False, norm="group")])
    if channels >= 4:
        assert float(block(torch.randn(2, 1, 1, 1)).detach().abs().sum()) > 0


def test_a_learngene_fills_every_network() -> None:
    joint = build_blocks(BLOCKS, networks=3)
    tensors = filled(0)
    load_blocks(layers_of(joint), tensors)
    for name, tensor in block_tensors(layers_of(joint)).items():
        for part in tensor.detach().chunk(3):
            np.testing.assert_array_equal(part.numpy(), tensors[name])


def test_a_tensor_of_another_shape_is_refused_and_both_shapes_are_named() -> None:
    tensors = filled(0)
    tensors["block.1.conv.weight"] = np.ones((6, 5, 3, 3), np.float32)
    with pytest.raises(ValueError, match=r"\(6, 5, 3, 3\), the network \(6, 4, 3, 3\)"):
        load_blocks(layers_of(build_blocks(BLOCKS)), tensors)


def test_initial_weights_have_the_variance_of_he_and_come_from_the_generator() -> None:
    def drawn(seed: int) -> torch.Tensor:
        chain = build_blocks([Block(role="stem", in_channels=32, out_channels=128, pool=False)])
        initialise(chain, torch.Generator().manual_seed(seed))
        return layers_of(chain)[0].conv.weight.detach()

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert float(drawn(1).var()) == pytest.approx(2 / (32 * 9), rel=0.05)


def test_an_architecture_is_described_in_a_line() -> None:
    contract = InputContract(height=8, width=8, channels=3)
    assert describe(Architecture(form="condensed", input=contract, blocks=BLOCKS)) == "3 -> 4p | 6"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_before_relu_is_pooling_after_it(dtype: torch.dtype) -> None:
    """With the same gradients, also where the largest value of a window occurs twice in it."""
    torch.manual_seed(0)
    block = ConvolutionBlock(3, 4, pool=True).to(dtype).eval()
    # Few different values: many windows hold their largest one more than once.
    x = (torch.randn(8, 3, 12, 12) * 2).round().to(dtype)
    block.conv.weight.data = block.conv.weight.data.mul(8).round()
    given = [x.clone().requires_grad_() for _ in range(2)]
    plain = torch.nn.functional.max_pool2d(torch.relu(block.norm(block.conv(given[0]))), 2)
    ours = block(given[1])
    upstream = torch.randn(ours.shape).to(dtype)
    gradients = [torch.autograd.grad(y, start, upstream)[0] for y, start in zip((plain, ours), given, strict=True)]
    assert torch.equal(plain, ours)
    assert torch.equal(*gradients)
    tied = torch.nn.functional.unfold(block.norm(block.conv(x)).float(), 2, stride=2).view(8, 4, 4, -1).sort(2)[0]
    assert (tied[:, :, -1] == tied[:, :, -2]).any()
