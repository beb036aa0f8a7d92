"""Tests of the logistic head against scikit-learn, and of the floor's patches against patches copied out one by one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from individual_node.feature_head import FeatureHeadNetwork, FeatureHeads, fit_feature_head
from individual_node.floor import (
    PATCH,
    contrast_normalised,
    encode,
    floor_predictions,
    normalised_patches,
    random_patches,
    whitening,
)
from individual_node.logistic_regression import logistic_regression, predict
from individual_node.methods import Evaluation
from individual_node.settings import HeadChoice, HeadSettings, IndividualSettings
from individual_node.target_tasks import PrivateImages
from individual_node.views import centred_and_normalised, inherited_features
from protocol.errors import InputError
from protocol.learngene.images import DeviceImages, Normalisation
from protocol.learngene.network import ConvolutionBlock, build_blocks, layers_of, load_blocks
from protocol.node.events import Events
from tests.individual_node.made import CPU, SHOTS, WAYS, images, learngene, task

HEAD = HeadSettings(HeadChoice(0.3))


@pytest.mark.parametrize("features", [6, 23, 24, 25, 200])
def test_logistic_regression_agrees_with_scikit_learn(features: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 8)
    x = rng.normal(size=(2, 24, features)) + labels[None, :, None] * np.linspace(0, 0.6, features)
    x[:, 1] = x[:, 0]  # an image that occurs twice
    unknown = rng.normal(size=(2, 40, features))
    weight = logistic_regression(torch.from_numpy(x), torch.from_numpy(np.stack([labels] * 2)), 3, penalty=0.5)
    found = predict(weight, torch.from_numpy(unknown)).numpy()
    for number in range(2):
        reference = LogisticRegression(C=1 / 0.5, tol=1e-10, max_iter=10_000).fit(x[number], labels)
        np.testing.assert_allclose(weight[number, :, :-1].numpy(), reference.coef_, atol=1e-4)
        np.testing.assert_array_equal(found[number], reference.predict(unknown[number]))


def test_each_view_is_centred_and_of_length_one() -> None:
    views = [torch.rand(7, 5), torch.rand(7, 3)]
    centres = [view.mean(0, keepdim=True) for view in views]
    found = centred_and_normalised(views, centres)
    assert found.shape == (7, 8)
    for part, view, centre in zip(found.split((5, 3), 1), views, centres, strict=True):
        direction = (view - centre) / (view - centre).norm(dim=1, keepdim=True)
        torch.testing.assert_close(part, direction)


def test_an_image_and_its_mirror_image_have_the_same_features() -> None:
    torch.manual_seed(0)
    blocks = [ConvolutionBlock(3, 4, pool=True).eval(), ConvolutionBlock(4, 6, pool=True).eval()]
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    both = np.concatenate([pixels, pixels[:, :, ::-1]])
    images = DeviceImages.load(both, np.zeros(10, np.int64), Normalisation.of(pixels), torch.device("cpu"))
    stem, top = inherited_features(blocks, 1, images, np.arange(10))
    assert stem.shape == (10, 4 * 4 * 4)
    assert top.shape == (10, 6 * 2 * 2)
    for view in (stem, top):
        torch.testing.assert_close(view[:5], view[5:], rtol=1e-2, atol=1e-2)  # of bfloat16
        assert not torch.allclose(view[0], view[1], rtol=1e-2, atol=1e-2)


def support_of(number: int) -> DeviceImages:
    """The support images of a task with their labels, as a task of one's own has them."""
    rows = torch.from_numpy(task(number).support)
    return replace(images(), pixels=images().pixels[rows], labels=torch.from_numpy(task(number).support_labels))


def test_a_task_of_its_own_is_predicted_as_among_many(tmp_path: Path) -> None:
    gene, data = learngene(), images()
    own = PrivateImages(data.pixels.numpy(), data.pixels.numpy(), {SHOTS: [task(n) for n in range(3)]})
    evaluation = Evaluation({"condensed": gene}, own, IndividualSettings(), 0, CPU, Events(tmp_path / "events"))
    together = evaluation.run("condensed", SHOTS).accuracy
    mean, std = (torch.from_numpy(gene.tensors[f"input.{name}"]) for name in ("mean", "std"))
    for number in range(3):
        network = fit_feature_head(gene, replace(support_of(number), mean=mean, std=std), ways=WAYS, settings=HEAD)
        x, _ = replace(data, mean=mean, std=std).batch(torch.from_numpy(task(number).test))
        right = network(x).argmax(1).numpy() == task(number).test_labels
        assert together[number] == pytest.approx(right.mean() * 100)


