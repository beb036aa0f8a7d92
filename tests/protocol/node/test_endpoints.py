"""A command beside the node believes no trust store that the node would refuse, and a question stores nothing."""

import contextlib
import shutil
import time
from pathlib import Path

import pytest

from protocol.digest import digest_of
from protocol.errors import EquivocationError, InputError, RollbackError, StorageFailedError
from protocol.exchange.individual_endpoint import IndividualEndpoint
from protocol.exchange.individual_ledger import IndividualLedger
from protocol.messages import bundle_file
from protocol.messages.payloads import Release
from protocol.node.endpoints import known_status, open_endpoint
from protocol.trust.signed_trust import TrustSeen
from protocol.trust.trust_file import read_trust, write_trust
from protocol.trust.trust_store import TrustStore
from tests.protocol.parties import NEW_COLLECTIVE, ROOT, STRANGER, opened
from tests.two_folders import Folders, make_folders


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """The individual has inherited a learngene."""
    folders = make_folders(tmp_path / "nodes")
    folders.publish()
    folders.exchange(folders.folder / "one.learngene")
    return folders


def status(folders: Folders, config: Path | None = None) -> str | None:
    data = bundle_file.read(folders.folder / "one.learngene").release
    release = opened(Release, data)
    config = config or folders.individual
    return known_status(config, run_id=release.run_id, release=digest_of(data), signer=release.signer)


def remembered(folders: Folders) -> TrustSeen:
    with contextlib.closing(IndividualLedger(folders.node(folders.individual).state)) as ledger:
        seen = ledger.trust_seen()
        assert seen is not None
        return seen


def test_attack_rollback_of_the_trust_store_beside_the_node(folders: Folders, tmp_path: Path) -> None:
    """The version before the revocation is put back, so that what a thief signed looks good again."""
    earlier = tmp_path / "earlier.json"
    shutil.copy(folders.trust, earlier)
    assert status(folders) is None
    store = read_trust(folders.trust, root=ROOT.public_hex)
    store = store.without_key(store.only("collective").keyid, "compromised")
    write_trust(folders.trust, store.with_key(NEW_COLLECTIVE.public_hex, "collective", "collective"), ROOT)
    before = remembered(folders)
    assert status(folders) == "compromised"
    assert remembered(folders) == before
    folders.individual_endpoint().request("condensed", int(time.time()), b"n" * 16)
    assert remembered(folders).version == store.version + 1
    shutil.copy(earlier, folders.trust)
    with pytest.raises(RollbackError, match="older than version"):
        status(folders)
    write_trust(folders.trust, store.with_expiry(2**40), ROOT)
    with pytest.raises(EquivocationError):
        status(folders)
    assert remembered(folders).version == store.version + 1


def strange_configuration(folders: Folders, folder: Path) -> Path:
    """A stranger's configuration file that names the node's state; all else is the stranger's."""
    folder.mkdir()
    text = folders.individual.read_text().replace(ROOT.public_hex, STRANGER.public_hex)
    state = folders.node(folders.individual).state
    (folder / "config.toml").write_text(text.replace('state = "state"', f'state = "{state}"'))
    node = folders.node(folder / "config.toml")
    assert (node.state, node.trust.parent, node.root) == (state, folder, STRANGER.public_hex)
    write_trust(node.trust, TrustStore(root=STRANGER.public_hex, expires_at=2**40), STRANGER)
    return folder / "config.toml"


def test_attack_a_stranger_s_configuration_over_the_node_s_state(folders: Folders, tmp_path: Path) -> None:
    """A model folder names it; the node's memory of trust stores would be the stranger's then."""
    strange, before = strange_configuration(folders, tmp_path / "strange"), remembered(folders)
    with pytest.raises(InputError, match="pins the root") as refused:
        status(folders, strange)
    assert "\n" not in str(refused.value)
    assert remembered(folders) == before
    for name in ("signing.key", "encryption.key", "key.secret"):
        shutil.copy(folders.individual.parent / name, strange.parent)
    with pytest.raises(InputError, match="pins the root"):
        open_endpoint(folders.node(strange), IndividualEndpoint)
    assert remembered(folders) == before


def test_a_ledger_that_is_only_read_is_neither_made_nor_changed(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(StorageFailedError, match="no ledger"):
        IndividualLedger(tmp_path / "none", reading=True)
    assert not (tmp_path / "none").exists()
    before = remembered(folders)
    with contextlib.closing(IndividualLedger(folders.node(folders.individual).state, reading=True)) as ledger:
        assert ledger.trust_seen() == before
        with pytest.raises(StorageFailedError, match="readonly"):
            ledger.set_time(5)
        with pytest.raises(StorageFailedError, match="readonly"):
            ledger.remember_trust(TrustSeen(9, "a" * 64, "b" * 64, "c" * 64))
    assert remembered(folders) == before
