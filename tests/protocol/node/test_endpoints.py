"""A command beside the node: it believes no trust store that the node would refuse, and leaves the node its memory."""

import shutil
import time
from pathlib import Path

import pytest

from protocol.digest import digest_of
from protocol.errors import EquivocationError, RollbackError
from protocol.exchange.individual_ledger import IndividualLedger
from protocol.messages import bundle_file
from protocol.messages.payloads import Release
from protocol.node.endpoints import known_status
from protocol.trust.trust_file import read_trust, write_trust
from tests.protocol.parties import NEW_COLLECTIVE, ROOT, opened
from tests.two_folders import Folders, make_folders


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """The individual has inherited a learngene."""
    folders = make_folders(tmp_path / "nodes")
    folders.publish()
    folders.exchange(folders.folder / "one.learngene")
    return folders


def status(folders: Folders) -> str | None:
    data = bundle_file.read(folders.folder / "one.learngene").release
    release = opened(Release, data)
    return known_status(folders.individual, run_id=release.run_id, release=digest_of(data), signer=release.signer)


def remembered(folders: Folders) -> int:
    ledger = IndividualLedger(folders.node(folders.individual).state)
    try:
        seen = ledger.trust_seen()
        assert seen is not None
        return seen.version
    finally:
        ledger.close()


@pytest.mark.parametrize("heard_by", ["the node", "a command"])
def test_attack_rollback_of_the_trust_store_beside_the_node(folders: Folders, tmp_path: Path, heard_by: str) -> None:
    """The version before the revocation is put back, so that what a thief signed looks good again."""
    earlier = tmp_path / "earlier.json"
    shutil.copy(folders.trust, earlier)
    assert status(folders) is None
    store = read_trust(folders.trust, root=ROOT.public_hex)
    store = store.without_key(store.only("collective").keyid, "compromised")
    write_trust(folders.trust, store.with_key(NEW_COLLECTIVE.public_hex, "collective", "collective"), ROOT)
    if heard_by == "the node":
        folders.individual_endpoint().request("condensed", int(time.time()), b"n" * 16)
    assert status(folders) == "compromised"
    assert remembered(folders) == store.version + 1
    shutil.copy(earlier, folders.trust)
    with pytest.raises(RollbackError, match="older than version"):
        status(folders)
    write_trust(folders.trust, store.with_expiry(2**40), ROOT)
    with pytest.raises(EquivocationError):
        status(folders)
    assert remembered(folders) == store.version + 1
