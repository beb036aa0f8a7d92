"""Condensing: the collective trains a compact network for individuals, from labels and from what it knows itself."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from collective_node.network.compact_network import (
    Blueprint,
    CompactNetwork,
    blueprint_for,
    blueprint_of,
    build_compact_classifier,
    positions_of,
)
from collective_node.network.expandable_network import HIDDEN, ExpandableNetwork, scaled
from collective_node.objectives import Knowledge, Objective, Sandwich, Student, objective_of
from collective_node.random_states import RandomStates
from collective_node.settings import CollectiveSettings
from collective_node.training import Observer, fit
from collective_node.training_set import TrainingSet
from collective_node.weight_averaging import estimate_statistics
from protocol.errors import InputError
from protocol.learngene.architecture import CompactForm, SizeName
from protocol.learngene.images import autocast
from protocol.learngene.network import ConvolutionBlock, build_blocks, initialise, layers_of


@dataclass(frozen=True)
class Recipe:
    """How a compact network is trained.

    Attributes:
        inherits: whether its top layers start from the collective's; else from random weights.
        frozen: whether these layers and the collective's classifier stay as they are, so that only the stem learns.
        distils: whether it learns from the collective besides the labels.
        known: whether it learns every class that the collective knows; else the base classes alone.
        stream: share of a batch that has no label: images that the collective saw and nobody named.
        epochs: passes over the labelled images of its classes; None: as many batches as the condensed form has.
        sizes: smaller networks besides.
        nested: whether these are trained in the network, with its convolutions; else each by itself.
    """

    inherits: bool
    frozen: bool
    distils: bool
    known: bool
    stream: float
    epochs: float | None
    sizes: tuple[SizeName, ...] = ()
    nested: bool = True


def recipe_of(form: CompactForm, settings: CollectiveSettings) -> Recipe:
    """The recipe of a form.

    ``condensed`` has all that the collective can give, as far as the settings say. ``direct`` has none of it: it is
    what a collective could train and send without a large network behind it. ``direct-inherited`` has the start alone.
    """
    if form == "condensed":
        return Recipe(
            inherits=settings.condense_start == "collective",
            frozen=settings.condense_frozen,
            distils=settings.distils,
            known=settings.condense_known,
            stream=settings.condense_stream if settings.distils else 0.0,
            epochs=settings.condense_epochs,
            sizes=settings.condense_sizes,
        )
    return Recipe(
        inherits=form == "direct-inherited",
        frozen=False,
        distils=False,
        known=False,
        stream=0.0,
        epochs=settings.direct_epochs,
        sizes=settings.condense_sizes if form == "direct" else (),
        nested=False,
    )


def blueprint(network: ExpandableNetwork, top: int, settings: CollectiveSettings) -> Blueprint:
    """Blocks of the compact network that the settings ask for.

    Raises:
        InputError: no layer is left for the stem to stand in for, or the budget is too small.
    """
    if not 1 <= top < len(network.layers):
        raise InputError(
            f"a stem cannot stand in front of {top} of {len(network.layers)} layers: set the collective's layers lower"
        )
    if settings.budget is None:
        return blueprint_of(network, top, settings.width)
    channels = network.layers[0].conv.in_channels
    return blueprint_for(settings.budget, channels=channels, top=top, pools=settings.condense_pools)


def condense(
    network: ExpandableNetwork,
    top: int,
    data: TrainingSet,
    recipe: Recipe,
    epochs: float,
    settings: CollectiveSettings,
    random: RandomStates,
    knowledge: Knowledge | None = None,
    observe: Observer | None = None,
    size: SizeName | None = None,
) -> CompactNetwork:
    """Train a compact network, in as many generations as the settings ask for.

    Each further generation begins as the first one did, with new random numbers, and learns from the labels and from
    the generation before instead of the collective (born-again networks, Furlanello et al. 2018). All share the epochs
    equally.

    Args:
        network: the collective's; it stays as it is.
        top: number of top layers, fewer than the network has.
        data: the collective's training images of the classes that it learns.
        epochs: passes over the labelled images of ``data``.
        random: draws weights, batches, augmentation and dropout.
        knowledge: of the network, about the images of ``data``; needed where the recipe distils.
        size: train the network of this smaller size by itself; None: the whole, with the recipe's nested sizes.

    Raises:
        InputError: no layer is left for the stem to stand in for, the budget is too small, or the top layers cannot
            start from the collective's.
    """
    settings, generations = settings.in_condensing, 1 + settings.condense_generations
    assert knowledge is not None or not recipe.distils
    teacher = knowledge if recipe.distils else None
    condensed = _untrained(network, top, data, recipe, settings, random, size)
    for number in range(generations):
        if number > 0:
            teacher, settings = ask(condensed, data, data.every_row), settings.taught_by_itself
            condensed = _untrained(network, top, data, recipe, settings, random, size)
        share = None if observe is None else _share(observe, number, generations)
        _train(condensed, data, recipe, epochs / generations, settings, random, teacher, share)
    return condensed.eval()


def _share(observe: Observer, number: int, generations: int) -> Observer:
    """Reports one of several trainings with equally many steps as a part of them all."""
    return lambda step, steps: observe(number * steps + step, generations * steps)


def _untrained(
    network: ExpandableNetwork,
    top: int,
    data: TrainingSet,
    recipe: Recipe,
    settings: CollectiveSettings,
    random: RandomStates,
    size: SizeName | None,
) -> CompactNetwork:
    """The compact network before its training, with what a recipe takes from the collective's."""
    whole = blueprint(network, top, settings)
    blocks = whole if size is None else whole.of_size(size)
    stem, deep = build_blocks(blocks.stem), build_blocks(blocks.top)
    initialise(stem, random["weights"])
    initialise(deep, random["weights"])
    if recipe.inherits:
        inherit(layers_of(deep), network.layers[-top:])
    classifier: nn.Module
    if recipe.frozen:
        classifier = copy.deepcopy(network.classifier)
    else:
        height, width = data.images.pixels.shape[1:3]
        features = blocks.top[-1].out_channels * positions_of((*blocks.stem, *blocks.top), height, width)
        classifier = build_compact_classifier(
            settings.condense_classifier,
            features,
            len(data.rows),
            hidden=scaled(HIDDEN, settings.width),
            dropout=settings.condense_dropout,
        )
        initialise(classifier, random["weights"])
    sizes = whole.in_order(recipe.sizes) if recipe.nested and size is None else ()
    return CompactNetwork(stem, deep, classifier, sizes).to(data.device).to(memory_format=torch.channels_last)


