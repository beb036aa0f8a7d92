"""The trust store: only what was pinned is believed, and only for its role."""

import json
from pathlib import Path

import pytest

from protocol.errors import ExpiredError, InputError, UnknownKeyError
from protocol.keys import key_identifier
from protocol.trust import TrustStore
from tests.protocol.parties import COLLECTIVE, INDIVIDUAL, NOW, STRANGER, TRUST


def test_save_and_load(tmp_path: Path) -> None:
    TRUST.save(tmp_path / "trust.json")
    assert TrustStore.load(tmp_path / "trust.json") == TRUST


def test_a_pinned_key_is_found_for_its_role_only() -> None:
    assert TRUST.key_for(COLLECTIVE.keyid, "collective").party == "collective"
    with pytest.raises(UnknownKeyError, match="pinned as collective"):
        TRUST.key_for(COLLECTIVE.keyid, "individual")
    with pytest.raises(UnknownKeyError, match="not pinned"):
        TRUST.key_for(STRANGER.keyid, "individual")


def test_every_change_is_a_new_version() -> None:
    assert [store.version for store in (TrustStore(), TRUST)] == [1, 3]


def test_only_one_collective() -> None:
    assert TRUST.only("collective").keyid == COLLECTIVE.keyid
    for role in ("individual", "collective"):
        store = TRUST if role == "individual" else TrustStore()
        with pytest.raises(InputError, match="exactly one"):
            store.only(role)


@pytest.mark.parametrize(
    ("public", "party", "reason"),
    [
        (COLLECTIVE.public_hex, "another", "pinned twice"),
        ("00" * 32, "another", "small order"),
        ("ff" * 32, "another", "not canonically"),
        ("00" * 31, "another", "public"),
        ("xyz", "another", "hexadecimal"),
        (STRANGER.public_hex, "Ada Lovelace", "party"),
    ],
)
def test_what_must_not_be_pinned(public: str, party: str, reason: str) -> None:
    TRUST.with_key(STRANGER.public_hex, "individual", "another")
    with pytest.raises(InputError, match=reason):
        TRUST.with_key(public, "individual", party)


def test_a_key_of_small_order_in_the_file_is_refused(tmp_path: Path) -> None:
    """The check stands where a store is read, not only where a person adds a key."""
    value = TRUST.model_dump(mode="json")
    value["keys"][0] |= {"public": "00" * 32, "keyid": key_identifier(bytes(32))}
    (tmp_path / "trust.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="small order"):
        TrustStore.load(tmp_path / "trust.json")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (INDIVIDUAL.keyid, "0" * 64, "not the SHA-256"),
        ('"role": "individual"', '"role": "root"', "role"),
        ('"version": 3', '"version": 3, "version": 4', "twice"),
        ('"version": 3', '"version": 3, "note": 1', "note"),
        ('"version": 3', '"version": "3"', "version"),
        ('"format": 1', '"format": 2', "format"),
        ("}", "", "JSON"),
    ],
)
def test_a_file_that_is_no_trust_store(tmp_path: Path, old: str, new: str, reason: str) -> None:
    path = tmp_path / "trust.json"
    TRUST.save(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=reason):
        TrustStore.load(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the trust store"):
        TrustStore.load(tmp_path / "trust.json")


def test_a_store_past_its_time() -> None:
    store = TRUST.model_copy(update={"expires_at": NOW})
    store.check_current(NOW)
    with pytest.raises(ExpiredError):
        store.check_current(NOW + 1)
