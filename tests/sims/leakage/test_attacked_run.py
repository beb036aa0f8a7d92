"""The run that is attacked may be a stranger's: nothing outside its folder is read, and nothing of it is changed."""

import contextlib
import shutil
from pathlib import Path

import pytest

from protocol.errors import InputError
from protocol.exchange.individual_ledger import IndividualLedger
from sims.leakage.attacked_run import released
from sims.run.settings import from_run_config
from tests.protocol.parties import learngene
from tests.sims.made_run import open_run
from tests.two_folders import Folders, make_folders


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose first individual has inherited a learngene."""
    config = {"dataset": "cifar100", "profile": "smoke", "stand-in": True, "out": str(tmp_path)}
    run = open_run(from_run_config(config), run_id="0" * 32)
    run.close()
    folder = run.folder.rename(tmp_path / "r")  # short, as a node's socket would lie in it
    inherited(folder / "nodes")
    return folder


def inherited(folder: Path) -> Folders:
    folders = make_folders(folder)
    folders.publish(learngene())
    folders.exchange(folder / "one.learngene")
    return folders


def memory(state: Path) -> object:
    with contextlib.closing(IndividualLedger(state, reading=True)) as ledger:
        return ledger.trust_seen(), ledger.latest_time()


def test_a_release_is_read_and_the_ledger_stays(run: Path) -> None:
    state = run / "nodes" / "individual-1" / "state"
    before, files = memory(state), (state / "ledger.db").read_bytes()
    assert set(released(run).tensors) == set(learngene().tensors)
    assert (memory(state), (state / "ledger.db").read_bytes()) == (before, files)


@pytest.mark.parametrize("name", ["data", "state", "trust", "key", "encryption_key", "key_file"])
def test_attack_a_run_that_names_what_is_not_its_own(run: Path, tmp_path: Path, name: str) -> None:
    victim = inherited(tmp_path / "victim")
    node, config = victim.node(victim.individual), run / "nodes" / "individual-1" / "config.toml"
    own = victim.node(config)
    before = memory(node.state)
    lines = [
        f'{name} = "{getattr(node, name)}"' if line.startswith(f"{name} =") else line
        for line in config.read_text().splitlines()
    ]
    config.write_text("\n".join(lines) + "\n")
    assert getattr(victim.node(config), name) == getattr(node, name) != getattr(own, name)
    with pytest.raises(InputError, match="outside the run"):
        released(run)
    assert memory(node.state) == before


@pytest.mark.parametrize("name", ["nodes/individual-1/state", "world", "world/collective/train_images.npy", "leakage"])
def test_attack_a_run_with_a_link_out_of_it(run: Path, tmp_path: Path, name: str) -> None:
    path, outside = run / name, tmp_path / "outside"
    outside.mkdir()
    if path.exists():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside)
    with pytest.raises(InputError, match="link out of the run"):
        released(run)
    path.unlink()
    (run / "nodes" / "inside").symlink_to(run / "nodes" / "data")
    if "state" in name:
        with pytest.raises(InputError, match="no ledger"):
            released(run)
    else:
        assert released(run).fisher is not None
