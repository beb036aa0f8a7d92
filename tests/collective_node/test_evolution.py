"""Tests of the collective's life: checkpoints, going on after a kill, condensing, and what it publishes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from collective_node import checkpoint
from collective_node.condensing import STATISTICS_BATCHES, condense, stem_blocks
from collective_node.evolution import Collective, Evolution
from collective_node.private_images import PrivateImages, read
from collective_node.publishing import distinct_rows, learngene_of
from collective_node.settings import CollectiveSettings
from protocol.errors import InputError, RunFailedError
from protocol.events import Events
from protocol.network import ConvolutionBlock, build_blocks, load_blocks

CLASSES = 8
SETTINGS = CollectiveSettings(
    width=0.0625,
    tasks=4,
    classes_per_task=2,
    batch_size=8,
    epochs=1,
    condense_epochs=0.5,
    fisher_samples=70,
    dropout=0.2,
)


def images(seed: int = 0) -> PrivateImages:
    rng = np.random.default_rng(seed)

    def drawn(per_class: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(CLASSES), per_class)
        base = rng.integers(0, 200, (CLASSES, 1, 1, 3))
        return (base[labels] + rng.integers(0, 56, (len(labels), 32, 32, 3))).astype(np.uint8), labels

    return PrivateImages(tuple(f"class {c}" for c in range(CLASSES)), *drawn(12), *drawn(4))


def evolution(folder: Path, settings: CollectiveSettings = SETTINGS, seed: int = 0) -> Evolution:
    events = Events(folder.parent / f"{folder.name}.jsonl")
    return Evolution(images(), settings, seed, torch.device("cpu"), folder, events)


def state(collective: Collective) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in collective.network.state_dict().items()}


class KilledError(Exception):
    """Stands for kill -9: nothing after it is executed."""


def test_a_run_that_was_killed_goes_on_from_its_last_task_and_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evolution(tmp_path / "whole").run()
    store, stored = checkpoint.store, []

    def store_and_die(*arguments: object) -> None:
        store(*arguments)  # type: ignore[arg-type]
        stored.append(arguments)
        if len(stored) == 2:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "store", store_and_die)
        with pytest.raises(KilledError):
            evolution(tmp_path / "killed").run()
    trained = []
    with monkeypatch.context() as patch:
        learn = Evolution._learn

        def counted(self: Evolution, collective: Collective, number: int, done: int, total: int) -> None:
            trained.append(number)
            learn(self, collective, number, done, total)

        patch.setattr(Evolution, "_learn", counted)
        resumed = evolution(tmp_path / "killed").run()
    assert trained == [2, 3]
    assert resumed.known == whole.known
    assert resumed.trend.rho == whole.trend.rho
    assert [task.model_dump(exclude={"seconds"}) for task in resumed.tasks] == [
        task.model_dump(exclude={"seconds"}) for task in whole.tasks
    ]
    expected = state(whole)
    assert all(torch.equal(value, expected[name]) for name, value in state(resumed).items())


def test_a_training_that_diverges_says_so_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match="lower"):
        evolution(tmp_path / "other", SETTINGS.model_copy(update={"learning_rate": 1e30})).run()
    assert list(tmp_path.glob("other/task-*")) == []


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    evolution(tmp_path / "kept").run()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["task-0004"]


def test_a_checkpoint_of_another_setup_is_refused_and_stays(tmp_path: Path) -> None:
    evolution(tmp_path / "state").run()
    other = SETTINGS.model_copy(update={"epochs": 2})
    with pytest.raises(InputError, match="other settings"):
        evolution(tmp_path / "state", other).run()
    assert (tmp_path / "state" / "task-0004").is_dir()


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    evolution(tmp_path / "state").run()
    (tmp_path / "state" / "task-0004" / "network.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="task-0004 cannot be read"):
        evolution(tmp_path / "state").run()


def test_the_network_grows_to_the_final_widths_and_one_classifier_to_all_classes(tmp_path: Path) -> None:
    collective = evolution(tmp_path / "state").run()
    assert collective.network.widths == (4, 4, 8, 8, 16, 16, 16, 32, 32, 32, 32, 32, 32)
    assert sorted(collective.known) == list(range(CLASSES))
    assert collective.network.outputs == CLASSES
    assert [task.known for task in collective.tasks] == [2, 4, 6, 8]
    assert [len(row) for row in collective.trend.rho] == [13] * 4


def test_replay_rehearses_every_seen_class_and_none_only_the_tasks_own(tmp_path: Path) -> None:
    replaying = evolution(tmp_path / "a")
    forgetting = evolution(tmp_path / "b", SETTINGS.model_copy(update={"strategy": "none"}))
    for number in range(4):
        seen = [c for task in replaying.sequence[: number + 1] for c in task]
        assert sorted(replaying._rehearsed(number)) == sorted(set(seen))
        assert sorted(forgetting._rehearsed(number)) == sorted(forgetting.sequence[number])


def test_condensing_keeps_the_top_weights_and_estimates_its_statistics_anew(tmp_path: Path) -> None:
    made = evolution(tmp_path / "state")
    collective = made.run()
    condensed, _ = made.condense(collective)
    tops = [block for block in condensed.top if isinstance(block, ConvolutionBlock)]
    for mine, original in zip(tops, collective.network.layers[-3:], strict=True):
        assert torch.equal(mine.conv.weight, original.conv.weight)
        assert torch.equal(mine.norm.weight, original.norm.weight)
        assert not torch.equal(mine.norm.running_mean, original.norm.running_mean)  # type: ignore[arg-type]
        # Counted from zero: only the batches without augmentation are in the statistics.
        assert int(mine.norm.num_batches_tracked) == STATISTICS_BATCHES  # type: ignore[arg-type]
    stem = stem_blocks(collective.network, 3, SETTINGS.width)
    assert [block.out_channels for block in stem] == [4, 8, 16, 32]
    x = torch.randn(2, 3, 32, 32)
    assert condensed.stem(x).shape == collective.network.blocks[:10](x).shape


def test_the_collective_itself_is_not_changed_by_condensing(tmp_path: Path) -> None:
    made = evolution(tmp_path / "state")
    collective = made.run()
    before = state(collective)
    target = made.outputs_of(collective.known)
    pools = made.rows_of(collective.known)
    condense(
        collective.network, made.train, pools, lambda labels: target[labels], SETTINGS, torch.Generator().manual_seed(0)
    )
    assert all(torch.equal(value, before[name]) for name, value in state(collective).items())


def test_the_learngenes_hold_the_collectives_own_layers(tmp_path: Path) -> None:
    made = evolution(tmp_path / "state")
    collective = made.run()
    condensed, _ = made.condense(collective)
    whole = learngene_of("condensed", made, collective, condensed, seed=0)
    paper = learngene_of("paper", made, collective, condensed, seed=0)
    assert [block.role for block in whole.architecture.blocks] == ["stem"] * 4 + ["top"] * 3
    assert [block.role for block in paper.architecture.blocks] == ["top"] * 3
    for number in range(3):
        original = collective.network.layers[10 + number].conv.weight.detach().numpy()
        np.testing.assert_array_equal(paper.tensors[f"block.{number}.conv.weight"], original)
        np.testing.assert_array_equal(whole.tensors[f"block.{4 + number}.conv.weight"], original)
    for learngene in (whole, paper):
        assert learngene.fisher is not None
        assert learngene.fisher.samples == 70
        assert all(np.all(t >= 0) for name, t in learngene.tensors.items() if name.startswith("fisher"))
        assert any(t.max() > 0 for name, t in learngene.tensors.items() if name.startswith("fisher"))
        assert not any("classifier" in name for name in learngene.tensors)


def test_a_network_built_from_the_condensed_learngene_alone_computes_the_same_features(tmp_path: Path) -> None:
    made = evolution(tmp_path / "state")
    collective = made.run()
    condensed, _ = made.condense(collective)
    learngene = learngene_of("condensed", made, collective, condensed, seed=0)
    built = build_blocks(learngene.architecture.blocks).eval()
    load_blocks([block for block in built if isinstance(block, ConvolutionBlock)], learngene.tensors)
    x, _ = made.heldout.batch(torch.arange(8))
    torch.testing.assert_close(built(x), condensed.top(condensed.stem(x)), rtol=1e-4, atol=1e-5)


def test_no_image_counts_twice_in_the_fisher_diagonal(tmp_path: Path) -> None:
    rows = [torch.arange(0, 10), torch.arange(10, 13), torch.arange(13, 40)]
    for count, expected in ((9, 9), (30, 30), (100, 40)):
        drawn = distinct_rows(rows, count, torch.Generator().manual_seed(0)).tolist()
        assert len(drawn) == len(set(drawn)) == expected
    made = evolution(tmp_path / "state", SETTINGS.model_copy(update={"fisher_samples": 1024}))
    collective = made.run()
    condensed, _ = made.condense(collective)
    learngene = learngene_of("paper", made, collective, condensed, seed=0)
    assert learngene.fisher is not None
    assert learngene.fisher.samples == CLASSES * 12


def test_the_papers_diagonal_is_taken_through_the_whole_network(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"fisher_estimator": "exact", "fisher_samples": 3, "tasks": 2})
    made = evolution(tmp_path / "state", settings)
    collective = made.run()
    condensed, _ = made.condense(collective)
    learngene = learngene_of("paper", made, collective, condensed, seed=4)
    rows = distinct_rows(made.rows_of(collective.known), 3, torch.Generator().manual_seed(4))
    network = collective.network.eval()
    weight = network.layers[10].conv.weight
    expected = torch.zeros_like(weight)
    for image in made.train.batch(rows)[0]:
        log_likelihood = network(image[None]).log_softmax(1)[0]
        for value in log_likelihood:
            (gradient,) = torch.autograd.grad(value, weight, retain_graph=True)
            expected += value.exp().detach() * gradient.square() / 3
    found = torch.from_numpy(np.array(learngene.tensors["fisher.block.0.conv.weight"]))
    assert expected.max() > 0
    assert (found - expected).abs().max() < 1e-4 * expected.max()


def test_more_classes_in_a_task_than_the_folder_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not fit 8 base classes"):
        evolution(tmp_path / "state", SETTINGS.model_copy(update={"classes_per_task": 9}))


def test_a_folder_that_is_no_world_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a collective's folder"):
        read(tmp_path)
