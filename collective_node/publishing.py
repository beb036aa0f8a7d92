"""From the collective's networks to learngenes: which blocks, their BatchNorm state, and their Fisher diagonal."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from collective_node.condensing import CondensedNetwork
from collective_node.evolution import Collective, Evolution
from collective_node.training import rehearsal
from protocol.architecture import Architecture, Block, Form, InputContract
from protocol.fisher import fisher_diagonal
from protocol.images import Normalisation
from protocol.learngene import FisherDescription, Learngene
from protocol.network import ConvolutionBlock, block_tensors

#: Images at once while the Fisher diagonal is taken.
FISHER_BATCH = 64


def layers_of(blocks: nn.Sequential) -> list[ConvolutionBlock]:
    """The blocks of a chain, in order."""
    return [block for block in blocks if isinstance(block, ConvolutionBlock)]


def learngene_of(
    form: Form, evolution: Evolution, collective: Collective, condensed: CondensedNetwork, seed: int
) -> Learngene:
    """The learngene in one form, with a Fisher diagonal from the collective's own training images.

    ``condensed``: stem and top of the condensed network. ``paper``: the collective's own top layers, whose Fisher
    diagonal is taken through its whole network.
    """
    settings, network = evolution.settings, collective.network.eval()
    front: Callable[[Tensor], Tensor]
    if form == "condensed":
        stem, top, head = layers_of(condensed.stem), layers_of(condensed.top), condensed.classifier
        blocks = [*(_described(b, "stem") for b in stem), *(_described(b, "top") for b in top)]
        inherited, front = [*stem, *top], nn.Identity()
    else:
        split = len(network.layers) - settings.top
        inherited, front, head = network.layers[split:], network.blocks[:split], network.classifier
        blocks = network.describe(split)
    height, width, channels = evolution.image_shape
    architecture = Architecture(
        form=form, input=InputContract(height=height, width=width, channels=channels), blocks=tuple(blocks)
    )
    generator = torch.Generator().manual_seed(seed)
    order = rehearsal(
        evolution.rows_of(collective.known), -(-settings.fisher_samples // FISHER_BATCH), FISHER_BATCH, generator
    )
    target = evolution.outputs_of(collective.known)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        left = settings.fisher_samples
        for index in order:
            x, labels = evolution.train.batch(index[:left])
            left -= len(x)
            with torch.no_grad():
                x = front(x)
            yield x, target[labels]

    diagonal, samples = fisher_diagonal(inherited, head, batches(), settings.fisher_estimator, generator)
    fisher = FisherDescription(source="collective", estimator=settings.fisher_estimator, samples=samples, clip_micro=0)
    return Learngene(architecture, tensors_of(inherited, diagonal, evolution.normalisation), fisher)


def tensors_of(
    blocks: Sequence[ConvolutionBlock], diagonal: Mapping[str, Tensor], normalisation: Normalisation
) -> dict[str, NDArray[np.float32]]:
    """Every tensor of a learngene by its name in the blob."""
    tensors = {**block_tensors(blocks), **{f"fisher.{name}": value for name, value in diagonal.items()}}
    arrays = {
        name: np.array(tensor.detach().cpu().float().numpy(), dtype=np.float32, order="C")
        for name, tensor in tensors.items()
    }
    return {**arrays, "input.mean": normalisation.mean, "input.std": normalisation.std}


def _described(block: ConvolutionBlock, role: str) -> Block:
    return Block.model_validate(
        {
            "role": role,
            "in_channels": block.conv.in_channels,
            "out_channels": block.conv.out_channels,
            "pool": block.pool,
        }
    )
