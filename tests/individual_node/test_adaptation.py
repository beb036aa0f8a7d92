"""Tests of adaptation: Eq. 8 and 9, and that every target task starts afresh and trains as if it were alone."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from individual_node import adaptation, methods
from individual_node.adaptation import (
    Adapted,
    BestWeights,
    adapt,
    channels_joined,
    choose_retain_weight,
    own_fisher,
    stable_retain_weight,
    validation_losses,
)
from individual_node.adaptation import test_accuracy as accuracy_on_test_images
from individual_node.method_table import METHODS
from individual_node.methods import Evaluation
from individual_node.reconstruction import IndividualNetworks, reconstruct
from individual_node.settings import IndividualSettings
from individual_node.target_tasks import PrivateImages, TargetTask
from protocol.errors import InputError
from protocol.learngene.architecture import Form
from protocol.learngene.fisher import fisher_diagonal
from protocol.learngene.learngene import Learngene
from protocol.learngene.network import block_tensors
from protocol.learngene.retain_loss import RetainLoss
from protocol.node.events import Events
from tests.individual_node.made import (
    CPU,
    SHOTS,
    WAYS,
    adapted,
    generators,
    images,
    learngene,
    lopsided,
    task,
)

TRAINED = tuple(name for name, method in METHODS.items() if method.trains and not method.head)
INHERITING = tuple(name for name in TRAINED if METHODS[name].inherits)
OWN_FISHER = tuple(name for name, method in METHODS.items() if method.fisher == "individual")
FROZEN = tuple(name for name in INHERITING if METHODS[name].frozen)
FORMS: tuple[Form, ...] = ("condensed", "paper", "paper-middle", "paper-front")


def state_of(model: IndividualNetworks, index: int) -> dict[str, Tensor]:
    """Parameters and BatchNorm statistics of one of the networks."""
    state = {name: value for name, value in model.state_dict().items() if value.ndim}
    return {name: value.detach().chunk(model.networks)[index].clone() for name, value in state.items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """To the last bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def inherited_of(model: IndividualNetworks, index: int, *, statistics: bool) -> dict[str, Tensor]:
    found = {n: t for n, t in block_tensors(model.inherited).items() if statistics or t.requires_grad}
    return {name: tensor.detach().chunk(model.networks)[index] for name, tensor in found.items()}


def test_side_by_side_is_one_network_per_block_of_channels() -> None:
    x = torch.randn(6, 3, 5, 5)
    joined = channels_joined(x, 2)
    assert joined.shape == (3, 6, 5, 5)
    assert joined.is_contiguous(memory_format=torch.channels_last)
    for n in range(3):
        for network in range(2):
            torch.testing.assert_close(joined[n, 3 * network : 3 * network + 3], x[2 * n + network])


def test_the_retain_loss_acts_on_the_inherited_layers_only_and_is_above_zero_after_a_step() -> None:
    gene = learngene("paper")
    model = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0))
    loss = RetainLoss.of(model.inherited, gene)
    optimiser = torch.optim.SGD(model.parameters(), 0.05)
    logits = model.train()(torch.randn(9, 3, 16, 16))
    nn.functional.cross_entropy(logits[:, 0], torch.arange(9) % WAYS).backward()
    optimiser.step()
    assert float(loss().detach()) > 0
    optimiser.zero_grad(set_to_none=True)
    loss().backward()
    inherited = {id(p) for block in model.inherited for p in block.parameters()}
    for parameter in model.parameters():
        assert (parameter.grad is not None) == (id(parameter) in inherited)


def test_a_larger_lambda_keeps_the_inherited_layers_closer() -> None:
    gene = learngene()
    distance = []
    for retain_weight in (0.0, 200.0):
        model = adapted("condensed-eq9", 0, retain_weight=retain_weight, epochs=5).networks
        change = {
            name: tensor.detach() - torch.from_numpy(gene.tensors[name])
            for name, tensor in block_tensors(model.inherited).items()
            if tensor.requires_grad
        }
        distance.append(
            sum(float((torch.from_numpy(gene.tensors[f"fisher.{n}"]) * d.square()).sum()) for n, d in change.items())
        )
    assert distance[1] < 0.5 * distance[0]


