"""A learngene with GroupNorm, as differential privacy needs it: inherited, adapted by every method, used, exported."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from individual_node import adapted, image_folder
from individual_node.adaptation import adapt, own_fisher
from individual_node.adapting import Opening
from individual_node.cli import app
from individual_node.method_table import METHODS
from individual_node.reconstruction import reconstruct
from individual_node.settings import IndividualSettings
from protocol.learngene.architecture import Architecture, Block, Form, InputContract
from protocol.learngene.fisher import fisher_diagonal
from protocol.learngene.learngene import DifferentialPrivacy, FisherDescription, Learngene
from protocol.learngene.network import layers_of
from tests.individual_node.made import SHOTS, WAYS, blocks, generators, images, task
from tests.individual_node.test_user_commands import onnx_run
from tests.two_folders import make_folders, succeeded
from tests.two_folders import run as run_command

GUARANTEE = DifferentialPrivacy(
    epsilon_micro=8_000_000, delta_exponent=5, relation="add-or-remove", scope="weights-and-fisher"
)


def grouped(chain: tuple[Block, ...]) -> tuple[Block, ...]:
    return tuple(block.model_copy(update={"norm": "group"}) for block in chain)


def learngene(form: Form = "condensed", privacy: DifferentialPrivacy | None = GUARANTEE) -> Learngene:
    chain = (*blocks("stem", (3, 8)), *blocks("top", (8, 8, 8))) if form == "condensed" else blocks("top", (8, 8, 8))
    architecture = Architecture(form=form, input=InputContract(height=16, width=16, channels=3), blocks=grouped(chain))
    rng = np.random.default_rng(0)
    tensors = {
        name: (
            rng.uniform(0, 0.01, shape)
            if role == "fisher"
            else rng.uniform(0.5, 1.5, shape)
            if name.endswith(("norm.weight", "std"))
            else rng.normal(0, 0.3, shape)
        ).astype(np.float32)
        for name, (role, shape) in architecture.tensors(fisher=True).items()
    }
    described = FisherDescription(source="collective", estimator="sampled", samples=1024, clip_micro=1_000_000)
    return Learngene(architecture, tensors, described, privacy)


@pytest.mark.parametrize("form", ["condensed", "paper"])
def test_the_network_that_is_built_normalises_as_the_learngene_says(form: Form) -> None:
    """The individual's own layers too."""
    gene = learngene(form)
    model = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0, 1))
    assert {block.describe("top").norm for block in layers_of(model.blocks)} == {"group"}
    assert not any(name.startswith("blocks") for name, _ in model.named_buffers())
    np.testing.assert_array_equal(
        model.inherited[0].norm.weight.detach().chunk(2)[1], gene.tensors["block.0.norm.weight"]
    )


@pytest.mark.parametrize(
    "name",
    [method.name for method in METHODS.values() if method.trains and not method.head and
     method.form in ("condensed", "paper")]
)  # fmt: skip
def test_every_method_adapts_it_side_by_side_as_alone(name: str) -> None:
    method = METHODS[name]
    assert method.form is not None
    gene = learngene(method.form)
    settings = IndividualSettings(epochs=2, batch_size=8, learning_rate=0.01)
    inherited = None if method.adaptation == "scratch" else gene

    def networks(*numbers: int) -> dict[str, torch.Tensor]:
        done = adapt(
            method, gene.architecture, inherited, [task(n) for n in numbers], images(), settings, generators(*numbers)
        )
        return {n: value.detach() for n, value in done.networks.network(len(numbers) - 1).named_parameters()}

    beside, alone = networks(0, 1), networks(1)
    for parameter, value in alone.items():
        torch.testing.assert_close(beside[parameter], value, rtol=2e-2, atol=2e-3)


def test_its_own_fisher_diagonal_is_that_of_the_network_by_itself() -> None:
    gene, data = learngene(), images()
    model = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0, 1))
    found, retains = own_fisher(
        model, [task(0), task(1)], data, IndividualSettings(learning_rate=1e-6), generators(5, 6)
    )
    front, inherited, head = model.network(1).parts()
    x, _ = data.batch(torch.from_numpy(task(1).support))
    expected, count = fisher_diagonal(inherited, head, [(front(x), None)], "sampled", generators(6)[0])
    assert count == WAYS * SHOTS
    for name, entries in expected.items():
        torch.testing.assert_close(found[name].chunk(2)[1], retains[1] * entries)


def test_from_the_release_to_a_model_its_predictions_and_its_onnx_file(tmp_path: Path) -> None:
    """As a user types it; the guarantee arrives with the learngene, and the release says it to whoever looks."""
    folders = make_folders(tmp_path / "site")
    folders.publish(dataclasses.replace(learngene(), tensors=_telling_colours_apart(learngene())))
    bundle = folders.exchange(tmp_path / "condensed.learngene")
    opened = Opening(bundle, config=folders.individual).read().opened
    assert opened is not None
    assert opened.learngene.privacy == opened.release.dp == GUARANTEE
    assert opened.release.fisher is not None
    assert opened.release.fisher.clip_micro == 1_000_000
    assert not any(tensor.role == "statistic" for tensor in opened.release.tensors)
    pictures = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for name, colour in {"red": (200, 40, 40), "green": (40, 200, 40)}.items():
        (pictures / name).mkdir(parents=True)
        for number in range(6):
            pixels = (np.array(colour) + rng.integers(-40, 40, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(pictures / name / f"{number}.png")
    run = functools.partial(run_command, app)
    for method in ("condensed", "condensed-eq9"):
        model, onnx = tmp_path / method, tmp_path / f"{method}.onnx"
        adapting = run(
            "adapt", "--bundle", bundle, "--config", folders.individual, "--data", pictures, "--out", model,
            "--method", method, "--epochs", 3, "--folds", 0,
        )  # fmt: skip
        assert adapting.code == 0, adapting
        loaded = adapted.load(model)
        assert {block.norm for block in loaded.description.architecture.blocks} == {"group"}
        read = image_folder.read_tree(pictures, loaded.description.input)
        expected = loaded.classifier.probabilities(read.pixels)
        named = json.loads(succeeded(run("predict", model, pictures / "red", "--json", "-")))["pictures"]
        found = [one["class"] for picture in named for one in picture["top"][:1]]
        classes = loaded.description.classes
        assert found == [classes[row.argmax()] for row in expected[read.labels == classes.index("red")]]
        assert np.ptp(expected, axis=0).max() > 0.01
        succeeded(run("export", model, "--onnx", onnx, pictures / "red"))
        np.testing.assert_allclose(onnx_run(onnx, read.pixels), expected, atol=1e-4)


def _telling_colours_apart(gene: Learngene) -> dict[str, np.ndarray]:
    return {
        name: np.full_like(array, 0.5 if name == "input.mean" else 0.25) if name.startswith("input.") else array
        for name, array in gene.tensors.items()
    }
