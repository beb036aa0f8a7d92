"""The main job's ServerApp: the keys and trust stores of a run, and what a failed round tells its user."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import InputError, LearngeneError, RunFailedError, UnknownKeyError
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.key_file import Unlock
from protocol.keys.signing_key import SigningKey
from protocol.node.configuration import node_table, read
from protocol.node.load_keys import load_keys
from protocol.node.server import CANNOT
from protocol.transport.relay import PartyFailedError
from protocol.trust.role import Role
from protocol.trust.trust_file import read_trust
from sims.run.app import _make_keys, _Site, _with_reasons, open_configured, whose_environment
from sims.run.environment import HandedOver, handed_over
from sims.run.options import Value, read_options
from sims.run.processes import NodeProcess, NodeProcesses
from sims.run.run_folder import OpenRun, prepare, read_settings
from sims.run.settings import RunSettings, from_run_config
from tests.sims.made_run import NOW


def test_a_run_has_its_own_root_and_individuals_do_not_know_each_other(tmp_path: Path) -> None:
    parties: list[tuple[Role, str]] = [("collective", "collective")]
    parties += [("individual", f"individual-{number}") for number in (1, 2)]
    (tmp_path / "nodes").mkdir()
    sites = [_Site(tmp_path, *party, tmp_path / "node.sock", tmp_path / "secret") for party in parties]
    root = _make_keys(sites)
    stores = {site.party: read_trust(site.trust, root=root) for site in sites}
    unlock = Unlock.key_file(sites[0].key_file)
    keys = {site.party: SigningKey.load(site.key, unlock) for site in sites}
    assert SigningKey.load(tmp_path / "keys" / "root.key", unlock).public_hex == root
    for party, store in stores.items():
        assert store.only("collective").public == keys["collective"].public_hex
        for site in sites[1:]:
            if party in ("collective", site.party):
                assert store.key_for(keys[site.party].keyid, "individual").party == site.party
            else:
                with pytest.raises(UnknownKeyError):
                    store.key_for(keys[site.party].keyid, "individual")
    # A run that is resumed goes on with the same keys and the same stores, which its ledgers remember.
    before = [site.trust.read_bytes() for site in sites]
    assert _make_keys(sites) == root
    assert [site.trust.read_bytes() for site in sites] == before
    other = tmp_path / "other"
    (other / "nodes").mkdir(parents=True)
    assert _make_keys([_Site(other, *parties[0], tmp_path / "node.sock", tmp_path / "secret")]) != root


def test_every_individual_has_an_encryption_key_that_a_resumed_run_keeps(tmp_path: Path) -> None:
    parties: list[tuple[Role, str]] = [("collective", "collective")]
    parties += [("individual", f"individual-{number}") for number in (1, 2)]
    (tmp_path / "nodes").mkdir()
    sites = [_Site(tmp_path, *party, tmp_path / "node.sock", tmp_path / "secret") for party in parties]
    paths = [site.encryption_key for site in sites]
    assert paths[0] is None

    def public() -> list[bytes]:
        _make_keys(sites)
        unlock = Unlock.key_file(sites[0].key_file)
        return [EncryptionKey.load(path, unlock).public for path in paths if path is not None]

    first = public()
    assert len(set(first)) == 2
    assert public() == first


def test_a_run_s_folder_may_be_moved(tmp_path: Path) -> None:
    """Its nodes' commands find in it what they need: all but the socket, which ended with the run."""
    before, after = tmp_path / "before", tmp_path / "elsewhere" / "after"
    parties: list[tuple[Role, str]] = [("collective", "collective"), ("individual", "individual-1")]
    sites = [_Site(before, *party, tmp_path / "node.sock", tmp_path / "secret") for party in parties]
    (before / "nodes").mkdir(parents=True)
    root = _make_keys(sites)
    for site in sites:
        site.configure("0" * 32, root, from_run_config({"profile": "smoke"}))
    after.parent.mkdir()
    before.rename(after)
    for site in sites:
        config = after / "nodes" / site.party / "config.toml"
        node = node_table(config, read(config), site.role)
        assert load_keys(node).signing.public_hex
        assert read_trust(node.trust, root=root)
        assert (node.data, node.state) == (after / "world" / site.party, config.parent / "state")


def test_a_failed_party_s_own_log_gives_the_reason(tmp_path: Path) -> None:
    with NodeProcesses() as processes:
        for party in ("collective", "individual-1", "individual-2", "individual-3"):
            ended = subprocess.Popen([sys.executable, "-c", ""])
            log = tmp_path / f"{party}.log"
            log.write_text(f"2026-11-20 10:00:02,001 ERROR adapt failed: so says {party}\n", encoding="utf-8")
            processes.nodes.append(NodeProcess(party, log, tmp_path / "node.sock", ended))
        (tmp_path / "individual-3.log").unlink()
        failed = PartyFailedError("'adapt' failed", "individual-1", "individual-2", "individual-3")
        told = _with_reasons(failed, processes)
    assert isinstance(told, RunFailedError)
    assert str(told) == (
        "'adapt' failed (individual-1: adapt failed: so says individual-1; "
        "individual-2: adapt failed: so says individual-2)"
    )
    assert str(_with_reasons(PartyFailedError("'evolve' failed", "nobody"), processes)) == "'evolve' failed"


