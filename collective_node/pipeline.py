"""The whole pipeline of the collective: from its images to its learngenes."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from collective_node.collective import Collective
from collective_node.collective_images import CollectiveImages
from collective_node.differential_privacy.fisher import PrivateFisher
from collective_node.differential_privacy.mechanism import Mechanism, check_delta
from collective_node.differential_privacy.randomness import PrivateRandomness
from collective_node.differential_privacy.release import Finished, setup_of
from collective_node.enough_images import check_fisher_images
from collective_node.evolution import Evolution
from collective_node.extraction.condensing import ask, blueprint, condense, recipe_of
from collective_node.extraction.criterion import choose_layers, found_layers, most_similar, settled_layers
from collective_node.extraction.extraction import check_sizes, learngene_of, most_layers
from collective_node.extraction.similarity import Similarity, compare, train_descendant
from collective_node.network.compact_network import CompactNetwork
from collective_node.objectives import Knowledge
from collective_node.open_world.annotators import Annotator
from collective_node.records import Comparison
from collective_node.settings import CollectiveSettings
from collective_node.training_set import TrainingSet
from protocol.errors import InputError
from protocol.learngene.architecture import COMPACT_FORMS, CompactForm, Form, SizeName, compact_form
from protocol.learngene.learngene import Learngene
from protocol.node.events import Events


@dataclass(frozen=True)
class Chosen:
    """The layers that each criterion chose, 0-based.

    Attributes:
        layers: those that the form ``paper`` took; every form holds as many.
        settled: of every layer, whether its gradient trend settled.
        found: how many settled ones end at the last layer.
        similarity: to a pseudo-descendant, if one was trained.
        by_similarity: as many layers as ``layers``, by that criterion.
    """

    layers: range
    settled: list[bool]
    found: int
    similarity: Similarity | None
    by_similarity: range | None


@dataclass(frozen=True)
class Evolved:
    """Result of an evolution.

    Attributes:
        collective: the whole network, the classes that it knows, its records of tasks and cycles, the gradient trend.
        comparisons: open-world cycles as other scores and strategies would have had them.
        chosen: the layers of the learngene.
        compact: the networks that were trained for compact forms.
        accuracy: of each of them, on held-out images of the base classes, per cent.
        sizes: the smaller networks of each of them, smallest first.
        size_accuracy: of each of these, likewise.
        learngenes: one in each form that the settings ask for.
        mechanism: of their private Fisher diagonals, if the settings ask for them.
        seconds: wall-clock times of ``train``, ``criterion``, each compact form and ``fisher``.
    """

    collective: Collective
    comparisons: list[Comparison]
    chosen: Chosen
    compact: dict[CompactForm, CompactNetwork]
    accuracy: dict[CompactForm, float]
    sizes: dict[CompactForm, dict[SizeName, CompactNetwork]]
    size_accuracy: dict[CompactForm, dict[SizeName, float]]
    learngenes: dict[Form, Learngene]
    mechanism: Mechanism | None
    seconds: dict[str, float]


def evolve(
    images: CollectiveImages,
    settings: CollectiveSettings,
    *,
    seed: int,
    device: torch.device,
    checkpoints: Path,
    events: Events,
    annotator: Annotator | None = None,
    fewest_fisher_images: int = 1,
) -> Evolved:
    """Learn the sequence of tasks, meet the open world, condense, and take a learngene in every form of the settings.

    Args:
        images: the collective's folder, as :func:`collective_node.collective_images.read` reads it.
        seed: of everything random: the same seed, settings and thread count give the same learngenes on one machine.
        settings: without private weights, which
            :func:`collective_node.differential_privacy.evolution.evolve_privately` makes.
        checkpoints: folder of the checkpoints, made if it does not exist (its parent must exist). An evolution that was
            killed is resumed after its last task or cycle when it is called again with the same arguments.
        events: record of progress.
        annotator: names what is unknown; may be None if ``settings.cycles`` is 0.
        fewest_fisher_images: fewest images of a Fisher diagonal that the site's policy lets out.

    Raises:
        InputError: the settings ask for private weights or for more than the images have, or the checkpoint belongs to
            another evolution.
        RunFailedError: the loss is no longer a number.
    """
    if settings.private_weights:
        raise InputError(
            "private weights are trained by collective_node.differential_privacy.evolution."
            "evolve_privately; what needs a collective with tasks works without privacy_epsilon, or with "
            "privacy_scope=fisher-given-weights"
        )
    check_privacy(settings)
    evolution = Evolution(images, settings, seed, device, checkpoints, events, annotator)
    # Refuse before the training, not after it, a delta that the accounting would refuse, and what the policy would not
    # let out.
    if settings.privacy_epsilon is not None:
        check_delta(settings.privacy_delta_exponent, evolution.plan.taught_images)
    check_fisher_images(settings, evolution.plan.taught_images, fewest_fisher_images)
    clock, seconds = _Clock(), {}
    collective, comparisons = evolution.run()
    seconds["train"] = clock.lap()
    chosen = _choose(evolution, collective)
    seconds["criterion"] = clock.lap()
    compact: dict[CompactForm, CompactNetwork] = {}
    sizes: dict[CompactForm, dict[SizeName, CompactNetwork]] = {}
    if settings.condense_sizes:
        wanted = blueprint(collective.network, len(chosen.layers), settings)
        check_sizes(wanted, settings, evolution.plan.image_shape)
    for form in (form for form in COMPACT_FORMS if form in settings.forms):
        compact[form] = _condense(evolution, collective, form, len(chosen.layers))
        seconds[form] = clock.lap()
        sizes[form] = _smaller(evolution, collective, form, compact[form], len(chosen.layers))
        if sizes[form]:
            seconds[f"{form}, sizes"] = clock.lap()
    right = evolution.evaluation.base_accuracy
    accuracy = {form: right(network, collective) for form, network in compact.items()}
    size_accuracy = {
        form: {size: right(network, collective) for size, network in found.items()}
        for form, found in sizes.items()
        if found
    }
    learngenes, mechanism = _learngenes(
        evolution, collective, compact, sizes, accuracy, chosen.layers, fewest_fisher_images
    )
    seconds["fisher"] = clock.lap()
    return Evolved(
        collective, comparisons, chosen, compact, accuracy, sizes, size_accuracy, learngenes, mechanism, seconds
    )


def check_privacy(settings: CollectiveSettings) -> None:
    """Refuse settings that ask for privacy if its extra is not installed.

    Raises:
        InputError: the extra ``privacy`` is missing.
    """
    for name in ("opacus", "dp_accounting"):
        if settings.privacy_epsilon is not None and find_spec(name) is None:
            raise InputError(f"privacy_epsilon needs the module {name}; pip install 'learngene[privacy]'")


def _learngenes(
    evolution: Evolution,
    collective: Collective,
    compact: Mapping[CompactForm, CompactNetwork],
    sizes: Mapping[CompactForm, Mapping[SizeName, CompactNetwork]],
    accuracy: Mapping[CompactForm, float],
    chosen: range,
    fewest_fisher_images: int,
) -> tuple[dict[Form, Learngene], Mechanism | None]:
    """Extract a learngene in each form; with private Fisher diagonals if the settings ask for them."""
    settings, events = evolution.settings, evolution.events
    everything = collective.training_set(collective.known)
    mechanism, private = None, None
    if settings.privacy_epsilon is not None:
        # Imported here, because it needs the extra `privacy`.
        from collective_node.differential_privacy.accounting import plan

        setup = setup_of(f"{evolution.plan.setup} {evolution.cycle_setup}", settings)
        finished = Finished.kept(evolution.folder, setup)
        if finished is not None:
            return finished.learngenes, finished.mechanism
        randomness = PrivateRandomness()
        mechanism = plan(
            settings,
            len(everything),
            fishers=len(settings.forms),
            randomness=randomness,
            fewest_fisher_images=fewest_fisher_images,
        )
        private = PrivateFisher.of(mechanism, randomness)
    learngenes: dict[Form, Learngene] = {}
    for number, form in enumerate(settings.forms):
        events.append("fisher", number, len(settings.forms), f"Fisher diagonal, form {form}")
        own = compact_form(form)
        learngenes[form] = learngene_of(
            form,
            collective.network,
            compact[own] if own else None,
            chosen,
            _taught(own, collective, settings) if own else everything,
            settings,
            collective.random["fisher"],
            private,
            sizes=sizes[own] if own else {},
        )
    if mechanism is not None:
        Finished(mechanism=mechanism, accuracy=accuracy.get("condensed"), learngenes=learngenes).keep(
            evolution.folder, setup
        )
    return learngenes, mechanism


def _taught(form: CompactForm, collective: Collective, settings: CollectiveSettings) -> TrainingSet:
    """The training images that a compact form learns from."""
    known = recipe_of(form, settings).known
    return collective.training_set(collective.known if known else collective.known_base)


def _smaller(
    evolution: Evolution, collective: Collective, form: CompactForm, network: CompactNetwork, top: int
) -> dict[SizeName, CompactNetwork]:
    """The smaller networks of a form, smallest first: those in its network, or each trained by itself."""
    recipe = recipe_of(form, evolution.settings)
    if recipe.nested:
        return {size: network.smaller(number) for number, size in enumerate(network.sizes)}
    wanted = blueprint(collective.network, top, evolution.settings).in_order(recipe.sizes)
    return {size: _condense(evolution, collective, form, top, size) for size in wanted}


def _condense(
    evolution: Evolution, collective: Collective, form: CompactForm, top: int, size: SizeName | None = None
) -> CompactNetwork:
    """Train the compact network of a form, or of a smaller size by itself. Every one draws the same random numbers."""
    settings = evolution.settings
    recipe, data = recipe_of(form, settings), _taught(form, collective, settings)
    of_size = "" if size is None else f", size {size}"

    def observe(step: int, steps: int) -> None:
        evolution.events.append("condense", step + 1, steps, f"a compact network, form {form}{of_size}")

    data = replace(data, by_class=settings.condense_sampling == "class-balanced")
    if recipe.stream and evolution.open_world is not None:
        data = data.with_unlabelled(evolution.open_world.unnamed(collective), recipe.stream)
    knowledge: Knowledge | None = None
    if recipe.distils:
        knowledge = ask(collective.network, data, data.every_row)
    epochs = recipe.epochs
    if epochs is None:
        condensed = len(_taught("condensed", collective, settings))
        epochs = settings.condense_epochs * condensed / len(data)
    random = collective.random.copy()
    return condense(collective.network, top, data, recipe, epochs, settings, random, knowledge, observe, size)


def _choose(evolution: Evolution, collective: Collective) -> Chosen:
    """Choose layers by both criteria; the second one needs a pseudo-descendant, which is trained if the settings say
    so.
    """
    settings, layers, rho = evolution.settings, len(collective.network.layers), collective.trend.rho
    similarity = None
    if settings.descendant_epochs > 0:

        def observe(step: int, steps: int) -> None:
            evolution.events.append("descendant", step + 1, steps, "a pseudo-descendant for the second criterion")

        descendant = train_descendant(
            collective.training_set(collective.known),
            len(collective.known),
            settings,
            collective.random.copy(),  # computing the second criterion changes nothing that comes after it
            observe,
        )
        similarity = compare(collective.network, descendant, evolution.evaluation.heldout_of(collective.known_base))
    per_layer = None if similarity is None else similarity.per_layer
    most = min(most_layers(form, layers) for form in settings.forms)
    chosen = choose_layers(settings, layers, rho, per_layer, most=most)
    by_similarity = None if per_layer is None else most_similar(per_layer, len(chosen))
    return Chosen(chosen, settled_layers(rho), found_layers(rho), similarity, by_similarity)


class _Clock:
    """Seconds from lap to lap."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        before, self._last = self._last, time.perf_counter()
        return self._last - before
