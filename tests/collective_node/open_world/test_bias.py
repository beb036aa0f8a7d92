"""Tests of the treatments of the bias between old and new classes: what each of them keeps, and what it equals."""

from pathlib import Path

import pytest
import torch
from torch import nn

from collective_node.collective import Collective
from collective_node.continual_training import StepEvents
from collective_node.open_world.bias import BALANCED_EPOCHS, BALANCED_RATE, align_weights, balanced_set, treat_bias
from collective_node.records import Named
from collective_node.settings import Bias
from protocol.node.events import Events
from tests.collective_node.made_evolution import CLASSES, CYCLES, drawn, evolution, state


def learned(folder: Path) -> tuple[Collective, list[int]]:
    """A collective with two new classes, of three and of six images; base classes have twelve."""
    collective, _ = evolution(folder).run()
    pictures, _ = drawn(range(CLASSES, CLASSES + 1), 9, 3)
    new = collective.add_named(Named(rows=list(range(9)), names=["few"] * 3 + ["more"] * 6), pictures)
    collective.learn_classes(new)
    return collective, new


def treated(collective: Collective, new: list[int], folder: Path, bias: Bias) -> int:
    settings = CYCLES.model_copy(update={"bias": bias})
    return treat_bias(collective, new, settings, StepEvents(Events(folder / "events.jsonl"), "cycle", "a cycle"))


@pytest.mark.parametrize("size", [0.1, 1.0, 30.0])
def test_weight_alignment_gives_old_and_new_weights_one_mean_norm_and_leaves_the_old_logits(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    layer, features = nn.Linear(16, 7), torch.randn((40, 16), generator=generator)
    with torch.no_grad():
        layer.weight[5:] *= size
    before, norms = layer(features).detach(), layer.weight.detach().norm(dim=1)
    align_weights(layer, 5)
    after, aligned = layer(features).detach(), layer.weight.detach().norm(dim=1)
    torch.testing.assert_close(aligned[5:].mean(), aligned[:5].mean())
    assert torch.equal(after[:, :5], before[:, :5])
    # Equation of the paper: new logits times the ratio of the mean norms; so they keep their order.
    torch.testing.assert_close(after[:, 5:], before[:, 5:] * norms[:5].mean() / norms[5:].mean())
    again = layer.weight.detach().clone()
    align_weights(layer, 5)
    torch.testing.assert_close(layer.weight.detach(), again)


@pytest.mark.parametrize("old", [0, 7])
def test_without_old_or_new_classes_there_is_nothing_to_align(old: int) -> None:
    with pytest.raises(ValueError, match="both kinds"):
        align_weights(nn.Linear(16, 7), old)


def test_a_cycle_aligns_its_own_classes_with_all_before_and_changes_nothing_else(tmp_path: Path) -> None:
    collective, new = learned(tmp_path / "state")
    with torch.no_grad():
        collective.network.classifier[-1].weight[CLASSES:] *= 5
        collective.network.classifier[-1].bias[CLASSES:] += 1
    before = state(collective)
    assert treated(collective, new, tmp_path, "weight-alignment") == 0
    after = state(collective)
    assert {name for name, value in after.items() if not torch.equal(value, before[name])} == {
        "classifier.7.weight",
        "classifier.7.bias",
    }
    norms = after["classifier.7.weight"].norm(dim=1)
    torch.testing.assert_close(norms[CLASSES:].mean(), norms[:CLASSES].mean())
    assert treated(collective, new, tmp_path, "none") == 0
    assert all(torch.equal(value, after[name]) for name, value in state(collective).items())


def test_the_balanced_set_has_as_many_images_of_each_class_as_the_median_new_one(tmp_path: Path) -> None:
    collective, new = learned(tmp_path / "state")
    data = balanced_set(collective, new, torch.Generator().manual_seed(0))
    own = collective.rows_of(collective.known)
    assert [len(rows) for rows in data.rows] == [3] * (CLASSES + 2)
    for drawn_rows, rows in zip(data.rows, own, strict=True):
        assert len(set(drawn_rows.tolist())) == 3
        assert set(drawn_rows.tolist()) <= set(rows.tolist())
    other = balanced_set(collective, new, torch.Generator().manual_seed(1))
    assert any(set(a.tolist()) != set(b.tolist()) for a, b in zip(data.rows, other.rows, strict=True))
    # Of a class with fewer images than the median one it has all.
    more = balanced_set(collective, new[1:], torch.Generator().manual_seed(0))
    assert [len(rows) for rows in more.rows] == [6] * CLASSES + [3, 6]


def test_the_balanced_fine_tuning_trains_gently_on_the_balanced_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collective, new = learned(tmp_path / "state")
    before, momentum = state(collective), {name: value.clone() for name, value in collective.momentum.items()}
    rates: list[float] = []
    step = torch.optim.SGD.step

    def seen(self: torch.optim.SGD) -> object:
        rates.append(self.param_groups[0]["lr"])
        return step(self)

    monkeypatch.setattr(torch.optim.SGD, "step", seen)
    steps = treated(collective, new, tmp_path, "balanced")
    images = 3 * (CLASSES + 2)
    assert steps == len(rates) == round(BALANCED_EPOCHS * CYCLES.open_epochs * images / CYCLES.batch_size)
    assert max(rates) <= BALANCED_RATE * CYCLES.learning_rate
    assert any(not torch.equal(value, before[name]) for name, value in state(collective).items())
    assert all(torch.equal(value, momentum[name]) for name, value in collective.momentum.items())


def test_a_cycle_counts_the_steps_of_the_fine_tuning(tmp_path: Path) -> None:
    plain, _ = evolution(tmp_path / "plain", CYCLES).run()
    balanced, _ = evolution(tmp_path / "balanced", CYCLES.model_copy(update={"bias": "balanced"})).run()
    assert balanced.cycles[0].steps > plain.cycles[0].steps
    assert not all(torch.equal(value, state(plain)[name]) for name, value in state(balanced).items())
