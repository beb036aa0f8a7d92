"""``trust.json`` on disk: a running node reads it anew when it changed, and believes nothing where it is refused."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.digest import digest_of
from protocol.encoding import canonical_json
from protocol.errors import (
    EquivocationError,
    InputError,
    MalformedError,
    RevokedKeyError,
    RollbackError,
    StorageFailedError,
    TooLargeError,
    UnknownKeyError,
)
from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.keys.signing_key import SigningKey
from protocol.trust.root_handover import Handover
from protocol.trust.signed_trust import MAX_BYTES, TrustSeen, sign_trust
from protocol.trust.trust_file import TrustFile, read_trust, write_trust
from protocol.trust.trust_store import TrustStore
from tests.protocol.parties import INDIVIDUAL, NO_TRUST, ROOT, TRUST

FORGER = SigningKey.from_seed(b"!" * 32)


class Memory:
    """What a ledger remembers of the trust store, and how often it was told."""

    def __init__(self) -> None:
        self.seen: TrustSeen | None = None
        self.told = 0
        self.broken = False

    def trust_seen(self) -> TrustSeen | None:
        return self.seen

    def remember_trust(self, seen: TrustSeen) -> None:
        if self.broken:
            raise StorageFailedError("the disk is full")
        self.seen, self.told = seen, self.told + 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_trust(tmp_path / "trust.json", TRUST, ROOT)
    return tmp_path / "trust.json"


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def file(path: Path, memory: Memory) -> TrustFile:
    return TrustFile(path, ROOT.public_hex, memory)


def test_what_was_written_is_read(path: Path) -> None:
    assert read_trust(path, root=ROOT.public_hex) == TRUST
    assert read_trust(path, root=None) == TRUST
    assert path.read_bytes() == sign_trust(TRUST, ROOT)


def test_a_revocation_reaches_a_running_node(file: TrustFile, path: Path, memory: Memory) -> None:
    assert file.current().key_for(INDIVIDUAL.keyid, "individual").party == "individual-1"
    write_trust(path, TRUST.without_key(INDIVIDUAL.keyid, "compromised"), ROOT)
    with pytest.raises(RevokedKeyError):
        file.current().key_for(INDIVIDUAL.keyid, "individual")
    assert memory.seen is not None
    assert memory.seen.version == TRUST.version + 1


def test_a_file_that_did_not_change_is_read_once(file: TrustFile, memory: Memory) -> None:
    assert file.current() is file.current()
    assert memory.told == 1


def test_a_file_written_over_in_place_is_read_again(file: TrustFile, path: Path) -> None:
    file.current()
    later = TRUST.without_key(INDIVIDUAL.keyid, "retired")
    path.write_bytes(sign_trust(later, ROOT))
    assert file.current() == later


def test_what_is_remembered_is_stored_before_it_is_believed(file: TrustFile, path: Path, memory: Memory) -> None:
    memory.broken = True
    for _ in range(2):
        with pytest.raises(StorageFailedError):
            file.current()
    memory.broken = False
    assert file.current() == TRUST


def test_a_ledger_remembers_over_a_restart(path: Path, tmp_path: Path) -> None:
    later = TRUST.with_expiry(TRUST.expires_at + 1)
    write_trust(path, later, ROOT)
    ledger = CollectiveLedger(tmp_path / "state")
    assert TrustFile(path, ROOT.public_hex, ledger).current() == later
    ledger.close()
    ledger = CollectiveLedger(tmp_path / "state")
    try:
        assert TrustFile(path, ROOT.public_hex, ledger).current() == later
        write_trust(path, TRUST, ROOT)
        with pytest.raises(RollbackError):
            TrustFile(path, ROOT.public_hex, ledger).current()
    finally:
        ledger.close()


def test_attack_rollback_of_the_file_of_a_running_node(file: TrustFile, path: Path) -> None:
    """An earlier version is put back: nothing is believed any more, also not what was read before."""
    write_trust(path, TRUST.without_key(INDIVIDUAL.keyid, "compromised"), ROOT)
    file.current()
    write_trust(path, TRUST, ROOT)
    for _ in range(2):
        with pytest.raises(RollbackError, match=r"trust\.json"):
            file.current()
    newest = TRUST.without_key(INDIVIDUAL.keyid, "compromised")
    write_trust(path, newest, ROOT)
    assert file.current() == newest


class Hurried(Memory):
    """A ledger on which another process accepts another store between the two steps of this one."""

    def __init__(self, ledger: CollectiveLedger, meanwhile: Callable[[], None]) -> None:
        super().__init__()
        self.ledger, self.meanwhile = ledger, meanwhile

    def trust_seen(self) -> TrustSeen | None:
        return self.ledger.trust_seen()

    def remember_trust(self, seen: TrustSeen) -> None:
        self.meanwhile()
        self.ledger.remember_trust(seen)


@pytest.mark.parametrize(
    ("other", "error"),
    [
        (TRUST.without_key(INDIVIDUAL.keyid, "compromised"), RollbackError),
        (NO_TRUST.with_expiry(1).with_expiry(2).with_expiry(3), EquivocationError),
    ],
)
def test_attack_memory_that_goes_backwards_between_two_processes(
    path: Path, tmp_path: Path, other: TrustStore, error: type[Exception]
) -> None:
    """A command reads the file, then the node accepts the next version of it, then the command remembers its own."""
    node, beside = CollectiveLedger(tmp_path / "state"), CollectiveLedger(tmp_path / "state")

    def accept() -> None:
        write_trust(path, other, ROOT)
        assert TrustFile(path, ROOT.public_hex, node).current() == other

    try:
        with pytest.raises(error, match=r"trust\.json"):
            TrustFile(path, ROOT.public_hex, Hurried(beside, accept)).current()
        seen = node.trust_seen()
        assert seen is not None
        assert (seen.version, seen.digest) == (other.version, digest_of(path.read_bytes()))
        assert TrustFile(path, ROOT.public_hex, beside).current() == other
    finally:
        node.close()
        beside.close()


def test_a_ledger_lowers_a_version_only_under_another_root_that_is_pinned_anew(tmp_path: Path) -> None:
    first, second = ROOT.public_hex, FORGER.public_hex
    ledger = CollectiveLedger(tmp_path / "state")
    try:
        ledger.remember_trust(TrustSeen(9, "a" * 64, first, first))
        for lower in (
            TrustSeen(8, "b" * 64, first, first),
            TrustSeen(8, "b" * 64, second, first),
            TrustSeen(8, "b" * 64, first, second),
        ):
            with pytest.raises(RollbackError):
                ledger.remember_trust(lower)
        assert ledger.trust_seen() == TrustSeen(9, "a" * 64, first, first)
        ledger.remember_trust(TrustSeen(3, "c" * 64, second, second))
        assert ledger.trust_seen() == TrustSeen(3, "c" * 64, second, second)
    finally:
        ledger.close()


def test_attack_rollback_under_a_root_that_is_pinned_after_it_was_followed(path: Path, tmp_path: Path) -> None:
    """The whole way, with the ledger's own memory: followed to the second root, then the second root pinned."""
    second = SigningKey.from_seed(b"2" * 32)
    rotated = TRUST.with_root(Handover.make(ROOT, second))
    later = rotated.without_key(INDIVIDUAL.keyid, "compromised")
    ledger = CollectiveLedger(tmp_path / "state")
    try:
        write_trust(path, later, second)
        assert TrustFile(path, ROOT.public_hex, ledger).current() == later
        write_trust(path, rotated, second)
        with pytest.raises(RollbackError):
            TrustFile(path, second.public_hex, ledger, new_pin=True).current()
        write_trust(path, later, second)
        assert TrustFile(path, second.public_hex, ledger, new_pin=True).current() == later
        write_trust(path, rotated, second)
        for new_pin in (False, True):
            with pytest.raises(RollbackError):
                TrustFile(path, second.public_hex, ledger, new_pin=new_pin).current()
    finally:
        ledger.close()


