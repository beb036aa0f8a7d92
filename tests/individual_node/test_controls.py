"""Tests of the controls: random weights, and the logistic head on the features of networks that were trained."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from individual_node.adaptation import adapt, network_views, stacked, task_generator
from individual_node.feature_head import FeatureHeadNetwork, head_on_network
from individual_node.method_table import METHODS
from individual_node.methods import Evaluation
from individual_node.random_weights import random_networks
from individual_node.reconstruction import IndividualNetwork, reconstruct
from individual_node.settings import IndividualSettings
from individual_node.target_tasks import PrivateImages, TargetTask
from individual_node.views import inherited_features, shifted
from protocol.learngene.images import CropAndFlip, DeviceImages, Normalisation
from protocol.learngene.network import layers_of
from protocol.node.events import Events
from tests.individual_node.made import ARCHITECTURES, CPU, SHOTS, WAYS, generators, images, learngene, task

HEADED = tuple(name for name, method in METHODS.items() if method.head)


def test_random_weights_are_those_with_which_scratch_begins() -> None:
    architecture = ARCHITECTURES["condensed"]
    start = reconstruct(architecture, None, ways=WAYS, generators=generators(0, 1))
    found = random_networks(architecture, [task(0), task(1)], images(), generators(0, 1))
    assert not found.training
    for (name, value), begun in zip(found.named_parameters(), start.parameters(), strict=True):
        assert torch.equal(value, begun), name
    assert (METHODS["random"].start, METHODS["random"].form) == (METHODS["scratch"].start, METHODS["scratch"].form)


def test_statistics_of_random_weights_are_those_of_the_tasks_own_support_images() -> None:
    """Layer by layer, over the images and their mirror images, all at once: they are fewer than one part."""
    tasks, data = [task(0), task(1)], images()
    networks = random_networks(ARCHITECTURES["condensed"], tasks, data, generators(0, 1))
    for index, target in enumerate(tasks):
        x, _ = data.batch(torch.from_numpy(target.support))
        x = torch.cat([x, x.flip(3)])
        for block in layers_of(networks.network(index).side_by_side.blocks):
            response = block.conv(x).transpose(0, 1).flatten(1)
            assert isinstance(block.norm, nn.BatchNorm2d)
            assert block.norm.running_mean is not None
            assert block.norm.running_var is not None
            torch.testing.assert_close(block.norm.running_mean, response.mean(1), rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(block.norm.running_var, response.var(1), rtol=1e-3, atol=1e-3)
            x = block(x)


@pytest.mark.parametrize("shift", [(0, 0), (2, -2)])
def test_views_of_networks_side_by_side_are_those_of_each_by_itself(shift: tuple[int, int]) -> None:
    tasks, data = [task(0), task(1)], images()
    networks = random_networks(ARCHITECTURES["condensed"], tasks, data, generators(0, 1))
    rows, _ = stacked(tasks)
    views = network_views(networks, rows, data, shift)
    for index, target in enumerate(tasks):
        blocks = layers_of(networks.network(index).side_by_side.blocks)
        for view, alone in zip(views, inherited_features(blocks, 1, data, target.support, shift), strict=True):
            torch.testing.assert_close(view[index], alone)


def test_a_shifted_image_is_cut_out_further_on() -> None:
    x = torch.rand(2, 3, 6, 6)
    assert torch.equal(shifted(x, (0, 0)), x)
    expected = torch.zeros_like(x)
    expected[:, :, :4, 2:] = x[:, :, 2:, :4]
    assert torch.equal(shifted(x, (2, -2)), expected)
    by_training = CropAndFlip(torch.tensor([[6, 6], [2, 2]]), torch.zeros(2, dtype=torch.bool))
    assert torch.equal(by_training(x), expected)


def test_views_and_logits_are_summed_over_every_shifted_copy_and_its_mirror_image() -> None:
    gene, data = learngene(), images()
    x, _ = data.batch(torch.arange(4))
    copies = [shifted(x, shift) for shift in ((0, 0), (0, 2), (0, -2))]
    every = [*copies, *(copy.flip(3) for copy in copies)]
    networks = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0), view_shifts=2).eval()
    logits = torch.stack([networks(picture) for picture in every]).mean(0)
    torch.testing.assert_close(networks.predict(x), logits)
    torch.testing.assert_close(networks.network(0)(x), logits[:, 0])
    blocks = layers_of(networks.blocks)
    expected = torch.stack([nn.Sequential(*blocks[:1])(picture) for picture in every]).sum(0).flatten(1).sqrt()
    views = networks.views(x)
    torch.testing.assert_close(views[0][0], expected)
    for view, alone in zip(views, inherited_features(blocks, 1, data, np.arange(4), view_shifts=2), strict=True):
        torch.testing.assert_close(view[0], alone)


def evaluation(name: str, folder: Path, **settings: object) -> tuple[Evaluation, DeviceImages]:
    form = METHODS[name].form
    assert form is not None
    gene, pixels = learngene(form), images().pixels.numpy()
    own = PrivateImages(pixels, pixels, {SHOTS: [task(0), task(1), task(2)]})
    chosen = IndividualSettings.model_validate({"epochs": 2, "batch_size": 8, "networks_at_once": 2, **settings})
    normalisation = Normalisation(gene.tensors["input.mean"], gene.tensors["input.std"])
    loaded = DeviceImages.load(pixels, np.zeros(len(pixels), np.int64), normalisation, CPU)
    return Evaluation({form: gene}, own, chosen, 0, CPU, Events(folder / "events")), loaded


def support_of(target: TargetTask, data: DeviceImages) -> DeviceImages:
    rows = torch.from_numpy(target.support)
    return DeviceImages(data.pixels[rows], torch.from_numpy(target.support_labels), data.mean, data.std)


@pytest.mark.parametrize(
    "changes", [{}, {"cross_validation": 2, "support_shifts": 2, "top_share_grid": (0.5, 1.0), "view_shifts": 1}]
)
@pytest.mark.parametrize("name", [*HEADED, "random"])
def test_the_head_stands_on_each_tasks_own_network(name: str, changes: dict[str, object], tmp_path: Path) -> None:
    """What many tasks get side by side is what one gets whose network is trained, and whose head is fitted, alone."""
    evaluated, data = evaluation(name, tmp_path, **changes)
    outcome = evaluated.run(name, SHOTS)
    method, gene = METHODS[name], evaluated.learngenes
    assert method.form is not None
    architecture = gene[method.form].architecture
    assert outcome.curve == {}
    for target in (task(0), task(2)):
        drawn = [task_generator(0, method.start, SHOTS, target.number)]
        if name == "random":
            networks = random_networks(architecture, [target], data, drawn, evaluated.settings.view_shifts)
        else:
            inherited = gene[method.form] if method.inherits else None
            networks = adapt(method, architecture, inherited, [target], data, evaluated.settings, drawn).networks
        network = head_on_network(networks.network(0), support_of(target, data), evaluated.settings.head)
        x, _ = data.batch(torch.from_numpy(target.test))
        hits = network(x).argmax(1).numpy() == target.test_labels
        assert outcome.accuracy[target.number] == pytest.approx(hits.mean() * 100, abs=3.4)  # one image: rounding


def test_a_head_on_a_trained_network_can_be_saved_and_gives_the_mirror_image_the_same_logits() -> None:
    trained = reconstruct(ARCHITECTURES["paper"], None, ways=WAYS, generators=generators(0)).network(0)
    network = head_on_network(trained, support_of(task(0), images()), IndividualSettings().head)
    x, _ = images().batch(torch.arange(10))
    assert network(x).shape == (10, WAYS)
    torch.testing.assert_close(network(x), network(x.flip(3)))
    whole: IndividualNetwork = trained
    again = FeatureHeadNetwork(ARCHITECTURES["paper"], ways=WAYS, own=whole.side_by_side.own)
    state: dict[str, Tensor] = network.state_dict()
    again.load_state_dict(state)
    torch.testing.assert_close(again.eval()(x), network(x))
