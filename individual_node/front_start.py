"""The start of an individual's own front layers: whitened patches of its support images as the first filters."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from individual_node.floor import whitened_filters
from individual_node.reconstruction import IndividualNetworks
from individual_node.target_tasks import TargetTask
from protocol.learngene.images import DeviceImages
from protocol.learngene.network import layers_of

_SIDE = 3


def patch_kernels(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Kernels ``[count, C, 3, 3]`` out of patches of ``images [N, C, H, W]``, as the floor makes its filters.

    The response of a patch ``p`` to a kernel is ``f . M p``, with a filter ``f`` that is a whitened patch, and the
    whitening matrix ``M`` (Coates and Ng 2011). Every filter occurs with both signs, because a ReLU follows, and has
    the length that He's initialisation gives it on average, the square root of 2.
    """
    filters, _, matrix = whitened_filters(images, -(-count // 2), generator, size=_SIDE)
    kernels = nn.functional.normalize(filters @ matrix, dim=1) * 2**0.5
    both = torch.cat([kernels, -kernels])[:count]
    return both.reshape(count, images.shape[1], _SIDE, _SIDE)


@torch.no_grad()
def start_with_patches(
    model: IndividualNetworks,
    tasks: Sequence[TargetTask],
    images: DeviceImages,
    generators: Sequence[torch.Generator],
) -> None:
    """Replace the first own convolution of each network by filters from its own task's support images.

    Networks without own layers in front stay as they are.
    """
    first = layers_of(model.blocks)[0]
    if first is model.inherited[0]:
        return
    count = first.conv.out_channels // model.networks
    kernels = [
        patch_kernels(images.batch(torch.from_numpy(task.support))[0], count, generator)
        for task, generator in zip(tasks, generators, strict=True)
    ]
    first.conv.weight.copy_(torch.cat(kernels))