def test_attack_a_stranger_s_configuration_over_a_node_s_memory(path: Path, tmp_path: Path) -> None:
    """It names the node's state, and a root and a trust store of the stranger's."""
    strange = tmp_path / "strange.json"
    write_trust(strange, TrustStore(root=FORGER.public_hex, expires_at=TRUST.expires_at), FORGER)
    ledger = CollectiveLedger(tmp_path / "state")
    try:
        TrustFile(path, ROOT.public_hex, ledger).current()
        before = ledger.trust_seen()
        for _ in range(2):
            with pytest.raises(InputError, match="pins the root") as refused:
                TrustFile(strange, FORGER.public_hex, ledger).current()
        assert "\n" not in str(refused.value)
        assert ledger.trust_seen() == before
        # The control: a node's own start follows its operator, once.
        own = TrustFile(strange, FORGER.public_hex, ledger, new_pin=True)
        assert own.current().root == FORGER.public_hex
        TrustFile(path, ROOT.public_hex, ledger, new_pin=True).current()
        write_trust(strange, TrustStore(root=FORGER.public_hex, expires_at=TRUST.expires_at + 1), FORGER)
        with pytest.raises(InputError, match="pins the root"):
            own.current()
        assert ledger.trust_seen() == before
    finally:
        ledger.close()