def test_a_lambda_that_must_diverge_is_refused_and_the_stable_one_is_named() -> None:
    settings = IndividualSettings(learning_rate=0.005, retain_weight=1000)
    assert choose_retain_weight(learngene(fisher=0.75), settings) == 1000
    gene = learngene(fisher=2.0)
    largest = max(float(t.max()) for n, t in gene.tensors.items() if n.startswith("fisher"))
    with pytest.raises(InputError, match=f"at most {3.8 / 0.005 / largest:.3g}"):
        choose_retain_weight(gene, settings)


def test_without_a_lambda_it_is_the_papers_or_half_of_what_is_stable() -> None:
    settings = IndividualSettings(learning_rate=0.005)
    assert choose_retain_weight(learngene(fisher=0.1), settings) == 1000
    gene = learngene(fisher=8.0)
    largest = max(float(t.max()) for n, t in gene.tensors.items() if n.startswith("fisher"))
    assert choose_retain_weight(gene, settings) == pytest.approx(1.9 / 0.005 / largest)


def test_accuracy_is_counted_per_task_over_image_and_mirror_image() -> None:
    model = adapted("condensed-eq9", 0, 1, retain_weight=0.0).networks
    found = accuracy_on_test_images(model, [task(0), task(1)], images())
    data = images()
    for index, number in enumerate((0, 1)):
        x, _ = data.batch(torch.from_numpy(task(number).test))
        logits = [model(torch.cat([picture, picture], 1))[:, index] for picture in (x, x.flip(3))]
        predicted = torch.stack(logits).mean(0).argmax(1).numpy()
        assert found[index] == pytest.approx((predicted == task(number).test_labels).mean() * 100)


def test_every_network_trains_at_the_rate_and_for_the_epochs_of_its_method() -> None:
    settings = IndividualSettings(
        epochs=7, learning_rate=0.01, scratch_learning_rate=0.02, paper_scratch_learning_rate=0.03, scratch_epochs=5
    )
    scratch = {"scratch": (0.02, 5), **dict.fromkeys(("paper-scratch", "paper-front-scratch"), (0.03, 7))}
    for name, expected in {"condensed-eq9": (0.01, 7), "paper-head": (0.01, 7), **scratch}.items():
        assert settings.schedule_of(METHODS[name]) == expected
    by_epoch = {
        epochs: adapted("scratch", 0, scratch_epochs=epochs, epochs=9).networks.state_dict() for epochs in (1, 2)
    }
    assert same(by_epoch[2], adapted("scratch", 0, epochs=2).networks.state_dict())
    assert not same(by_epoch[1], by_epoch[2])
    slower = adapted("scratch", 0, epochs=2, scratch_learning_rate=0.001).networks.state_dict()
    assert not same(by_epoch[2], slower)


# --- each target task by itself


@pytest.mark.parametrize("early_stopping", [None, 1])
@pytest.mark.parametrize("name", TRAINED)
def test_a_task_trains_beside_others_as_it_would_alone(name: str, early_stopping: int | None) -> None:
    together = adapted(name, 3, 4, 5, early_stopping=early_stopping, epochs=3)
    alone = adapted(name, 4, early_stopping=early_stopping, epochs=3)
    single = state_of(alone.networks, 0)
    for part, joint in state_of(together.networks, 1).items():
        torch.testing.assert_close(joint, single[part], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [*METHODS])
def test_every_target_task_starts_afresh(name: str, tmp_path: Path) -> None:
    """A task ends the same whatever was solved before it, and the learngene stays as it was inherited."""
    form = METHODS[name].form or "condensed"
    gene, untouched = learngene(form), learngene(form)
    pixels = images().pixels.numpy()

    def accuracies(*numbers: int) -> dict[int, float]:
        own = PrivateImages(pixels, pixels, {SHOTS: [task(number) for number in numbers]})
        settings = IndividualSettings(epochs=2, networks_at_once=1, patches=20, early_stopping=1)
        return Evaluation({form: gene}, own, settings, 0, CPU, Events(tmp_path / "events")).run(name, SHOTS).accuracy

    together = accuracies(0, 1, 2)
    assert [accuracies(number)[number] for number in (0, 1, 2)] == [together[number] for number in (0, 1, 2)]
    assert all(np.array_equal(tensor, untouched.tensors[name]) for name, tensor in gene.tensors.items())


