"""Tests of the logistic head against scikit-learn, and of the floor's patches against patches copied out one by one."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from individual_node.feature_head import (
    centred_and_normalised,
    inherited_features,
    logistic_regression,
    predict,
)
from individual_node.floor import (
    PATCH,
    contrast_normalised,
    encode,
    floor_predictions,
    normalised_patches,
    random_patches,
    whitening,
)
from protocol.images import DeviceImages, Normalisation
from protocol.network import ConvolutionBlock


def test_logistic_regression_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 8)
    x = rng.normal(size=(2, 24, 6)) + labels[None, :, None] * np.linspace(0, 0.6, 6)
    unknown = rng.normal(size=(2, 40, 6))
    weight = logistic_regression(torch.from_numpy(x), torch.from_numpy(np.stack([labels] * 2)), 3, penalty=0.5)
    found = predict(weight, torch.from_numpy(unknown)).numpy()
    for task in range(2):
        reference = LogisticRegression(C=1 / 0.5, tol=1e-10, max_iter=10_000).fit(x[task], labels)
        np.testing.assert_allclose(weight[task, :, :-1].numpy(), reference.coef_, atol=1e-4)
        np.testing.assert_array_equal(found[task], reference.predict(unknown[task]))


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


def test_encoding_agrees_with_patches_copied_out_one_by_one() -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 3, 12, 12)
    generator = torch.Generator().manual_seed(0)
    mean, matrix = whitening(contrast_normalised(random_patches(images, 500, generator)))
    filters = torch.nn.functional.normalize(torch.randn(10, 3 * PATCH * PATCH), dim=1)
    patches = torch.nn.functional.unfold(images, PATCH).transpose(1, 2).reshape(-1, 3 * PATCH * PATCH)
    response = ((contrast_normalised(patches) - mean) @ matrix) @ filters.T
    response = response.view(3, 7, 7, 10).permute(0, 3, 1, 2)
    both = torch.cat([response.relu(), (-response).relu()], 1)
    expected = torch.nn.functional.adaptive_avg_pool2d(both, 2)
    expected = expected.view(3, 2, 10, 4).transpose(2, 3).flatten(1)  # sign, quadrant, filter
    # bfloat16 products, where the machine has them, keep eight bits.
    torch.testing.assert_close(
        encode(normalised_patches(images), filters, mean, matrix), expected, rtol=0.05, atol=0.05
    )


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