def test_attack_forged_file(file: TrustFile, path: Path) -> None:
    assert file.current() == TRUST
    forged = TrustStore(root=FORGER.public_hex, expires_at=TRUST.expires_at, version=9, keys=TRUST.keys)
    write_trust(path, forged, FORGER)
    with pytest.raises(UnknownKeyError):
        file.current()
    # Compared with itself alone it is whole; that is all that is said without a pinned root.
    assert read_trust(path, root=None) == forged
    with pytest.raises(UnknownKeyError):
        read_trust(path, root=ROOT.public_hex)


def test_attack_two_stores_of_one_version(file: TrustFile, path: Path) -> None:
    file.current()
    other = NO_TRUST.with_expiry(1).with_expiry(2).with_expiry(3)
    assert other.version == TRUST.version
    write_trust(path, other, ROOT)
    with pytest.raises(EquivocationError):
        file.current()


def test_attack_oversize_file(file: TrustFile, path: Path) -> None:
    """Not more of it is read than is allowed, were it endless."""
    file.current()
    os.truncate(path, MAX_BYTES + 1)
    with pytest.raises(TooLargeError):
        file.current()


def test_a_new_root_is_followed_and_remembered(file: TrustFile, path: Path, memory: Memory) -> None:
    file.current()
    second = SigningKey.from_seed(b"2" * 32)
    rotated = TRUST.with_root(Handover.make(ROOT, second))
    write_trust(path, rotated, second)
    assert file.current() == rotated
    assert memory.seen is not None
    assert (memory.seen.root, memory.seen.pinned) == (second.public_hex, ROOT.public_hex)


def test_a_file_that_is_gone_or_no_file_leaves_nothing_believed(file: TrustFile, path: Path) -> None:
    file.current()
    path.unlink()
    with pytest.raises(InputError, match="there is no trust store"):
        file.current()
    os.mkfifo(path)
    with pytest.raises(InputError, match="is not a file"):
        file.current()
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="trust store"):
        file.current()


def test_a_file_without_a_signature_is_refused(path: Path) -> None:
    path.write_bytes(canonical_json.encode(TRUST.model_dump(mode="json")))
    for root in (ROOT.public_hex, None):
        with pytest.raises(MalformedError, match="not an envelope"):
            read_trust(path, root=root)


def test_only_the_root_key_changes_the_file(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(InputError, match="root key"):
        write_trust(path, TRUST.with_expiry(1), FORGER)
    with pytest.raises(InputError, match="there is no folder"):
        write_trust(path.parent / "none" / "trust.json", TRUST, ROOT)
    assert path.read_bytes() == before


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(StorageFailedError):
            write_trust(path, TRUST.with_expiry(1), ROOT)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["trust.json"]
