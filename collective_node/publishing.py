"""From the collective's networks to learngenes: which blocks, their BatchNorm state, and their Fisher diagonal."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from collective_node.condensing import CondensedNetwork
from collective_node.evolution import Collective, Evolution
from collective_node.training import class_balanced_batches
from protocol.architecture import Architecture, Form, InputContract
from protocol.fisher import fisher_diagonal
from protocol.images import Normalisation
from protocol.learngene import FisherDescription, Learngene
from protocol.network import ConvolutionBlock, block_tensors, layers_of

#: Images at once while the Fisher diagonal is taken.
FISHER_BATCH = 64


def distinct_rows(rows_by_class: Sequence[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """``count`` different rows, or all there are if that is fewer: class by class in turn, as long as that lasts.

    A Fisher diagonal states how many images it was taken from, so none may be counted twice.
    """
    wanted = min(count, sum(len(rows) for rows in rows_by_class))
    turns = class_balanced_batches(rows_by_class, 1, count, generator)
    drawn = list(dict.fromkeys(torch.cat(list(turns)).tolist()))
    if len(drawn) < wanted:  # some class ran out
        everything = torch.cat(list(rows_by_class))
        order = everything[torch.randperm(len(everything), generator=generator)].tolist()
        drawn = list(dict.fromkeys([*drawn, *order]))[:wanted]
    return torch.tensor(drawn)


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
        blocks = [*(block.describe("stem") for block in stem), *(block.describe("top") for block in top)]
        inherited, front = [*stem, *top], nn.Identity()
    else:
        split = len(network.layers) - settings.top
        inherited, front, head = network.layers[split:], network.blocks[:split], network.classifier
        blocks = [block.describe("top") for block in inherited]
    height, width, channels = evolution.image_shape
    architecture = Architecture(
        form=form, input=InputContract(height=height, width=width, channels=channels), blocks=tuple(blocks)
    )
    generator = torch.Generator().manual_seed(seed)
    chosen = distinct_rows(evolution.rows_of(collective.known), settings.fisher_samples, generator)
    target = evolution.outputs_of(collective.known)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for index in chosen.split(FISHER_BATCH):
            x, labels = evolution.train.batch(index)
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