@pytest.mark.parametrize("early_stopping", [None, 1])
@pytest.mark.parametrize("name", [*METHODS])
def test_test_images_change_no_weight_and_no_statistic(
    name: str, early_stopping: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the learning curves look at them after every epoch."""
    form = METHODS[name].form or "condensed"
    ended: list[dict[str, Tensor]] = []

    def watched(*arguments: object, **named: object) -> Adapted:
        found = adapt(*arguments, **named)  # type: ignore[arg-type]
        ended.append(found.networks.state_dict())
        return found

    monkeypatch.setattr(methods, "adapt", watched)
    settings = IndividualSettings(epochs=3, patches=20, early_stopping=early_stopping)
    outcomes = []
    for test_pixels in (images(seed=2).pixels.numpy(), np.zeros((60, 16, 16, 3), np.uint8)):
        own = PrivateImages(images().pixels.numpy(), test_pixels, {SHOTS: [task(0), task(1)]})
        evaluation = Evaluation({form: learngene(form)}, own, settings, 0, CPU, Events(tmp_path / "events"))
        outcomes.append(evaluation.run(name, SHOTS))
    if METHODS[name].trains:
        assert same(*ended)
    if name in TRAINED:
        assert [sorted(outcome.curve) for outcome in outcomes] == [[1, 2, 3]] * 2
        assert outcomes[0].curve[3] == [outcomes[0].accuracy[number] for number in (0, 1)]


def test_looking_at_test_images_leaves_frozen_statistics_frozen() -> None:
    method, gene = METHODS["paper-frozen"], learngene("paper")
    settings = IndividualSettings(epochs=3, batch_size=8)

    def looked(observe: Callable[[int, IndividualNetworks], None] | None) -> dict[str, Tensor]:
        found = adapt(method, gene.architecture, gene, [task(0)], images(), settings, generators(0), observe=observe)
        return found.networks.state_dict()

    assert same(looked(None), looked(lambda _, model: void(accuracy_on_test_images(model, [task(0)], images()))))


def void(_: object) -> None:
    """So that a lambda returns nothing."""


# --- what is inherited, and how firmly it is kept


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_blocks_stay_as_they_were_inherited_and_the_rest_learns(name: str) -> None:
    form = METHODS[name].form
    assert form is not None
    gene = learngene(form)
    done = adapted(name, 0, 1)
    for index in range(2):
        for part, tensor in inherited_of(done.networks, index, statistics=True).items():
            np.testing.assert_array_equal(tensor.numpy(), gene.tensors[part])
    start = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0, 1))
    after = dict(done.networks.named_parameters())
    own = [name for name, p in after.items() if p.requires_grad]
    assert own
    assert all(not torch.equal(value, after[name]) for name, value in start.named_parameters() if name in own)


@pytest.mark.parametrize("form", FORMS)
def test_without_a_fisher_diagonal_it_is_equation_6_alone(form: Form) -> None:
    """To the last bit what Eq. 9 is with a lambda of 0, with a learngene that carries a diagonal or none."""
    base = "condensed-eq9" if form == "condensed" else form
    none, zero = adapted(f"{base}-none", 0, 1), adapted(base, 0, 1, retain_weight=0)
    assert same(none.networks.state_dict(), zero.networks.state_dict())
    assert (none.retain_weights, zero.retain_weights) == ([], [0.0])
    gene = learngene(form)
    bare = Learngene(gene.architecture, {n: t for n, t in gene.tensors.items() if not n.startswith("fisher")}, None)
    settings = IndividualSettings(epochs=2, batch_size=8, learning_rate=0.01)

    def run(name: str) -> Adapted:
        return adapt(METHODS[name], bare.architecture, bare, [task(0), task(1)], images(), settings, generators(0, 1))

    assert same(run(f"{base}-none").networks.state_dict(), none.networks.state_dict())
    with pytest.raises(InputError, match="Fisher"):
        run(base)


@pytest.mark.parametrize("form", FORMS)
def test_an_individuals_own_fisher_diagonal_is_that_of_each_network_by_itself(form: Form) -> None:
    gene, tasks, data = learngene(form), [task(0), task(1), task(2)], images()
    model = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0, 1, 2)).train()
    settings = IndividualSettings(learning_rate=1e-6)
    found, retains = own_fisher(model, tasks, data, settings, generators(5, 6, 7))
    assert model.training
    for index, generator in enumerate(generators(5, 6, 7)):
        front, blocks, head = model.network(index).parts()
        x, _ = data.batch(torch.from_numpy(tasks[index].support))
        expected, count = fisher_diagonal(blocks, head, [(front(x), None)], "sampled", generator)
        assert count == WAYS * SHOTS
        for name, entries in expected.items():
            torch.testing.assert_close(found[name].chunk(3)[index], retains[index] * entries)


def test_an_individuals_own_fisher_diagonal_is_the_mean_of_squared_gradients_of_its_own_images() -> None:
    """Equation 7 with the data's labels, against one backward pass an image."""
    gene, target, data = learngene("paper-middle"), task(0), images()
    model = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0))
    settings = IndividualSettings(fisher_estimator="empirical", retain_weight=2.0, learning_rate=1e-6)
    found, retains = own_fisher(model, [target], data, settings, generators(0))
    assert retains == [2.0]
    model.eval()
    parameters = {name: t for name, t in block_tensors(model.inherited).items() if t.requires_grad}
    sums = {name: torch.zeros_like(t) for name, t in parameters.items()}
    for row, label in zip(target.support, target.support_labels, strict=True):
        logits = model(data.batch(torch.tensor([row]))[0])[0, 0]
        gradients = torch.autograd.grad(logits.log_softmax(0)[label], list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            sums[name] += gradient.square()
    for name, total in sums.items():
        torch.testing.assert_close(found[name], 2.0 * total / len(target.support), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", OWN_FISHER)
@pytest.mark.parametrize(("every", "times"), [(1, 5), (2, 3), (9, 1)])
def test_the_own_diagonal_is_taken_before_an_epoch_and_always_holds_at_what_was_inherited(
    name: str, every: int, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[RetainLoss] = []

    def recorded(*arguments: Mapping[str, Tensor]) -> RetainLoss:
        losses.append(RetainLoss(*arguments))
        return losses[-1]

    monkeypatch.setattr(adaptation, "RetainLoss", recorded)
    done = adapted(name, 0, 1, epochs=5, fisher_every=every)
    assert len(losses) == times
    assert len(done.retain_weights) == 2 * times
    form = METHODS[name].form
    assert form is not None
    gene = learngene(form)
    for loss in losses:
        assert {f"fisher.{part}" for part in loss.parameters} == {n for n in gene.tensors if n.startswith("fisher.")}
        for part, anchor in loss.anchors.items():
            for one in anchor.chunk(2):
                np.testing.assert_array_equal(one.numpy(), gene.tensors[part])
    # The head moves on, and the diagonal with it.
    diagonals = [torch.cat([entries.flatten() for entries in loss.fisher.values()]) for loss in losses]
    assert all(not torch.equal(a, b) for a, b in pairwise(diagonals))


def test_the_own_lambda_is_kept_at_half_of_what_is_stable_for_the_present_largest_entry() -> None:
    gene, tasks = learngene("paper"), [task(0), task(1)]
    model = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0, 1))
    settings = IndividualSettings(learning_rate=100)
    found, retains = own_fisher(model, tasks, images(), settings, generators(0, 1))
    largest = torch.stack([torch.stack([part.max() for part in e.chunk(2)]) for e in found.values()]).amax(0)
    assert retains[0] != retains[1]
    assert max(retains) < 1000
    torch.testing.assert_close(largest, torch.full((2,), 1.9 / 100))  # lambda F
    limit = 2 * max(retains)
    with pytest.raises(InputError, match="choose lambda at most"):
        own_fisher(model, tasks, images(), settings.model_copy(update={"retain_weight": limit}), generators(0, 1))


def test_an_own_diagonal_of_zeros_leaves_the_papers_lambda() -> None:
    assert stable_retain_weight(0.0, IndividualSettings()) == 1000


def test_variants_of_a_method_begin_with_the_same_weights() -> None:
    for name, method in METHODS.items():
        if method.trains:
            assert name.startswith(method.start)
            assert METHODS[method.start].form == method.form


# --- early stopping


def test_each_network_keeps_its_own_best_weights_until_its_patience_is_over() -> None:
    gene = learngene("paper")
    model = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0, 1, 2))
    best = BestWeights(model, patience=2)
    losses = [[3.0, 3.0, float("nan")], [2.0, 4.0, 5.0], [2.5, 2.9, 4.5], [2.5, 5.0, 6.0], [1.0, 5.0, 6.0]]
    over = []
    for epoch, row in enumerate(losses, 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(epoch)
        best.look(model, torch.tensor(row))
        over.append(best.over)
    assert over == [False, False, False, False, True]
    parameters = [p.detach() for p in best.networks.parameters()]
    kept = [{float(v) for p in parameters for v in p.chunk(3)[index].unique()} for index in range(3)]
    assert kept == [{2.0}, {3.0}, {3.0}]  # the first network's patience was over when its loss fell to 1


@pytest.mark.parametrize("name", TRAINED)
def test_what_is_handed_over_had_the_lowest_validation_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    held_out: list[list[TargetTask]] = []

    def recorded(model: IndividualNetworks, held: list[TargetTask], data: object) -> Tensor:
        held_out.append(held)
        seen.append(validation_losses(model, held, images()))
        return seen[-1]

    monkeypatch.setattr(adaptation, "validation_losses", recorded)
    done = adapted(name, 0, 1, epochs=6, early_stopping=6)
    assert not done.networks.training
    assert all(held is held_out[0] for held in held_out)
    torch.testing.assert_close(validation_losses(done.networks, held_out[0], images()), torch.stack(seen).amin(0))


def test_training_ends_with_the_last_networks_patience_and_the_curve_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = iter([[1.0, 1.0], [2.0, 0.5], [3.0, 0.6], [0.1, 0.1], [0.1, 0.1]])
    monkeypatch.setattr(adaptation, "validation_losses", lambda *_: torch.tensor(next(rows)))
    gene = learngene("paper")
    observed: list[tuple[int, dict[str, Tensor]]] = []
    done = adapt(
        METHODS["paper"],
        gene.architecture,
        gene,
        [task(0), task(1)],
        images(),
        IndividualSettings(epochs=5, batch_size=8, early_stopping=1),
        generators(0, 1),
        observe=lambda epoch, model: observed.append((epoch, {n: v.clone() for n, v in model.state_dict().items()})),
    )
    assert next(rows) == [0.1, 0.1]  # three epochs were validated
    assert [epoch for epoch, _ in observed] == [1, 2, 3, 4, 5]
    assert same(observed[-1][1], done.networks.state_dict())
    assert same(observed[2][1], observed[4][1])
    assert not same(observed[0][1], observed[1][1])


def test_held_out_images_decide_when_to_stop_and_teach_nothing() -> None:
    """With patience for every epoch and the last one the best, other held-out images leave the weights alone."""
    target, data = task(0), images()
    _, held = target.held_out(0.25, generators_after_reconstruction())
    changed = images()
    changed.pixels[torch.from_numpy(held.support)] = 0
    gene = learngene("paper")
    ended = []
    for pictures in (data, changed):
        settings = IndividualSettings(epochs=1, batch_size=8, early_stopping=1, validation_share=0.25)
        done = adapt(METHODS["paper"], gene.architecture, gene, [target], pictures, settings, generators(0))
        ended.append(done.networks.state_dict())
    assert same(*ended)
    changed.pixels[:] = 0
    settings = IndividualSettings(epochs=1, batch_size=8, early_stopping=1, validation_share=0.25)
    done = adapt(METHODS["paper"], gene.architecture, gene, [target], changed, settings, generators(0))
    assert not same(ended[0], done.networks.state_dict())


def generators_after_reconstruction() -> torch.Generator:
    (generator,) = generators(0)
    gene = learngene("paper")
    reconstruct(gene.architecture, gene, ways=WAYS, generators=[generator])
    return generator


def test_a_class_with_a_single_image_cannot_be_validated_on() -> None:
    gene = learngene("paper")
    target = replace(lopsided(task(0)), classes=("fox", "worm", "rose"))
    settings = IndividualSettings(epochs=1, early_stopping=3)
    with pytest.raises(InputError, match=r"'rose' .* add images of it, or leave early_stopping out"):
        adapt(METHODS["paper"], gene.architecture, gene, [target], images(), settings, generators(0))
    without = IndividualSettings(epochs=1)
    adapt(METHODS["paper"], gene.architecture, gene, [target], images(), without, generators(0))


def test_no_batch_is_a_single_image() -> None:
    """On maps of one position, its own statistics would be all that BatchNorm has."""
    gene = learngene("paper")
    three = replace(task(0), support=task(0).support[::SHOTS], support_labels=np.arange(WAYS))
    settings = IndividualSettings(epochs=1, batch_size=2, own_back=(4, 4, 4, 4))
    done = adapt(METHODS["paper"], gene.architecture, gene, [three], images(), settings, generators(0))
    assert done.networks.features == 4