@pytest.mark.parametrize(("logs", "kind"), [([CANNOT], InputError), ([CANNOT, " failed: "], RunFailedError)])
def test_what_a_party_was_given_wrongly_is_wrong_input(
    tmp_path: Path, logs: list[str], kind: type[LearngeneError]
) -> None:
    with NodeProcesses() as processes:
        parties = [f"individual-{number}" for number in range(len(logs))]
        for party, words in zip(parties, logs, strict=True):
            log = tmp_path / f"{party}.log"
            log.write_text(f"2026-11-20 10:00:02,001 ERROR adapt{words}too much\n", encoding="utf-8")
            ended = subprocess.Popen([sys.executable, "-c", ""])
            processes.nodes.append(NodeProcess(party, log, tmp_path / "node.sock", ended))
        assert type(_with_reasons(PartyFailedError("'adapt' failed", *parties), processes)) is kind


def opened(
    folder: Path | None = None, connected: int = 1, *, resume: bool = False, **config: Value
) -> tuple[OpenRun, RunSettings]:
    """What the app opens that was handed this folder, or none, and this run configuration."""
    handed = None if folder is None else handed_over(HandedOver(folder, resume).environment())
    return open_configured(read_options(config), handed, connected=connected, reach="machine", now=NOW)


def test_a_folder_that_is_handed_over_holds_the_settings_and_they_are_not_written_again(tmp_path: Path) -> None:
    settings = from_run_config({"out": str(tmp_path), "profile": "small", "seed": 7, "set": "individual.epochs=3"})
    folder = prepare(settings, now=NOW)
    before = (folder / "settings.json").stat()
    run, found = opened(folder)
    run.close()
    assert (run.folder, found) == (folder, settings)
    again, found = opened(folder, resume=True)
    again.close()
    assert (again.record.run_id, found) == (run.record.run_id, settings)
    after = (folder / "settings.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_without_a_folder_the_run_configuration_says_the_settings(tmp_path: Path) -> None:
    assert handed_over({}) is None
    run, found = opened(out=str(tmp_path), profile="smoke", seed=7)
    run.close()
    assert (found.profile, found.seed, run.folder.parent) == ("smoke", 7, tmp_path)
    assert read_settings(run.folder).settings == found


def test_an_app_of_flower_s_own_command_says_which_environment_and_images_it_has(tmp_path: Path) -> None:
    """Those of the SuperLink's start, which may be another's."""
    variables = {"LEARNGENE_DATA": str(tmp_path)}
    settings = from_run_config({"profile": "smoke"}, environment=variables)
    said = whose_environment(settings, variables)
    for words in (sys.prefix, str(tmp_path), "LEARNGENE_DATA"):
        assert words in said
    named = whose_environment(from_run_config({"profile": "smoke", "data": str(tmp_path)}), {})
    assert str(tmp_path) in named
    assert "LEARNGENE_DATA" not in named
    assert str(tmp_path) not in whose_environment(from_run_config({"stand-in": True}, environment=variables), variables)


@pytest.mark.parametrize(
    "name", ['paper [final] "a" [/b]', "\U0001f600 می\u200cخواهم", "a\nb \x1b\\x1b", "$HOME `id` '%s' {0}"]
)
def test_a_folder_of_any_name_is_handed_over(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "run"
    given = HandedOver(folder, resume=True).environment()
    assert handed_over(given) == HandedOver(folder, resume=True)
    # The settings in it, which name it, too.
    settings = from_run_config({"out": str(tmp_path / name), "profile": "smoke"})
    prepared = prepare(settings.model_copy(update={"folder": folder}), now=NOW)
    run, found = opened(prepared)
    run.close()
    assert (run.folder, found.out) == (folder, tmp_path / name)


@pytest.mark.parametrize(
    ("config", "connected", "said"),
    [
        ({}, 3, "num-supernodes=2"),
        ({"dataset": "imagenet100"}, 1, "sims/cifar100"),
        ({"resume": True}, 1, r"no readable run\.json"),
    ],
)
def test_a_folder_that_is_handed_over_wrongly_is_refused_and_left_as_it_is(
    tmp_path: Path, config: dict[str, Any], connected: int, said: str
) -> None:
    folder = prepare(from_run_config({"out": str(tmp_path), "profile": "smoke"}), now=NOW)
    with pytest.raises(InputError, match=said):
        opened(folder, connected, **config)
    run, _ = opened(folder)
    run.close()


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 2}', b"[" * 100_000, b'{"settings": {"seed": -1}}'])
def test_settings_that_no_run_writes_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(InputError) as refused:
        opened(tmp_path)
    assert "settings.json" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_a_run_is_not_begun_twice_in_one_folder(tmp_path: Path) -> None:
    folder = prepare(from_run_config({"out": str(tmp_path), "profile": "smoke"}), now=NOW)
    run, _ = opened(folder)
    with pytest.raises(InputError, match="another process"):
        opened(folder)
    run.close()
    with pytest.raises(InputError, match="holds a run already"):
        opened(folder)
