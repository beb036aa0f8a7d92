"""Tests of accuracies: a network whose answers are known is measured by counting them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from collective_node.evaluation import Evaluation, accuracy
from protocol.errors import InputError
from tests.collective_node.made_evolution import CLASSES, SETTINGS, evolution, truth


class Always(nn.Module):
    """Answers every image with one output."""

    def __init__(self, output: int, outputs: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.eye(outputs)[output])

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def test_accuracy_is_the_share_of_right_answers_and_the_mode_stays(tmp_path: Path) -> None:
    heldout = evolution(tmp_path / "state").evaluation.heldout
    targets = torch.arange(CLASSES).flip(0)
    right = int((targets[heldout.labels] == 2).sum())
    for training in (True, False):
        model = Always(2, CLASSES).train(training)
        assert accuracy(model, heldout, targets) == pytest.approx(100 * right / len(heldout))
        assert model.training == training


def test_base_and_open_accuracy_count_the_images_of_known_and_of_named_classes(tmp_path: Path) -> None:
    made = evolution(tmp_path / "state", SETTINGS.model_copy(update={"tasks": 2, "layers": 3}))
    collective = made.plan.begin(made.train)
    collective.learn_classes([3, 5])
    evaluation = Evaluation(made.evaluation.heldout, made.plan.normalisation, truth())
    assert evaluation.heldout_of([5]).labels.tolist() == [5] * 4
    for output, expected in ((0, 50.0), (1, 50.0)):
        assert evaluation.base_accuracy(Always(output, 2), collective) == expected
        assert evaluation.accuracy(Always(output, 2), collective, [3]) == 100.0 * (output == 0)
    assert evaluation.open_accuracy(collective, collective.named_classes) == (None, None)
    nobody = replace(evaluation, truth=None)
    assert nobody.open_accuracy(collective, {"class 8": 8}) == (None, None)
    collective.classes.append("class 8")
    collective.learn_classes([CLASSES])
    with torch.no_grad():
        collective.network.state_dict()["classifier.7.bias"][-1] = 1e6
    assert collective.named_classes == {"class 8": CLASSES}
    assert evaluation.open_accuracy(collective, collective.named_classes) == (100.0, 100.0)


def test_among_the_named_classes_alone_no_base_class_wins(tmp_path: Path) -> None:
    made = evolution(tmp_path / "state", SETTINGS.model_copy(update={"tasks": 2, "layers": 3}))
    collective = made.plan.begin(made.train)
    collective.learn_classes([3, 5])
    collective.classes += ["class 8", "class 9"]
    evaluation = Evaluation(made.evaluation.heldout, made.plan.normalisation, truth())
    # No output yet: both classes are missed, among whichever classes.
    assert evaluation.open_accuracy(collective, collective.named_classes) == (0.0, 0.0)
    collective.learn_classes([CLASSES, CLASSES + 1])
    biases = collective.network.state_dict()["classifier.7.bias"]
    with torch.no_grad():
        biases.copy_(torch.tensor([3e6, 0.0, 2e6, 1e6]))  # a base class first, then class 8
    assert evaluation.open_accuracy(collective, collective.named_classes) == (0.0, 50.0)
    assert evaluation.open_accuracy(collective, {"class 8": CLASSES}) == (0.0, 100.0)
    with torch.no_grad():
        biases[0] = 0.0
    assert evaluation.open_accuracy(collective, collective.named_classes) == (50.0, 50.0)


def test_classes_without_a_held_out_image_cannot_be_tested(tmp_path: Path) -> None:
    evaluation = evolution(tmp_path / "state").evaluation
    with pytest.raises(InputError, match="no held-out image"):
        evaluation.heldout_of([CLASSES])
