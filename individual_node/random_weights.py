"""The control ``random``: networks of random weights, on whose features a logistic head stands."""

from collections.abc import Sequence

import torch

from individual_node.adaptation import AT_ONCE, channels_joined, stacked
from individual_node.reconstruction import IndividualNetworks, reconstruct
from individual_node.target_tasks import TargetTask
from protocol.learngene.architecture import Architecture
from protocol.learngene.images import DeviceImages, autocast
from protocol.learngene.network import average_statistics


@torch.no_grad()
def random_networks(
    architecture: Architecture,
    tasks: Sequence[TargetTask],
    images: DeviceImages,
    generators: Sequence[torch.Generator],
    view_shifts: int = 0,
) -> IndividualNetworks:
    """One network per target task, with random weights and with the statistics of the task's own support images.

    The weights are those with which training from scratch begins (He et al. 2015), so what training adds can be told.
    BatchNorm's statistics are averages over the support images and their mirror images, each layer behind the
    normalised layer before it; labels are not read. With statistics of 0 and 1, as they are before training, maps of
    random weights are neither centred nor of one scale, and the control would be weaker than it need be.

    Args:
        tasks: with equally many support images.
        images: the support images that the tasks' rows point into.
        generators: one per task; draws its weights.
        view_shifts: as :class:`individual_node.reconstruction.IndividualNetworks` takes it.
    """
    model = reconstruct(architecture, None, ways=tasks[0].ways, generators=generators, view_shifts=view_shifts)
    model = model.to(images.pixels.device).to(memory_format=torch.channels_last).train()
    average_statistics(model)
    rows, _ = stacked(tasks)
    for part in rows.tensor_split(-(-len(rows) // AT_ONCE)):
        x = channels_joined(images.batch(part.flatten())[0], model.networks)
        with autocast(x.device):
            model.blocks(torch.cat([x, x.flip(3)]))
    return model.eval()
