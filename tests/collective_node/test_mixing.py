"""Mixup and manifold mixup: the loss written out, and where images are mixed."""

import pytest
import torch
from torch import Tensor, nn

from collective_node.mixing import Mix, blocks_of
from collective_node.network.compact_network import CompactNetwork
from collective_node.objectives import Batch, CrossEntropy, Distillation, Knowledge, OnePass, Rotation, Student
from protocol.learngene.network import ConvolutionBlock

N, CLASSES, FEATURES = 6, 3, 5
PARTNERS = torch.tensor([3, 0, 2, 5, 1, 4])
TURNS = torch.tensor([0, 1, 0, 3, 2, 0])


def made() -> Student:
    """Three blocks and all heads, in float64 and evaluation mode: what is computed is what is written."""
    torch.manual_seed(0)
    stem = nn.Sequential(ConvolutionBlock(3, 4, pool=True), ConvolutionBlock(4, 4, pool=True))
    top = nn.Sequential(ConvolutionBlock(4, FEATURES, pool=True))
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, CLASSES))
    heads = nn.Linear(FEATURES, 7, bias=False), nn.Linear(FEATURES, 4)
    return Student(CompactNetwork(stem, top, classifier), *heads).double().eval()


def made_batch(mix: Mix | None) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((N, 3, 8, 8), generator=generator, dtype=torch.float64)
    outputs = torch.randint(0, CLASSES, (N,), generator=generator)
    return Batch(x, outputs, torch.arange(N) + 2, torch.arange(N) % 2 == 0, TURNS, mix)


def distillation() -> Distillation:
    generator = torch.Generator().manual_seed(2)
    logits, features = (torch.randn((10, 2, n), generator=generator, dtype=torch.float64) for n in (CLASSES, 7))
    knowledge = Knowledge(logits, features)
    return Distillation(knowledge, logits=0.4, temperature=3.0, features=0.5, relations=0.2, label_smoothing=0.1)


OBJECTIVES: dict[str, OnePass] = {
    "labels": CrossEntropy(0.1),
    "teacher": distillation(),
    "turns": Rotation(CrossEntropy(0.1), 0.5),
    "upright": Rotation(distillation(), 0.5, "upright"),
}


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor | None]:
    model.zero_grad()
    loss.backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_with_the_whole_share_loss_and_gradient_are_the_plain_ones(name: str, layer: int) -> None:
    model, objective = made(), OBJECTIVES[name]
    plain = objective(model, made_batch(None))
    wanted = gradients(model, plain)
    mixed = objective(model, made_batch(Mix(1.0, PARTNERS, layer)))
    assert torch.equal(mixed, plain)
    for found, value in zip(gradients(model, mixed), wanted, strict=True):
        assert (found is None) == (value is None)
        assert found is None or value is None or torch.equal(found, value)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy_with_mixed_labels(smoothing: float) -> None:
    model, batch = made(), made_batch(Mix(0.3, PARTNERS, 0))
    labels = nn.functional.one_hot(batch.outputs, CLASSES).double() * (1 - smoothing) + smoothing / CLASSES
    target = 0.3 * labels + 0.7 * labels[PARTNERS]
    logits = model(0.3 * batch.x + 0.7 * batch.x[PARTNERS])
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(CrossEntropy(smoothing)(model, batch), expected)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_what_goes_into_the_layer_is_mixed_and_nothing_else(layer: int) -> None:
    model, mix = made(), Mix(0.3, PARTNERS, layer)
    batch = made_batch(mix)
    blocks = blocks_of(model)
    x = nn.Sequential(*blocks[:layer])(batch.x)
    features = nn.Sequential(*blocks[layer:])(0.3 * x + 0.7 * x[PARTNERS])
    seen = []
    handle = model.network.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    CrossEntropy()(model, batch)
    handle.remove()
    torch.testing.assert_close(seen[0], features)
    # Afterwards the model is what it was.
    assert torch.equal(model(batch.x), made()(batch.x))


def test_with_everything_on_the_loss_and_its_gradient_are_those_written_out() -> None:
    """Labels, a teacher's three losses, turns and a mix in a hidden layer, in float64."""
    share, objective = 0.3, distillation()
    batch = made_batch(Mix(share, PARTNERS, 1))
    model, plain = made(), made()
    found = gradients(model, Rotation(objective, 0.5)(model, batch))

    first = plain.network.stem[0](batch.x)
    x = share * first + (1 - share) * first[PARTNERS]
    features = plain.network.top(plain.network.stem[1](x)).flatten(1)
    logits = plain.network.classifier(features)
    projected, told = plain.regressor(features), plain.turns(features)
    total = torch.zeros((), dtype=torch.float64)
    for part, order in ((share, torch.arange(N)), (1 - share, PARTNERS)):
        rows, side = batch.rows[order], batch.mirrored[order].long()
        soft, deep = objective.knowledge.logits[rows, side], objective.knowledge.features[rows, side]
        target = 0.9 * nn.functional.one_hot(batch.outputs[order], CLASSES) + 0.1 / CLASSES
        labels = -(target * logits.log_softmax(1)).sum(1).mean()
        p = (soft / 3).softmax(1)
        divergence = (p * (p.log() - (logits / 3).log_softmax(1))).sum(1).mean()
        cosine = (projected * deep).sum(1) / projected.norm(dim=1) / deep.norm(dim=1)
        grams = [value @ value.T for value in (features, deep)]
        grams = [gram / gram.norm(dim=1, keepdim=True) for gram in grams]
        relations = (grams[0] - grams[1]).square().sum() / N
        turns = -told.log_softmax(1)[torch.arange(N), TURNS[order]].mean()
        loss = 0.6 * labels + 0.4 * 9 * divergence + 0.5 * (1 - cosine).mean() + 0.2 * relations + 0.5 * turns
        total = total + part * loss
    wanted = gradients(plain, total)
    for value, expected in zip(found, wanted, strict=True):
        assert value is not None
        assert expected is not None
        torch.testing.assert_close(value, expected)
