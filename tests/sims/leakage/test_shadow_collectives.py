"""Candidates, shadows and what an attacker computes: exact contents, resuming, gradients against autograd."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from collective_node.pipeline import Evolved
from protocol.errors import InputError
from sims.leakage import class_presence, membership
from sims.leakage.attacked_run import AttackedRun, subset, without_in_stream
from sims.leakage.probe import LabelledImages, Probe, first_of_each
from sims.leakage.release_variants import variants, with_noise
from sims.leakage.shadow_collectives import Recipe, as_the_run, remove_leftovers, train_shadows
from tests.sims.leakage.made_attack import SMALL, make_attacked, with_release

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[AttackedRun, Evolved]:
    folder = tmp_path_factory.mktemp("attacked")
    (folder / "working").mkdir()
    return with_release(make_attacked(folder / "runs", cycles=1), folder / "working")


def pictures(images: np.ndarray) -> list[bytes]:
    return sorted(image.tobytes() for image in images)


def test_the_attacked_collective_holds_what_its_tasks_taught(made: tuple[AttackedRun, Evolved]) -> None:
    run, evolved = made
    taught = {name for task in evolved.collective.tasks for name in task.classes}
    assert len(evolved.collective.cycles) == 1  # the annotator knew what the reduced stream shows
    assert set(run.images.classes) == taught
    assert len(taught) == 6
    assert len(run.images.train_labels) == 6 * 24
    assert not taught & run.absent.keys()
    named = set(run.truth.stream_names)
    assert taught < named  # known and open-world classes, no untaught base class
    assert not named & run.absent.keys()
    assert run.images.stream_images is not None
    assert len(run.images.stream_images) == len(run.truth.stream_names)


def test_every_shadow_swaps_candidates_and_nothing_else(made: tuple[AttackedRun, Evolved]) -> None:
    run, _ = made
    rng = np.random.default_rng(0)
    candidates = membership.choose_candidates(run.images, 48, rng)
    assert len(candidates.images) == 48
    assert candidates.members.sum() == 24
    members = candidates.images.images[candidates.members]
    assert set(pictures(members)) <= set(pictures(run.images.train_images))
    assert set(pictures(candidates.images.images[~candidates.members])) <= set(pictures(run.images.heldout_images))
    # The release's own contents come out for its own membership.
    same = candidates.training(candidates.members)
    assert pictures(same.train_images) == pictures(run.images.train_images)
    assert pictures(same.heldout_images) == pictures(run.images.heldout_images)
    for inside in candidates.halves(4, rng):
        shadow = candidates.training(inside)
        assert len(shadow.train_labels) == len(run.images.train_labels)
        assert (np.bincount(shadow.train_labels) == 24).all()
        trained = set(pictures(shadow.train_images))
        assert [image.tobytes() in trained for image in candidates.images.images] == inside.tolist()
        alone = candidates.training(inside, alone=True)
        assert pictures(alone.train_images) == pictures(candidates.images.images[inside])


@pytest.mark.parametrize("count", [48, 10_000])
def test_the_population_is_in_no_shadow_and_no_candidate(made: tuple[AttackedRun, Evolved], count: int) -> None:
    """Also if as many candidates as possible are asked for."""
    run, _ = made
    rng = np.random.default_rng(0)
    candidates = membership.choose_candidates(run.images, count, rng)
    population = candidates.population(12)
    assert set(population.labels) == set(range(6))
    shown = set(pictures(population.images))
    assert len(population) == len(shown) <= 12
    assert not shown & set(pictures(candidates.images.images))
    for inside in candidates.halves(2, rng):
        assert not shown & set(pictures(candidates.training(inside).train_images))
    of = membership.measure(candidates, SMALL.model_copy(update={"population": 12}), CPU, fisher=False)
    assert of(run.learngene).shape == (len(candidates.images) + len(population), 4)


def test_every_class_shadow_swaps_classes_and_nothing_else(made: tuple[AttackedRun, Evolved]) -> None:
    run, _ = made
    rng = np.random.default_rng(0)
    classes = class_presence.choose_classes(run.images, run.absent, 4, rng)
    asked = classes.images.classes[:4]
    assert [name in run.images.classes for name in asked] == classes.members.tolist() == [True, True, False, False]
    assert set(classes.training(classes.members).classes) == set(run.images.classes)
    for inside in classes.halves(4, rng):
        shadow = classes.training(inside)
        assert [name in shadow.classes for name in asked] == inside.tolist()
        assert len(shadow.classes) == 6
        assert (np.bincount(shadow.train_labels) == 24).all()
        for number, name in enumerate(shadow.classes):
            if name in run.absent:
                assert pictures(shadow.train_images[shadow.train_labels == number]) == pictures(run.absent[name][0])
    streamed, truth = without_in_stream(classes.images, run.truth, set(asked))
    assert not set(truth.stream_names) & set(asked)
    assert streamed.stream_images is not None
    assert len(streamed.stream_images) == len(truth.stream_names) < len(run.truth.stream_names)


def test_too_few_candidates_or_classes_are_refused(made: tuple[AttackedRun, Evolved]) -> None:
    run, _ = made
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="ask for 12 at least"):
        membership.choose_candidates(run.images, 11, rng)
    with pytest.raises(InputError, match="too few"):
        class_presence.choose_classes(subset(run.images, range(3)), run.absent, 16, rng)
    with pytest.raises(InputError, match="too few"):
        class_presence.choose_classes(run.images, {}, 16, rng)


def test_shadows_are_stored_found_again_and_never_confused(
    made: tuple[AttackedRun, Evolved], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = made
    recipe = Recipe(as_the_run(run.kept.settings.collective), run.truth, CPU)
    candidates = membership.choose_candidates(run.images, 48, np.random.default_rng(0))
    halves = candidates.halves(2, np.random.default_rng(1))
    folder, said = tmp_path / "membership", list[tuple[int, int]]()

    def train(seed: int) -> list[dict[str, bytes]]:
        found = train_shadows(
            folder, recipe, lambda n: candidates.training(halves[n]), 2, seed, lambda *done: said.append(done)
        )
        return [{name: value.tobytes() for name, value in one.tensors.items()} for one in found]

    first = train(5)
    assert said == [(1, 2), (2, 2)]
    assert first[0] != first[1]
    (folder / ".working-killed").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["shadow-0000", "shadow-0001"]
    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "evolve", lambda *_: pytest.fail("it is there already"))
        assert train(5) == first
        with pytest.raises(InputError, match="made of other"):
            train(6)
        (folder / "shadow-0001" / "learngene.json").write_text("{}")
        with pytest.raises(InputError, match="no whole shadow"):
            train(5)


def test_squared_gradients_are_autograds(made: tuple[AttackedRun, Evolved]) -> None:
    run, _ = made
    known = LabelledImages(run.images.train_images, run.images.train_labels)
    probe = Probe(run.learngene, known.select(first_of_each(known.labels, 8)), 6, CPU)
    asked = known.select(np.array([3, 50, 140]))
    found = list(probe.squared_gradients(asked))
    assert len(found) == 1
    for row in range(3):
        own = asked.select(np.array([row]))
        probe.blocks.requires_grad_(True)
        # The same loss by the public way to its logits, differentiated as a whole.
        x = torch.from_numpy(own.images).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.from_numpy(np.array(run.learngene.tensors[f"input.{n}"])) for n in ("mean", "std"))
        features = probe.blocks((x - mean[:, None, None]) / std[:, None, None]).flatten(1)
        logits = probe._logits(features)
        assert torch.allclose(logits.double(), probe.logits(own), atol=1e-4)
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(own.labels))
        gradients = torch.autograd.grad(loss, [layer.conv.weight for layer in probe.layers])
        probe.blocks.requires_grad_(False)
        for number, gradient in enumerate(gradients):
            value = found[0][f"block.{number}.conv.weight"][row]
            scale = float(gradient.square().max())
            assert torch.allclose(value, gradient.square(), rtol=1e-2, atol=1e-5 * scale)


def test_patch_energies_are_mean_squares_of_what_a_kernel_sees(made: tuple[AttackedRun, Evolved]) -> None:
    run, _ = made
    known = LabelledImages(run.images.train_images, run.images.train_labels)
    probe = Probe(run.learngene, known.select(first_of_each(known.labels, 4)), 6, CPU)
    found = next(probe.patch_energies(known.select(np.array([0]))))
    pixels = torch.from_numpy(known.images[0]).permute(2, 0, 1).float() / 255
    mean, std = (torch.from_numpy(np.array(run.learngene.tensors[f"input.{n}"])) for n in ("mean", "std"))
    x = (pixels - mean[:, None, None]) / std[:, None, None]
    first = found["block.0.conv.weight"][0]
    assert first.shape == (3, 3, 3)
    assert torch.allclose(first[:, 1, 1], x.square().mean((1, 2)), rtol=1e-4)
    # The offset up and to the left sees neither the last row nor the last column, and zeros around the image.
    assert torch.allclose(first[:, 0, 0], x[:, :-1, :-1].square().sum((1, 2)) / x[0].numel(), rtol=1e-4)


def test_statistics_follow_what_the_release_is(made: tuple[AttackedRun, Evolved]) -> None:
    run, _ = made
    known = LabelledImages(run.images.train_images, run.images.train_labels)
    probe = Probe(run.learngene, known.select(first_of_each(known.labels, 8)), 6, CPU)
    asked = known.select(first_of_each(known.labels, 3))
    table = probe.statistics(asked, fisher=True)
    assert table.shape == (18, 4)
    assert (table[:, 0] <= 0).all()
    assert ((table[:, 3] >= 0) & (table[:, 3] <= 1 + 1e-6)).all()
    wrong = LabelledImages(asked.images, (asked.labels + 1) % 6)
    assert (table[:, 1].mean(), table[:, 0].mean()) > tuple(probe.statistics(wrong, fisher=False)[:, [1, 0]].mean(0))
    noise = LabelledImages(np.random.default_rng(0).integers(0, 256, asked.images.shape, np.uint8), asked.labels)
    assert table[:, 2].mean() > probe.statistics(noise, fisher=False)[:, 2].mean()
    assert (probe.statistics(asked, fisher=False)[:, 3] == 0).all()


def test_noise_has_its_size_and_keeps_what_cannot_be_negative(made: tuple[AttackedRun, Evolved]) -> None:
    run, _ = made
    assert with_noise(run.learngene, 0.0, np.random.default_rng(0)) is run.learngene
    noisy = with_noise(run.learngene, 0.5, np.random.default_rng(0))
    for name, value in run.learngene.tensors.items():
        if name.startswith("input."):
            assert (noisy.tensors[name] == value).all()
        elif name.startswith("fisher.") or name.endswith("running_var"):
            assert noisy.tensors[name].min() >= 0
        elif value.size > 500:
            assert (noisy.tensors[name] - value).std() == pytest.approx(0.5 * value.std(), rel=0.15)
    assert [one.name for one in variants((0.5,))] == ["weights", "weights + Fisher", "weights + Fisher, noise 0.5"]


def test_a_release_without_features_cannot_be_probed(made: tuple[AttackedRun, Evolved]) -> None:
    from tests.individual_node.made import learngene

    run, _ = made
    known = LabelledImages(run.images.train_images, run.images.train_labels)
    with pytest.raises(ValueError, match="form paper"):
        Probe(learngene("paper"), known, 6, CPU)
