"""Extraction of learngenes from the collective's networks: blocks, their BatchNorm state, and their Fisher diagonal."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from collective_node.differential_privacy.fisher import PrivateFisher
from collective_node.extraction.criterion import check_tasks
from collective_node.network.compact_network import STEM_SHARES, Blueprint, CompactNetwork
from collective_node.network.expandable_network import ExpandableNetwork
from collective_node.settings import CollectiveSettings
from collective_node.training_set import TrainingSet
from protocol.errors import InputError, first_fault
from protocol.learngene.architecture import (
    COMPACT_FORMS,
    MOST_BLOCKS,
    SIZED_FORMS,
    Architecture,
    BlockRole,
    Form,
    InputContract,
    SizeName,
    SizeWeights,
    sized_blocks,
)
from protocol.learngene.fisher import fisher_diagonal
from protocol.learngene.images import DeviceImages
from protocol.learngene.learngene import FisherDescription, Learngene
from protocol.learngene.network import ConvolutionBlock, block_tensors


def most_layers(form: Form, layers: int) -> int:
    """The largest number of a network's ``layers`` that a form can hold."""
    if form in COMPACT_FORMS:  # the stem stands in for one at least
        return min(layers - 1, MOST_BLOCKS - len(STEM_SHARES))
    if form == "whole":
        return layers - 1 if layers <= MOST_BLOCKS else 0
    # One in front and one behind, or it would be a front or a top.
    return min(layers - 2 if form == "paper-middle" else layers, MOST_BLOCKS)


