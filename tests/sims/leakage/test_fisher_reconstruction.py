"""What a diagonal shows: all of one image behind a linear layer, ever less of more, nothing of none."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protocol.learngene.fisher import fisher_of_network
from sims.leakage.fisher_reconstruction import Templates, activations_from_fisher, correlations, standardised


def linear_diagonal(inputs: Tensor, outputs: int = 6) -> Tensor:
    """Of a linear classifier with random weights, from these inputs ``[n, I]``."""
    torch.manual_seed(3)
    layer = nn.Linear(inputs.shape[1], outputs).eval()
    generator = torch.Generator().manual_seed(0)
    found, count = fisher_of_network(nn.Sequential(layer), [(inputs, None)], "exact", generator)
    assert count == len(inputs)
    return found["0.weight"]


def test_one_image_behind_a_linear_layer_is_given_away_wholly() -> None:
    inputs = torch.randn(1, 40, generator=torch.Generator().manual_seed(1))
    found = activations_from_fisher(linear_diagonal(inputs))
    expected = inputs[0].abs().double()
    assert torch.allclose(found / found.norm(), expected / expected.norm(), atol=1e-5)


def test_one_image_behind_a_convolution_on_single_positions_too() -> None:
    inputs = torch.rand(1, 9, 1, 1, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(4)
    network = nn.Sequential(nn.Conv2d(9, 5, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(5, 3)).eval()
    found, _ = fisher_of_network(network, [(inputs, None)], "exact", torch.Generator())
    shown = activations_from_fisher(found["0.weight"])
    assert shown.shape == (9, 3, 3)
    centre = shown[:, 1, 1]
    assert torch.allclose(centre / centre.norm(), (inputs[0, :, 0, 0] / inputs.norm()).double(), atol=1e-5)
    assert shown.sum() == pytest.approx(float(centre.sum()), abs=1e-6)  # the other offsets see nothing


def test_more_images_show_less_of_each() -> None:
    generator = torch.Generator().manual_seed(2)
    shown = []
    for count in (1, 4, 64, 1024):
        inputs = torch.randn(count, 40, generator=generator)
        found = activations_from_fisher(linear_diagonal(inputs)).flatten()
        shown.append(float(correlations(inputs.abs(), found).mean()))
    assert shown[0] == pytest.approx(1.0, abs=1e-5)
    assert shown[0] > shown[1] > shown[2] > shown[3]
    assert shown[3] < 0.1


def test_correlations_are_numpys_and_0_for_constants() -> None:
    rng = np.random.default_rng(0)
    rows, one = rng.normal(size=(5, 30)), rng.normal(size=30)
    rows[4] = 2.0
    found = correlations(torch.from_numpy(rows), torch.from_numpy(one)).numpy()
    assert found[:4] == pytest.approx([np.corrcoef(row, one)[0, 1] for row in rows[:4]])
    assert found[4] == 0


def test_templates_find_their_own_diagonal() -> None:
    """Of each image the squared gradient itself is the diagonal of a release with that image alone behind it."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.rand(6, 20, generator=generator) ** 4
    activations = torch.rand(6, 4, generator=generator)
    templates = Templates((standardised(activations),), (standardised(gradients),))
    for number in range(6):
        found = templates.correlations([gradients[number].reshape(5, 4)])["gradients"]
        assert found.shape == (6, 1)
        assert int(found[:, 0].argmax()) == number
        assert float(found[number, 0]) == pytest.approx(1.0)
