"""The collective's network as it is after the paper's last growth step, in any width."""

import torch

from collective_node.network.expandable_network import HIDDEN, ExpandableNetwork, scaled
from collective_node.network.growth_schedule import PAPER_STEPS, Widen
from collective_node.network.growth_steps import add_outputs
from collective_node.settings import BASE_WIDTHS


def final_network(width: float, classes: int) -> ExpandableNetwork:
    """A network with random weights, channels-last, in training mode; ``width``: factor on the paper's widths."""
    widths = list(BASE_WIDTHS)
    for step in PAPER_STEPS:
        assert isinstance(step, Widen)
        widths[step.layer] += step.extra
    generator = torch.Generator().manual_seed(0)
    network = ExpandableNetwork(
        [scaled(channels, width) for channels in widths],
        hidden=scaled(HIDDEN, width),
        dropout=0.0,
        generator=generator,
    )
    add_outputs(network, classes, generator)
    return network.to(memory_format=torch.channels_last).train()