def _train(
    condensed: CompactNetwork,
    data: TrainingSet,
    recipe: Recipe,
    epochs: float,
    settings: CollectiveSettings,
    random: RandomStates,
    knowledge: Knowledge | None,
    observe: Observer | None,
) -> None:
    """Train a compact network; the BatchNorm statistics of its blocks are estimated again at the end.

    They are then averages over balanced batches without augmentation.
    """
    condensed.train()
    trained = dict(condensed.named_parameters())
    if recipe.frozen:
        condensed.classifier.eval()
        for part in (condensed.top, condensed.classifier):
            part.requires_grad_(False)
        trained = dict(condensed.stem.named_parameters())
    student = _student_of(condensed, data, knowledge, settings, random)
    trained |= {name: value for name, value in student.named_parameters() if not name.startswith("network.")}
    objective: Objective = objective_of(settings, knowledge)
    if condensed.sizes:
        objective = Sandwich(objective, settings.condense_sizes_distil, settings.label_smoothing)
    fit(
        student,
        trained,
        data,
        epochs,
        settings=settings,
        learning_rate=settings.condense_learning_rate,
        random=random,
        observe=observe,
        objective=objective,
    )
    estimate_statistics(condensed, data, random["batches"])


def _student_of(
    network: CompactNetwork,
    data: TrainingSet,
    knowledge: Knowledge | None,
    settings: CollectiveSettings,
    random: RandomStates,
) -> Student:
    """The network with the heads that its training needs: for a teacher's features, for turns."""
    height, width = data.images.pixels.shape[1:3]
    features = network.layers[-1].conv.out_channels * positions_of(network.describe(), height, width)
    regressor = turns = None
    if knowledge is not None:
        regressor = nn.Linear(features, knowledge.features.shape[2], bias=False)
        initialise(regressor, random["weights"])
    if settings.rotation:
        turns = nn.Linear(features, 4)
        initialise(turns, random["weights"])
    return Student(network, regressor, turns).to(data.device)


@torch.no_grad()
def ask(network: ExpandableNetwork | CompactNetwork, data: TrainingSet, rows: Tensor) -> Knowledge:
    """What a network says of the images ``rows [n]``, whole and mirrored; of the others, zeros. It is put in evaluation
    mode."""
    network.eval()
    logits = features = torch.empty(0)
    for index in rows.split(250):
        x, _ = data.batch(index)
        for side, picture in enumerate((x, x.flip(3))):
            with autocast(data.device):
                deep = network.features(picture)
                said = network.classifier(deep)
            deep, said = deep.flatten(1).float(), said.float()
            if not len(logits):
                logits = said.new_zeros((len(data.images), 2, said.shape[1]))
                features = deep.new_zeros((len(data.images), 2, deep.shape[1]))
            logits[index, side], features[index, side] = said, deep
    return Knowledge(logits, features)


@torch.no_grad()
def inherit(blocks: Sequence[ConvolutionBlock], ancestors: Sequence[ConvolutionBlock]) -> None:
    """Fill blocks from others that are as wide or wider: the channels with the largest BatchNorm scales cross.

    After network slimming (Liu et al. 2017, *Learning efficient convolutional networks through network slimming*);
    channels keep their order, and equal widths make an exact copy.

    Raises:
        InputError: a block is wider than its ancestor.
    """
    inputs = torch.arange(ancestors[0].conv.in_channels)
    if blocks[0].conv.in_channels < len(inputs):
        inputs = _largest(ancestors[0].conv.weight.square().sum((0, 2, 3)), blocks[0].conv.in_channels)
    for block, ancestor in zip(blocks, ancestors, strict=True):
        ours, theirs = block.conv.out_channels, ancestor.conv.out_channels
        if ours > theirs or block.conv.in_channels > ancestor.conv.in_channels:
            raise InputError(
                f"top layers of {ours} channels cannot start from the collective's, which have {theirs}: choose a "
                "smaller budget, a wider collective, or condense_start = random"
            )
        kept = _largest(ancestor.norm.weight.abs(), ours)
        block.conv.weight.copy_(ancestor.conv.weight[kept][:, inputs])
        mine, yours = block.norm.state_dict(), ancestor.norm.state_dict()
        for name, value in yours.items():
            mine[name].copy_(value if value.ndim == 0 else value[kept])
        inputs = kept


def _largest(values: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` largest values, ascending."""
    return values.cpu().topk(count).indices.sort().values
