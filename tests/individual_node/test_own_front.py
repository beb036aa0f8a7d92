"""Tests of the individual's own front layers: filters out of patches, and the fit to what inherited layers expect."""

import pytest
import torch
from torch import Tensor, nn

from individual_node.floor import contrast_normalised, whitening
from individual_node.front_start import patch_kernels, start_with_patches
from individual_node.reconstruction import IndividualNetworks, reconstruct
from individual_node.statistics_matching import StatisticsMatching
from protocol.learngene.network import ConvolutionBlock, layers_of
from tests.individual_node.made import WAYS, adapted, generators, images, learngene, task


def test_kernels_are_whitened_patches_with_both_signs() -> None:
    pictures = torch.rand(6, 3, 12, 12)
    kernels = patch_kernels(pictures, 7, torch.Generator().manual_seed(0))
    assert kernels.shape == (7, 3, 3, 3)
    torch.testing.assert_close(kernels.flatten(1).norm(dim=1), torch.full((7,), 2**0.5))
    torch.testing.assert_close(kernels[4:], -kernels[:3])
    every = contrast_normalised(nn.functional.unfold(pictures, 3).transpose(1, 2).flatten(0, 1))
    mean, matrix = whitening(every)
    # Undo the whitening of a filter: what is left points from the mean to one of the patches.
    patches = nn.functional.normalize((every - mean) @ matrix @ matrix, dim=1)
    closest = (nn.functional.normalize(kernels[:4].flatten(1), dim=1) @ patches.T).amax(1)
    assert (closest > 0.98).all()


def test_each_network_begins_with_patches_of_its_own_task_and_the_rest_stays() -> None:
    gene = learngene("paper")
    tasks, data = [task(0), task(1)], images()
    model = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start_with_patches(model, tasks, data, generators(2, 3))
    kernels = [
        patch_kernels(data.batch(torch.from_numpy(one.support))[0], 1, g)
        for one, g in zip(tasks, generators(2, 3), strict=True)
    ]
    assert layers_of(model.blocks)[0].conv.out_channels == 2
    for name, value in model.state_dict().items():
        assert torch.equal(value, torch.cat(kernels) if name == "blocks.0.conv.weight" else before[name])


@pytest.mark.parametrize("form", ["condensed", "paper-front"])
def test_inherited_layers_that_take_the_image_keep_their_filters(form: str) -> None:
    name = "condensed-eq9" if form == "condensed" else form
    plain, patches = (adapted(name, 0, own_front_start=start).networks.state_dict() for start in ("random", "patches"))
    assert all(torch.equal(value, patches[part]) for part, value in plain.items())
    other = adapted("paper", 0, own_front_start="patches").networks.state_dict()
    assert not torch.equal(
        adapted("paper", 0).networks.state_dict()["blocks.0.conv.weight"], other["blocks.0.conv.weight"]
    )


def by_hand(model: IndividualNetworks, index: int, x: Tensor) -> Tensor:
    """The distance of one network by itself, in evaluation mode: layer by layer and channel by channel."""
    front, inherited, _ = model.network(index).parts()
    x = front(x)
    total = torch.zeros(())
    for block in inherited:
        response, norm = block.conv(x), block.norm
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        terms = []
        for channel in range(response.shape[1]):
            deviation = (norm.running_var[channel] + norm.eps).sqrt()
            values = response[:, channel]
            shift = (values.mean() - norm.running_mean[channel]) / deviation
            spread = (((values - values.mean()).square().mean() + norm.eps).sqrt()) / deviation - 1
            terms.append(shift.square() + spread.square())
        total = total + torch.stack(terms).mean()
        x = block(x)
    return total


def test_the_distance_is_summed_over_layers_and_networks_and_each_network_gets_its_own_gradient() -> None:
    gene = learngene("paper")
    model = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0, 1)).eval()
    matching = StatisticsMatching(model.inherited)
    x = torch.randn(9, 6, 16, 16)
    model(x)
    total = matching()
    parts = [by_hand(model, index, part) for index, part in enumerate(x.chunk(2, 1))]
    torch.testing.assert_close(total, parts[0] + parts[1])
    weight = layers_of(model.blocks)[0].conv.weight
    (joint,) = torch.autograd.grad(total, [weight])
    assert joint.abs().max() > 0
    single = model.network(1)
    alone = StatisticsMatching(single.side_by_side.inherited)
    single.side_by_side(x[:, 3:])
    first = layers_of(single.side_by_side.blocks)[0].conv.weight
    (by_itself,) = torch.autograd.grad(alone(), [first])
    torch.testing.assert_close(joint.chunk(2)[1], by_itself)


def test_statistics_that_are_met_are_no_distance_and_a_look_without_gradients_is_not_recorded() -> None:
    block, x = ConvolutionBlock(3, 8, pool=True), torch.randn(40, 3, 8, 8)
    assert isinstance(block.norm, nn.BatchNorm2d)
    block.norm.momentum = 1.0
    block.train()(x)
    matching = StatisticsMatching([block])
    block(x)
    assert float(matching().detach()) < 1e-5
    with torch.no_grad():
        block(10 * x)
    assert float(matching().detach()) < 1e-5
    block(10 * x)  # although the block's own statistics have moved on
    assert float(matching().detach()) > 10
    matching.close()
    block(x)
    assert float(matching().detach()) > 10


def test_group_norm_has_no_statistics_to_match() -> None:
    block = ConvolutionBlock(3, 8, pool=True, norm="group")
    matching = StatisticsMatching([block])
    block(torch.randn(4, 3, 8, 8))
    assert float(matching()) == 0


def test_a_weight_brings_the_front_closer_to_what_frozen_layers_expect() -> None:
    data, target = images(), task(0)
    distances = []
    for weight in (0.0, 1.0):
        networks = adapted("paper-frozen", 0, statistics_weight=weight, epochs=8, learning_rate=0.02).networks
        x, _ = data.batch(torch.from_numpy(target.support))
        distances.append(float(by_hand(networks, 0, x).detach()))
    assert distances[1] < 0.5 * distances[0]


def test_from_scratch_there_is_nothing_to_match() -> None:
    plain, weighted = (adapted("paper-scratch", 0, statistics_weight=weight).networks for weight in (0.0, 5.0))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), weighted.parameters(), strict=True))
