"""The trust store: which keys are believed, for what, and how one version follows another."""

import json

import pytest

from protocol.errors import (
    ExpiredError,
    InputError,
    MalformedError,
    RevokedKeyError,
    UnknownKeyError,
)
from protocol.keys.signing_key import SigningKey, key_identifier
from protocol.trust.root_handover import Handover
from protocol.trust.signed_trust import MAX_BYTES, sign_trust
from protocol.trust.trust_store import TrustedKey, TrustStore
from tests.protocol.parties import COLLECTIVE, INDIVIDUAL, NO_TRUST, NOW, OTHER_INDIVIDUAL, ROOT, STRANGER, TRUST
from tests.protocol.trust.stores import FORGER, ROTATED, SECOND_ROOT, THIRD_ROOT, seen_of, signed, verify

# Canonical encodings of points of order 1, 2, 4 and 8 (https://eprint.iacr.org/2020/1244).
SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
]


def test_a_pinned_key_is_found_for_its_role_only() -> None:
    assert TRUST.key_for(COLLECTIVE.keyid, "collective").party == "collective"
    assert TRUST.key_for(COLLECTIVE.keyid, "collective").keyid == key_identifier(bytes.fromhex(COLLECTIVE.public_hex))
    with pytest.raises(UnknownKeyError, match="pinned as collective"):
        TRUST.key_for(COLLECTIVE.keyid, "individual")
    with pytest.raises(UnknownKeyError, match="not pinned"):
        TRUST.key_for(STRANGER.keyid, "individual")


def test_only_one_collective() -> None:
    assert TRUST.only("collective").keyid == COLLECTIVE.keyid
    for role in ("individual", "collective"):
        store = TRUST if role == "individual" else NO_TRUST
        with pytest.raises(InputError, match="exactly one"):
            store.only(role)


# Changes.


def test_every_change_is_the_next_version_and_leaves_the_old_one() -> None:
    before = TRUST.model_dump()
    changed = [
        TRUST.with_key(STRANGER.public_hex, "individual", "another"),
        TRUST.without_key(INDIVIDUAL.keyid, "retired"),
        TRUST.with_rotated_key("collective", "collective", STRANGER.public_hex),
        TRUST.with_root(Handover.make(ROOT, SECOND_ROOT)),
        TRUST.with_expiry(NOW + 1),
    ]
    assert {store.version for store in changed} == {TRUST.version + 1}
    assert len({store.model_dump_json() for store in changed}) == len(changed)
    assert TRUST.model_dump() == before
    assert (NO_TRUST.version, TRUST.version) == (1, 4)


def test_a_rotated_key_is_one_epoch_later_and_the_old_one_is_superseded() -> None:
    store = TRUST.with_rotated_key("collective", "collective", STRANGER.public_hex)
    assert store.only("collective") == store.key_for(STRANGER.keyid, "collective")
    assert store.only("collective").epoch == TRUST.only("collective").epoch + 1
    (gone,) = store.revoked
    assert (gone.keyid, gone.reason, gone.version) == (COLLECTIVE.keyid, "superseded", store.version)
    with pytest.raises(RevokedKeyError, match="superseded"):
        store.key_for(COLLECTIVE.keyid, "collective")
    # The others are as they were.
    assert {key.party for key in store.keys} == {key.party for key in TRUST.keys}
    with pytest.raises(InputError, match="nothing to rotate"):
        TRUST.with_rotated_key("collective", "individual", STRANGER.public_hex)


def test_a_party_that_comes_back_goes_on_counting_its_keys() -> None:
    """An epoch never comes twice, or what was signed in the first would pass for what was signed in the second."""
    gone = TRUST.with_rotated_key("collective", "collective", STRANGER.public_hex).without_key(
        STRANGER.keyid, "compromised"
    )
    back = gone.with_key(FORGER.public_hex, "collective", "collective")
    assert back.only("collective").epoch == 3
    with pytest.raises(InputError, match="later epoch"):
        gone.with_key(FORGER.public_hex, "collective", "collective", epoch=2)


