"""Tests of checkpoints: which are kept, which setup they serve, and what is refused that no run left."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from collective_node import checkpoint
from protocol.errors import InputError
from tests.collective_node.made_evolution import CYCLES, SETTINGS, evolution, killed_after, state, without_times


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    evolution(tmp_path / "kept").run()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["state-0004"]


def test_a_checkpoint_of_another_setup_is_refused_and_stays(tmp_path: Path) -> None:
    evolution(tmp_path / "state").run()
    other = SETTINGS.model_copy(update={"epochs": 2})
    with pytest.raises(InputError, match="other settings"):
        evolution(tmp_path / "state", other).run()
    assert (tmp_path / "state" / "state-0004").is_dir()


def test_settings_of_later_steps_may_be_changed_where_they_were_not_used_yet(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lower keep_known"):
        evolution(tmp_path / "state", CYCLES.model_copy(update={"threshold": 1e9})).run()
    mended, _ = evolution(tmp_path / "state", CYCLES.model_copy(update={"layers": 2, "forms": ("paper",)})).run()
    assert len(mended.cycles) == 2
    evolution(tmp_path / "state", CYCLES.model_copy(update={"condense_epochs": 3.0})).run()
    with pytest.raises(InputError, match="other settings of its open-world cycles"):
        evolution(tmp_path / "state", CYCLES.model_copy(update={"examples": 3})).run()


def test_a_checkpoint_of_another_thread_count_or_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evolution(tmp_path / "state").run()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 77)
        with pytest.raises(InputError, match="number of threads"):
            evolution(tmp_path / "state").run()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0")
        with pytest.raises(InputError, match=r"this is 1\.0"):
            evolution(tmp_path / "state").run()


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    evolution(tmp_path / "state").run()
    (tmp_path / "state" / "state-0004" / "state.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="state-0004 cannot be read"):
        evolution(tmp_path / "state").run()


def progressed(change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Change what a checkpoint tells of itself."""

    def write(folder: Path) -> None:
        path = folder / "progress.json"
        document = json.loads(path.read_bytes())
        change(document)
        path.write_text(json.dumps(document))

    return write


def tensed(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    """Change the tensors of a checkpoint."""

    def write(folder: Path) -> None:
        path = folder / "state.safetensors"
        tensors = load_tensors(path.read_bytes())
        change(tensors)
        path.write_bytes(save_tensors(tensors))

    return write


@pytest.fixture(scope="module")
def half_way(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run that was killed after its first cycle."""
    folder = tmp_path_factory.mktemp("half") / "state"
    killed_after(5, folder, CYCLES)
    return folder


#: What a process that was taken over may leave, by what it does to a good checkpoint.
PLANTED: list[Callable[[Path], object]] = [
    progressed(lambda d: d["named"][0]["rows"].__setitem__(0, 10**6)),
    progressed(lambda d: d["named"][0]["rows"].__setitem__(0, -1)),
    progressed(lambda d: d["named"][0].update(rows=[3] * 9999, names=["moth"] * 9999)),
    progressed(lambda d: d["named"][0]["names"].pop()),
    progressed(lambda d: d["named"][0]["names"].__setitem__(0, "n" * 5000)),
    progressed(lambda d: d.update(named=[])),
    progressed(lambda d: d.update(cycles=d["cycles"] * 9, named=d["named"] * 9)),
    progressed(lambda d: d["tasks"].append(d["tasks"][0])),
    progressed(lambda d: (d["tasks"].pop(), d["rho"].pop())),
    progressed(lambda d: d.update(known=d["known"][::-1])),
    progressed(lambda d: d["rho"].pop()),
    progressed(lambda d: d["rho"][0].append(0.5)),
    progressed(lambda d: d.update(more=1)),
    progressed(lambda d: d.update(sigma=float("inf"))),
    lambda folder: (folder / "progress.json").write_bytes(b"[" * 99_999),
    lambda folder: (folder / "progress.json").unlink(),
    tensed(lambda t: t.update({"network/more": torch.zeros(9)})),
    tensed(lambda t: t.update({"more": torch.zeros(9)})),
    tensed(lambda t: t.pop("random/batches")),
    tensed(lambda t: t.update({"random/batches": torch.full((5056,), 255, dtype=torch.uint8)})),
    tensed(lambda t: t.update({"random/batches": torch.zeros(9, dtype=torch.uint8)})),
    tensed(lambda t: t.pop("network/blocks.0.conv.weight")),
    tensed(lambda t: t.pop("network/blocks.0.norm.num_batches_tracked")),
    tensed(lambda t: t.update({n: v.double() for n, v in t.items() if n.startswith("network/")})),
    tensed(lambda t: t.update({n: v[..., :1].contiguous() for n, v in t.items() if n.startswith("momentum/")})),
    lambda folder: os.truncate(folder / "state.safetensors", 1 << 40),
    lambda folder: (folder / "state.safetensors").write_bytes(b"\xff" * 8 + b"{" * 999),
    lambda folder: (folder / "state.safetensors").write_bytes(pickle.dumps(torch.zeros)),
]


@pytest.mark.parametrize("plant", PLANTED)
def test_a_checkpoint_that_no_run_left_is_one_line(
    tmp_path: Path, half_way: Path, plant: Callable[[Path], object]
) -> None:
    """Whatever a process that was taken over left: nothing is unpickled, and no more is taken than the plan has."""
    shutil.copytree(half_way, tmp_path / "state")
    plant(tmp_path / "state" / "state-0005")
    with pytest.raises(InputError) as refused:
        evolution(tmp_path / "state", CYCLES).run()
    assert "\n" not in str(refused.value)


def test_the_checkpoint_that_those_were_made_from_is_resumed(
    tmp_path: Path, half_way: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without the change, its tasks and its first cycle are not run again."""
    shutil.copytree(half_way, tmp_path / "state")
    store, stored = checkpoint.store, []

    def count(*arguments: object) -> None:
        stored.append(arguments)
        store(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "store", count)
    collective, _ = evolution(tmp_path / "state", CYCLES).run()
    assert (len(stored), len(collective.tasks), len(collective.cycles)) == (1, 4, 2)


def test_a_checkpoint_with_the_words_of_before_is_resumed_with_the_same_weights(tmp_path: Path, half_way: Path) -> None:
    """The score ``msp`` was called ``paper`` and the weight ``retain_weight`` was called ``retain``."""
    renamed = [("retain_weight", "retain"), ("msp", "paper")]
    for name in ("now", "before"):
        shutil.copytree(half_way, tmp_path / name)
    path = tmp_path / "before" / "state-0005" / "progress.json"
    text = path.read_text()
    for now, before in renamed:
        assert f'"{now}"' in text
        text = text.replace(f'"{now}"', f'"{before}"')
    path.write_text(text)
    now, before = (evolution(tmp_path / name, CYCLES).run()[0] for name in ("now", "before"))
    expected = state(now)
    assert all(torch.equal(value, expected[name]) for name, value in state(before).items())
    assert without_times(now, []) == without_times(before, [])