def test_the_head_as_a_network_computes_what_the_heads_of_many_tasks_compute() -> None:
    gene, data, tasks = learngene(), images(), [task(n) for n in range(3)]
    blocks = layers_of(build_blocks(gene.architecture.blocks).eval())
    load_blocks(blocks, gene.tensors)
    views = inherited_features(blocks, 1, data, np.arange(60))
    support = torch.from_numpy(np.stack([t.support for t in tasks]))
    labels = torch.from_numpy(np.stack([t.support_labels for t in tasks]))
    heads = FeatureHeads.fit([view[support] for view in views], labels, WAYS, HEAD)
    x, _ = data.batch(torch.arange(60))
    for number in range(3):
        network = fit_feature_head(gene, support_of(number), ways=WAYS, settings=HEAD)
        known = centred_and_normalised(views, [centre[number] for centre in heads.centres]).double()
        expected = known @ heads.weight[number, :, :-1].T + heads.weight[number, :, -1]
        torch.testing.assert_close(network(x).double(), expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(network(x).argmax(1), heads.predict([view[None] for view in views])[number])


def test_a_saved_head_makes_the_same_network_again() -> None:
    network = fit_feature_head(learngene(), support_of(0), ways=WAYS, settings=HEAD)
    again = FeatureHeadNetwork(learngene().architecture, ways=WAYS)
    assert not again.training
    again.load_state_dict(network.state_dict())
    x, _ = images().batch(torch.arange(10))
    torch.testing.assert_close(again(x), network(x))


def test_a_head_needs_features_of_images() -> None:
    with pytest.raises(InputError, match="this one is paper"):
        FeatureHeadNetwork(learngene("paper").architecture, ways=WAYS)


def test_encoding_agrees_with_patches_copied_out_one_by_one() -> None:
    """Of the images and of their mirror images, with filters that are not their own mirror images."""
    torch.manual_seed(0)
    images = torch.rand(3, 3, 12, 12)
    generator = torch.Generator().manual_seed(0)
    mean, matrix = whitening(contrast_normalised(random_patches(images, 500, generator)))
    filters = torch.nn.functional.normalize(torch.randn(10, 3 * PATCH * PATCH), dim=1)
    views = []
    for pictures in (images, images.flip(3)):
        patches = torch.nn.functional.unfold(pictures, PATCH).transpose(1, 2).reshape(-1, 3 * PATCH * PATCH)
        response = ((contrast_normalised(patches) - mean) @ matrix) @ filters.T
        response = response.view(3, 7, 7, 10).permute(0, 3, 1, 2)
        both = torch.cat([response.relu(), (-response).relu()], 1)
        expected = torch.nn.functional.adaptive_avg_pool2d(both, 2)
        views.append(expected.view(3, 2, 10, 4).transpose(2, 3).flatten(1))  # sign, quadrant, filter
    found = encode(normalised_patches(images), filters, mean, matrix)
    torch.testing.assert_close(found, (views[0] + views[1]) / 2, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, views[0], rtol=0.05, atol=0.05)
    torch.testing.assert_close(encode(normalised_patches(images.flip(3)), filters, mean, matrix), found)


def test_whitening_makes_patches_nearly_uncorrelated() -> None:
    torch.manual_seed(0)
    mixed = torch.randn(4000, 20) @ torch.randn(20, 20) * 5
    mean, matrix = whitening(mixed)
    covariance = torch.cov(((mixed - mean) @ matrix).T)
    torch.testing.assert_close(covariance, torch.eye(20), rtol=0.2, atol=0.2)


def test_the_floor_tells_apart_what_patches_can_tell_apart() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int, horizontal: bool) -> torch.Tensor:
        phase = torch.rand(count, 1, 1, 1, generator=generator) * 6
        wave = torch.sin(torch.arange(16) * 1.5 + phase)[..., None].expand(count, 1, 1, 16, 1)[:, :, 0]
        stripes = wave.expand(count, 1, 16, 16)
        picture = stripes if horizontal else stripes.transpose(2, 3)
        noise = torch.randn(count, 3, 16, 16, generator=generator)
        return (0.5 + 0.3 * picture.expand(count, 3, 16, 16) + 0.05 * noise).clamp(0, 1)

    support = torch.cat([drawn(8, True), drawn(8, False)])
    test = torch.cat([drawn(30, True), drawn(30, False)])
    predicted = floor_predictions(
        support, torch.arange(2).repeat_interleave(8), test, ways=2, filters=50, penalty=1.0, generator=generator
    )
    assert (predicted == torch.arange(2).repeat_interleave(30)).double().mean() > 0.9