def window_of(form: Form, chosen: range, layers: int) -> range:
    """The collective's own layers (0-based) that a form holds, or that its top layers are shaped after; of all forms
    equally many, but for ``whole``, which holds every layer.

    ``paper``: the chosen ones. ``paper-front``: the first ones. ``paper-middle``: those with as many layers in front as
    behind, or one fewer in front. Compact forms: the last ones.

    Args:
        chosen: what the criterion chose (:func:`collective_node.extraction.criterion.choose_layers`).
        layers: convolutions of the network.

    Raises:
        InputError: the form cannot hold that many.
    """
    k, most = len(chosen), most_layers(form, layers)
    if k > most and form == "whole" and layers > MOST_BLOCKS:
        raise InputError(f"the form whole holds at most {MOST_BLOCKS} layers, and the network has {layers}")
    if k > most:
        raise InputError(
            f"the form {form} holds at most {most} of the network's {layers} layers, not {k}: "
            "set the collective's layers lower"
        )
    if form == "whole":
        return range(layers)
    starts = {"paper": chosen.start, "paper-front": 0, "paper-middle": (layers - k) // 2}
    start = starts.get(form, layers - k)
    return range(start, start + k)


def check_layers(settings: CollectiveSettings, *, layers: int, tasks: int) -> None:
    """Refuse, before training, a number of inherited layers that the grown network or a form cannot give.

    Args:
        layers: convolutions of the network after its last growth.
        tasks: tasks that the gradient trend will hold.

    Raises:
        InputError: the number does not fit; the text says what to set.
    """
    k = settings.layers
    if k is None:
        check_tasks(tasks)
        return
    if k > layers:
        raise InputError(f"{k} layers to inherit, but the network has {layers}: set the collective's layers lower")
    for form in settings.forms:
        window_of(form, range(layers - k, layers), layers)


def check_sizes(blueprint: Blueprint, settings: CollectiveSettings, image_shape: tuple[int, int, int]) -> None:
    """Refuse, before training, smaller sizes that the compact network or a blob cannot hold.

    Args:
        image_shape: height, width and channels.

    Raises:
        InputError: two have equally many weights, or their tensors are too many.
    """
    height, width, channels = image_shape
    for form in (form for form in SIZED_FORMS if form in settings.forms and settings.condense_sizes):
        try:
            Architecture(
                form=form,
                input=InputContract(height=height, width=width, channels=channels),
                blocks=(*blueprint.stem, *blueprint.top),
                dtype=settings.blob_dtype,
                sizes=blueprint.in_order(settings.condense_sizes),
                size_weights=size_weights_of(form),
            )
        except ValidationError as error:
            raise InputError(f"condense_sizes, form {form}: {first_fault(error)[1]}") from None


def size_weights_of(form: Form) -> SizeWeights:
    """Whose convolutions a form's smaller sizes have: ``direct`` trains each by itself."""
    return "own" if form == "direct" else "nested"


def role_of(window: range, layers: int) -> BlockRole:
    """Position of a window in the network: ``front`` if it starts at the image, ``top`` if it ends at the last."""
    if window.start == 0:
        return "front"
    return "top" if window.stop == layers else "middle"


def learngene_of(
    form: Form,
    network: ExpandableNetwork,
    compact: CompactNetwork | None,
    chosen: range,
    data: TrainingSet,
    settings: CollectiveSettings,
    generator: torch.Generator,
    private: PrivateFisher | None = None,
    *,
    sizes: Mapping[SizeName, CompactNetwork] | None = None,
) -> Learngene:
    """Extract the learngene in one form, with a Fisher diagonal from the collective's own training images.

    A compact form holds stem and top of ``compact``, and its diagonal is taken through that network. The other forms
    hold layers of the collective's own network (:func:`window_of`), and their diagonal is taken through that network,
    as a whole: what stands in front of them, and behind them up to the logits.

    Args:
        network: the collective's; it is put in evaluation mode, and so is ``compact``.
        compact: the network that was trained for a compact form; None for the others.
        chosen: layers that the criterion chose, 0-based.
        data: the collective's training images of all classes that the network behind the form knows; the learngene's
            input contract is their shape and normalisation.
        generator: draws the images and the labels of the estimator ``sampled`` (CPU).
        private: if given, computes the Fisher diagonal, with clipping and noise.
        sizes: the smaller networks that the learngene offers, smallest first. Those of the form ``direct`` bring their
            own convolutions, the others have the first channels of ``compact``.

    Raises:
        InputError: the form cannot hold as many layers as were chosen.
    """
    network.eval()
    window = window_of(form, chosen, len(network.layers))
    front: nn.Module = nn.Identity()
    head: nn.Module
    if compact is not None:
        compact.eval()
        blocks, inherited, head = compact.describe(), compact.layers, compact.classifier
    else:
        inherited = network.layers[window.start : window.stop]
        blocks = [
            block.describe(role) for block, role in zip(inherited, _roles(form, chosen, window, network), strict=True)
        ]
        front = network.blocks[: window.start]
        head = nn.Sequential(*network.blocks[window.stop :], *network.classifier).eval()
    height, width, channels = data.images.pixels.shape[1:]
    contract = InputContract(height=height, width=width, channels=channels)
    sizes = sizes or {}
    architecture = Architecture(
        form=form,
        input=contract,
        blocks=tuple(blocks),
        dtype=settings.blob_dtype,
        sizes=tuple(sizes),
        size_weights=size_weights_of(form) if sizes else "nested",
    )
    more = _tensors_of_sizes(architecture, sizes)
    estimator = settings.fisher_estimator
    if private is not None:
        diagonal = private.diagonal(inherited, head, data, estimator, front=front)
        tensors = tensors_of(inherited, diagonal, data.images) | more
        return Learngene(architecture, tensors, private.describe(estimator), private.guarantee)
    rows = data.distinct(settings.fisher_samples, generator)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for x, outputs in data.batches(rows):
            with torch.no_grad():
                features = front(x)
            yield features, outputs

    diagonal, samples = fisher_diagonal(inherited, head, batches(), estimator, generator)
    fisher = FisherDescription(source="collective", estimator=estimator, samples=samples, clip_micro=0)
    return Learngene(architecture, tensors_of(inherited, diagonal, data.images) | more, fisher)


def _roles(form: Form, chosen: range, window: range, network: ExpandableNetwork) -> list[BlockRole]:
    """Role of each layer in a window of the collective's network."""
    layers = len(network.layers)
    role: BlockRole = "top" if form == "whole" else role_of(window, layers)
    stem: list[BlockRole] = ["stem"] * (layers - len(chosen) if form == "whole" else 0)
    return stem + [role] * (len(window) - len(stem))  # `whole` hands over where a compact network does


def tensors_of(
    blocks: Sequence[ConvolutionBlock], diagonal: Mapping[str, Tensor], images: DeviceImages
) -> dict[str, NDArray[np.float32]]:
    """Every tensor of a learngene by its name in the blob."""
    tensors = {
        **block_tensors(blocks),
        **{f"fisher.{name}": value for name, value in diagonal.items()},
        "input.mean": images.mean,
        "input.std": images.std,
    }
    return {name: _array(tensor) for name, tensor in tensors.items()}


def _tensors_of_sizes(
    architecture: Architecture, sizes: Mapping[SizeName, CompactNetwork]
) -> dict[str, NDArray[np.float32]]:
    """What the smaller networks have of their own, by its name in the blob."""
    allowed = architecture.tensors(fisher=False)
    found: dict[str, NDArray[np.float32]] = {}
    for number, (size, network) in enumerate(sizes.items()):
        for index, layer in zip(sized_blocks(architecture.blocks, size), network.layers, strict=True):
            tensors = {
                f"size.{number}.block.{index}.{name.removeprefix('block.0.')}": tensor
                for name, tensor in block_tensors([layer]).items()
            }
            found |= {name: _array(tensor) for name, tensor in tensors.items() if name in allowed}
    return found


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.array(tensor.detach().cpu().float().numpy(), dtype=np.float32, order="C")
