"""What a network learns from a batch: identities of the losses, and the definition of each written out."""

import math

import pytest
import torch
from torch import Tensor, nn

from collective_node.network.compact_network import CompactNetwork
from collective_node.objectives import (
    Batch,
    CrossEntropy,
    Distillation,
    Knowledge,
    Student,
    labelled_loss,
    relation_loss,
    soft_label_loss,
)


def made_student(outputs: int = 3, teacher: int = 5) -> Student:
    torch.manual_seed(0)
    stem, top = nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.AdaptiveAvgPool2d(1))
    network = CompactNetwork(stem, top, nn.Sequential(nn.Flatten(), nn.Linear(4, outputs)))
    return Student(network, nn.Linear(4, teacher, bias=False))


def made_batch(outputs: list[int]) -> Batch:
    generator = torch.Generator().manual_seed(1)
    n = len(outputs)
    rows = torch.randperm(10, generator=generator)[:n]
    mirrored = torch.arange(n) % 2 == 0
    return Batch(torch.randn((n, 3, 8, 8), generator=generator), torch.tensor(outputs), rows, mirrored)


def made_knowledge() -> Knowledge:
    generator = torch.Generator().manual_seed(2)
    return Knowledge(torch.randn((10, 2, 3), generator=generator), torch.randn((10, 2, 5), generator=generator))


def made(**weights: float) -> Distillation:
    settings = {"logits": 0.0, "temperature": 2.0, "features": 0.0, "relations": 0.0, "label_smoothing": 0.0}
    return Distillation(made_knowledge(), **{**settings, **weights})


def test_without_weights_distillation_is_cross_entropy() -> None:
    student, batch = made_student(), made_batch([0, 2, 1, 1])
    torch.testing.assert_close(made()(student, batch), CrossEntropy()(student, batch))


def test_the_teachers_word_is_that_of_the_image_as_it_was_mirrored() -> None:
    knowledge, batch = made_knowledge(), made_batch([0, 1, 2, 0])
    logits, features = knowledge.of(batch)
    for number, (row, mirrored) in enumerate(zip(batch.rows.tolist(), batch.mirrored.tolist(), strict=True)):
        torch.testing.assert_close(logits[number], knowledge.logits[row, int(mirrored)])
        torch.testing.assert_close(features[number], knowledge.features[row, int(mirrored)])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_labels_are_the_divergence_written_out(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn((4, 3), generator=generator), torch.randn((4, 3), generator=generator)
    total = 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = ([math.exp(value / temperature) for value in row] for row in (theirs, ours))
        p, q = [value / sum(p) for value in p], [value / sum(q) for value in q]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(soft_label_loss(student, teacher, temperature)) == pytest.approx(temperature**2 * total / 4, rel=1e-5)
    assert float(soft_label_loss(student, student + 7, temperature)) == pytest.approx(0, abs=1e-5)


def test_relations_do_not_change_with_rotation_or_scale_of_the_features() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((6, 4), generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn((4, 4), generator=generator))
    assert float(relation_loss(features, 3 * features @ rotation)) == pytest.approx(0, abs=1e-6)
    assert float(relation_loss(features, torch.randn((6, 9), generator=generator))) > 0.01


def test_an_image_without_a_label_is_learned_from_the_teacher_alone() -> None:
    student, batch = made_student(), made_batch([-1, -1])
    assert float(made()(student, batch).detach()) == 0
    assert float(made(logits=0.5)(student, batch).detach()) > 0
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    named = labelled_loss(logits, torch.tensor([0, -1]), 0.0)
    torch.testing.assert_close(named, nn.functional.cross_entropy(logits[:1], torch.tensor([0])))


@pytest.mark.parametrize("weights", [{"logits": 0.7}, {"features": 2.0}, {"relations": 3.0}])
def test_every_part_teaches(weights: dict[str, float]) -> None:
    """A few steps down its gradient make the loss smaller, and the student's first layer moves."""
    student, batch = made_student(), made_batch([0, 2, 1, 1])
    objective, before = made(**weights), student.network.stem[0].weight.detach().clone()
    optimiser = torch.optim.SGD(student.parameters(), 0.05)
    losses: list[Tensor] = []
    for _ in range(20):
        loss = objective(student, batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    assert losses[-1] < losses[0]
    assert not torch.equal(before, student.network.stem[0].weight)