def test_a_party_has_one_key_for_a_role() -> None:
    TRUST.with_key(STRANGER.public_hex, "individual", "collective")
    with pytest.raises(InputError, match="two keys"):
        TRUST.with_key(STRANGER.public_hex, "collective", "collective")


@pytest.mark.parametrize(
    ("public", "party", "reason"),
    [
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


def test_what_is_not_pinned_cannot_be_revoked() -> None:
    assert TRUST.without_key(INDIVIDUAL.keyid, "retired").revoked
    with pytest.raises(InputError, match="not pinned"):
        TRUST.without_key(STRANGER.keyid, "retired")


def test_thousands_of_keys_fit_and_are_found() -> None:
    """A thousand individuals, and among them exactly those that were pinned."""
    many = [SigningKey.from_seed(number.to_bytes(32, "big")) for number in range(1, 1001)]
    listed = tuple(
        TrustedKey(public=key.public_hex, role="individual", party=f"individual-{number}")
        for number, key in enumerate(many)
    )
    store = TrustStore(root=ROOT.public_hex, expires_at=NOW, keys=listed)
    data = sign_trust(store, ROOT)
    read = verify(data)
    assert [read.key_for(key.keyid, "individual").party for key in many] == [key.party for key in listed]
    assert len(data) < MAX_BYTES // 5
    with pytest.raises(UnknownKeyError):
        read.key_for(STRANGER.keyid, "individual")


def test_a_new_root_takes_over_without_the_old_one() -> None:
    store = ROTATED.without_key(INDIVIDUAL.keyid, "compromised")
    new = store.taken_over(THIRD_ROOT.public_hex, NOW + 9)
    assert (new.keys, new.revoked, new.version) == (store.keys, store.revoked, store.version + 1)
    assert (new.roots, new.expires_at) == ((THIRD_ROOT.public_hex,), NOW + 9)
    data, seen = sign_trust(new, THIRD_ROOT), seen_of(sign_trust(store, SECOND_ROOT))
    # It is believed where it is pinned and nowhere else.
    assert verify(data, THIRD_ROOT, seen=seen) == new
    for pinned in (ROOT, SECOND_ROOT):
        with pytest.raises(UnknownKeyError):
            verify(data, pinned, seen=seen)
    for old in (ROOT, SECOND_ROOT):
        with pytest.raises(InputError, match="keygen"):
            store.taken_over(old.public_hex, NOW)
    with pytest.raises(InputError, match="a party's key too"):
        store.taken_over(INDIVIDUAL.public_hex, NOW)


def test_a_former_key_may_turn_out_to_be_compromised_and_never_the_other_way() -> None:
    for store in (
        TRUST.without_key(COLLECTIVE.keyid, "retired"),
        TRUST.with_rotated_key("collective", "collective", STRANGER.public_hex),
    ):
        (gone,) = store.revoked
        worse = store.without_key(COLLECTIVE.keyid, "compromised")
        assert worse.is_compromised(COLLECTIVE.keyid)
        assert worse.keys == store.keys
        changed = {"reason": "compromised", "version": store.version + 1}
        assert worse.revoked == (gone.model_copy(update=changed),)
        assert verify(sign_trust(worse, ROOT)) == worse
        for reason in ("retired", "superseded", "compromised"):
            with pytest.raises(InputError, match="revoked already, as compromised"):
                worse.without_key(COLLECTIVE.keyid, reason)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="revoked already"):
            store.without_key(COLLECTIVE.keyid, "retired")


def test_attack_under_an_expired_store() -> None:
    """An old store held back from its replacement (freeze) ends by itself; the time is the verifier's."""
    store = verify(sign_trust(TRUST.with_expiry(NOW), ROOT))
    store.check_current(NOW)
    with pytest.raises(ExpiredError, match="past its time"):
        store.check_current(NOW + 1)


def test_attack_revoked_key_used_again() -> None:
    """Neither under its own name nor pinned anew, for whom and as what it may be."""
    assert TRUST.key_for(INDIVIDUAL.keyid, "individual").party == "individual-1"
    store = verify(sign_trust(TRUST.without_key(INDIVIDUAL.keyid, "compromised"), ROOT))
    for role in ("individual", "collective"):
        with pytest.raises(RevokedKeyError, match="individual-1 was revoked as compromised in version 5"):
            store.key_for(INDIVIDUAL.keyid, role)
    assert RevokedKeyError.code == "revoked_key"
    for party, role in (("individual-1", "individual"), ("another", "collective")):
        with pytest.raises(InputError, match="revoked as compromised"):
            store.with_key(INDIVIDUAL.public_hex, role, party)
    with pytest.raises(InputError, match="pinned twice"):
        store.with_rotated_key("individual-2", "individual", INDIVIDUAL.public_hex)
    # Nor in a store that lists it on both sides.
    payload = json.loads(store.model_dump_json())
    payload["keys"].append({"public": INDIVIDUAL.public_hex, "role": "individual", "party": "x", "epoch": 9})
    with pytest.raises(MalformedError, match="pinned twice"):
        verify(signed(payload, ROOT))


@pytest.mark.parametrize("key", [COLLECTIVE, ROOT], ids=["a party's", "the root's"])
def test_attack_same_key_pinned_for_two_roles(key: SigningKey) -> None:
    """With one key for two roles, what was signed as one party is believed of another."""
    TRUST.with_key(STRANGER.public_hex, "individual", "another")
    said = "pinned twice" if key is COLLECTIVE else "a root key signs the trust store and nothing else"
    with pytest.raises(InputError, match=said):
        TRUST.with_key(key.public_hex, "individual", "another")
    with pytest.raises(InputError, match=said):
        TRUST.with_rotated_key("individual-1", "individual", key.public_hex)
    payload = json.loads(TRUST.model_dump_json())
    payload["keys"].append({"public": key.public_hex, "role": "individual", "party": "another", "epoch": 1})
    with pytest.raises(MalformedError, match=said):
        verify(signed(payload, ROOT))


def test_attack_party_s_key_becomes_the_root() -> None:
    assert TRUST.with_root(Handover.make(ROOT, SECOND_ROOT)).root == SECOND_ROOT.public_hex
    with pytest.raises(InputError, match="a root key is a party's key too"):
        TRUST.with_root(Handover.make(ROOT, COLLECTIVE))


@pytest.mark.parametrize("public", SMALL_ORDER)
def test_attack_key_of_small_order_pinned(public: str) -> None:
    """Refused where a person pins it, and where it stands in a signed store: as a party's key, revoked, or as root."""
    with pytest.raises(InputError, match="small order"):
        TRUST.with_key(public, "individual", "another")
    genuine = json.loads(TRUST.model_dump_json())
    assert verify(signed(genuine, ROOT)) == TRUST
    entry = {"public": public, "role": "individual", "party": "another", "epoch": 1}
    for changed in (
        {"keys": [*genuine["keys"], entry]},
        {"revoked": [{**entry, "reason": "retired", "version": 1}]},
        {"root": public},
    ):
        with pytest.raises(MalformedError, match="small order"):
            verify(signed(genuine | changed, ROOT))


def test_only_a_key_that_was_revoked_as_compromised_is_compromised() -> None:
    assert not TRUST.is_compromised(COLLECTIVE.keyid)
    assert not TRUST.is_compromised(STRANGER.keyid)
    assert not TRUST.without_key(COLLECTIVE.keyid, "retired").is_compromised(COLLECTIVE.keyid)
    assert not TRUST.with_rotated_key("collective", "collective", STRANGER.public_hex).is_compromised(COLLECTIVE.keyid)
    stolen = TRUST.without_key(COLLECTIVE.keyid, "compromised")
    assert stolen.is_compromised(COLLECTIVE.keyid)
    assert not stolen.is_compromised(INDIVIDUAL.keyid)


def test_other_individuals_stay_when_one_is_revoked() -> None:
    store = TRUST.without_key(INDIVIDUAL.keyid, "retired")
    assert store.key_for(OTHER_INDIVIDUAL.keyid, "individual") == TRUST.key_for(OTHER_INDIVIDUAL.keyid, "individual")
