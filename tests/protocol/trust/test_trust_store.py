"""The trust store: only what the pinned root signed is believed, in its newest version, each key for its role only."""

import base64
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.digest import digest_of
from protocol.encoding import canonical_json
from protocol.errors import (
    BadSignatureError,
    EquivocationError,
    ExpiredError,
    InputError,
    MalformedError,
    RefusedError,
    RevokedKeyError,
    RollbackError,
    TooLargeError,
    UnknownKeyError,
)
from protocol.keys.signing_key import SigningKey, key_identifier
from protocol.messages import envelope
from protocol.messages.envelope import Envelope, pre_authentication_encoding
from protocol.trust.root_handover import HANDOVER_TYPE, Handover
from protocol.trust.signed_trust import MAX_BYTES, PAYLOAD_TYPE, TrustSeen, claimed_root, sign_trust, verify_trust
from protocol.trust.trust_store import TrustedKey, TrustStore
from tests.protocol.parties import COLLECTIVE, INDIVIDUAL, NO_TRUST, NOW, OTHER_INDIVIDUAL, ROOT, STRANGER, TRUST

SECOND_ROOT = SigningKey.from_seed(b"2" * 32)
THIRD_ROOT = SigningKey.from_seed(b"3" * 32)
FORGER = SigningKey.from_seed(b"!" * 32)
ROTATED = TRUST.with_root(Handover.make(ROOT, SECOND_ROOT))
TWICE = ROTATED.with_root(Handover.make(SECOND_ROOT, THIRD_ROOT))
GENUINE = sign_trust(TRUST, ROOT)


def verify(data: bytes, root: SigningKey = ROOT, seen: TrustSeen | None = None) -> TrustStore:
    return verify_trust(data, root=root.public_hex, seen=seen)[0]


def seen_of(data: bytes, root: SigningKey = ROOT) -> TrustSeen:
    return verify_trust(data, root=root.public_hex, seen=None)[1]


def signed(payload: object, key: SigningKey, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """Any payload in a genuine envelope of ``key``: what an attacker with a key of its own can make."""
    body = payload if isinstance(payload, bytes) else canonical_json.encode(payload)  # type: ignore[arg-type]
    signature = key.sign(pre_authentication_encoding(payload_type, body))
    return envelope.encode(Envelope(payload_type, body, key.keyid, signature))


# What is believed.


def test_what_the_pinned_root_signed_is_read_as_it_was() -> None:
    store, seen = verify_trust(GENUINE, root=ROOT.public_hex, seen=None)
    assert store == TRUST
    assert seen == TrustSeen(TRUST.version, digest_of(GENUINE), ROOT.public_hex, ROOT.public_hex)
    assert verify_trust(GENUINE, root=ROOT.public_hex, seen=seen) == (store, seen)
    assert claimed_root(GENUINE) == ROOT.public_hex


def test_the_file_is_a_dsse_envelope_over_canonical_json() -> None:
    """Taken apart with nothing of ours but the signature's check."""
    outer = json.loads(GENUINE)
    payload = base64.b64decode(outer["payload"])
    assert outer["payloadType"] == "application/vnd.learngene.trust.v1+json"
    assert outer["signatures"][0]["keyid"] == ROOT.keyid
    inner = json.loads(payload)
    assert json.dumps(inner, sort_keys=True, separators=(",", ":")).encode() == payload
    assert [key["party"] for key in inner["keys"]] == ["collective", "individual-1", "individual-2"]
    assert set(inner) == {"format", "version", "expires_at", "root", "handovers", "keys", "revoked"}


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


def test_a_node_follows_from_every_earlier_root_to_the_one_of_now() -> None:
    data = sign_trust(TWICE, THIRD_ROOT)
    for pinned in (ROOT, SECOND_ROOT, THIRD_ROOT):
        assert verify(data, pinned) == TWICE
    # Memory of an earlier root goes on counting under the next.
    assert verify(data, seen=seen_of(sign_trust(ROTATED, SECOND_ROOT))) == TWICE
    assert TWICE.key_for(COLLECTIVE.keyid, "collective") == TRUST.key_for(COLLECTIVE.keyid, "collective")


def test_only_the_root_of_now_signs() -> None:
    assert verify(sign_trust(ROTATED, SECOND_ROOT)) == ROTATED
    for key, said in ((ROOT, "newer root"), (FORGER, "not the trust store's root key")):
        with pytest.raises(InputError, match=said):
            sign_trust(ROTATED, key)
    with pytest.raises(InputError, match="the key that signed it last"):
        ROTATED.with_root(Handover.make(ROOT, THIRD_ROOT))
    with pytest.raises(InputError, match="the old one"):
        Handover.make(ROOT, ROOT)


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


# Attacks, each beside the honest case.


def test_attack_forged_root() -> None:
    """Somebody else's root signs a store of the same keys, with and without claiming to be the pinned one."""
    assert verify(GENUINE) == TRUST
    forged = TrustStore(root=FORGER.public_hex, expires_at=TRUST.expires_at, version=9, keys=TRUST.keys)
    with pytest.raises(UnknownKeyError, match="nothing leads to it"):
        verify(sign_trust(forged, FORGER))
    genuine = json.loads(envelope.parse(GENUINE).payload)
    with pytest.raises(UnknownKeyError, match="not signed by its root"):
        verify(signed(genuine | {"version": 9}, FORGER))
    # The forger's signature under the root's name.
    opened = envelope.parse(signed(genuine | {"version": 9}, FORGER))
    with pytest.raises(BadSignatureError):
        verify(envelope.encode(Envelope(opened.payload_type, opened.payload, ROOT.keyid, opened.signature)))


def test_attack_stripped_handover() -> None:
    """Without the handover nothing leads from the pinned root to the one that signed, whoever took it away."""
    assert verify(sign_trust(TWICE, THIRD_ROOT)) == TWICE
    for kept in (TWICE.handovers[1:], ()):
        stripped = TrustStore.model_validate({**_fields(TWICE), "handovers": kept})
        assert verify(sign_trust(stripped, THIRD_ROOT), THIRD_ROOT) == stripped
        with pytest.raises(UnknownKeyError, match="nothing leads to it"):
            verify(sign_trust(stripped, THIRD_ROOT))


def test_attack_handover_signed_only_by_the_new_key() -> None:
    """A forger hands the root over to itself; only its own signature is real. Nor does it help to take a genuine
    signature of the old root from another statement or another envelope."""
    honest = Handover.make(ROOT, FORGER)
    assert verify(sign_trust(TRUST.with_root(honest), FORGER)).root == FORGER.public_hex
    elsewhere = Handover.make(ROOT, SECOND_ROOT).signature_old
    of_a_store = envelope.parse(GENUINE).signature.hex()
    for signature in (honest.signature_new, "00" * 64, elsewhere, of_a_store):
        handover = honest.model_copy(update={"signature_old": signature})
        with pytest.raises(BadSignatureError):
            TRUST.with_root(handover)
        store = TrustStore.model_validate(
            {**_fields(TRUST), "version": 5, "root": FORGER.public_hex, "handovers": (handover,)}
        )
        with pytest.raises(BadSignatureError):
            verify(sign_trust(store, FORGER))


def test_attack_handover_signed_only_by_the_old_key() -> None:
    """The old root names a successor that never agreed, such as another federation's root."""
    handover = Handover.make(ROOT, SECOND_ROOT)
    handover.check()
    with pytest.raises(BadSignatureError):
        handover.model_copy(update={"signature_new": handover.signature_old}).check()


def test_attack_handover_chain_crossed() -> None:
    """Genuine handovers of two federations, put together: the pinned root is named, but it leads elsewhere."""
    other = Handover.make(SECOND_ROOT, FORGER)
    mine = Handover.make(ROOT, THIRD_ROOT)
    chain = {"root": FORGER.public_hex, "version": 9}
    good = TrustStore.model_validate({**_fields(TRUST), **chain, "handovers": (Handover.make(ROOT, FORGER),)})
    assert verify(sign_trust(good, FORGER)) == good
    for handovers in ((mine, other), (other, mine), (other, Handover.make(ROOT, SECOND_ROOT)), (mine,)):
        payload = json.loads(good.model_dump_json()) | {"handovers": [link.model_dump() for link in handovers]}
        with pytest.raises(MalformedError, match=r"one chain|does not lead"):
            verify(signed(payload, FORGER))


def test_attack_root_that_comes_back() -> None:
    """A circle of handovers would make an earlier, perhaps stolen root the newest again."""
    with pytest.raises(InputError, match="comes back"):
        ROTATED.with_root(Handover.make(SECOND_ROOT, ROOT))
    payload = json.loads(ROTATED.model_dump_json())
    assert verify(signed(payload, SECOND_ROOT)) == ROTATED
    payload["handovers"].append(Handover.make(SECOND_ROOT, ROOT).model_dump())
    with pytest.raises(MalformedError, match="comes back"):
        verify(signed(payload | {"root": ROOT.public_hex}, ROOT))


def test_attack_stolen_old_root_after_a_rotation() -> None:
    """Who stole the old root hands it over to itself. Where the genuine successor was seen, that is refused."""
    seen = seen_of(sign_trust(ROTATED, SECOND_ROOT))
    stolen = TRUST.with_expiry(NOW).with_root(Handover.make(ROOT, FORGER))
    with pytest.raises(EquivocationError, match="two successors"):
        verify(sign_trust(stolen, FORGER), seen=seen)
    # Nor may the old root sign on as if it had never handed over.
    with pytest.raises(EquivocationError, match="two successors"):
        verify(sign_trust(TRUST.with_expiry(NOW).with_expiry(NOW), ROOT), seen=seen)
    assert verify(sign_trust(ROTATED.with_expiry(NOW), SECOND_ROOT), seen=seen).version == ROTATED.version + 1


def test_attack_rollback_to_an_earlier_version() -> None:
    """The version before a revocation, genuine in every byte."""
    later = TRUST.without_key(INDIVIDUAL.keyid, "compromised")
    seen = seen_of(sign_trust(later, ROOT))
    assert verify(sign_trust(later, ROOT), seen=seen) == later
    with pytest.raises(RollbackError, match=r"version 4 .* version 5"):
        verify(GENUINE, seen=seen)
    # Also across a change of the root.
    with pytest.raises(RollbackError):
        verify(GENUINE, seen=seen_of(sign_trust(ROTATED, SECOND_ROOT)))


def test_attack_same_version_with_other_bytes() -> None:
    """The root signs two stores of one version, for two readers."""
    seen = seen_of(GENUINE)
    assert verify(GENUINE, seen=seen) == TRUST
    other = TrustStore.model_validate({**_fields(TRUST), "expires_at": TRUST.expires_at + 1})
    with pytest.raises(EquivocationError, match="two trust stores of version 4"):
        verify(sign_trust(other, ROOT), seen=seen)


def test_attack_fast_forward_by_a_stolen_root_ends_where_a_new_root_is_pinned() -> None:
    """No version comes after the largest. A new root leads out only where an operator pins it."""
    last = TrustStore.model_validate({**_fields(TRUST), "version": 2**31})
    seen = seen_of(sign_trust(last, ROOT))
    data = sign_trust(ROTATED, SECOND_ROOT)
    with pytest.raises(RollbackError):
        verify(data, seen=seen)
    assert verify(data, SECOND_ROOT, seen=seen) == ROTATED
    with pytest.raises(UnknownKeyError):
        verify(sign_trust(last, ROOT), SECOND_ROOT, seen=seen)


def test_attack_rollback_where_the_new_root_is_pinned_after_it_was_followed() -> None:
    """The node followed from the first root to the second; its operator then pins the second, as the handbook says.
    What the second had signed before goes on being old."""
    earlier = ROTATED
    later = earlier.without_key(INDIVIDUAL.keyid, "compromised")
    seen = seen_of(sign_trust(later, SECOND_ROOT))
    assert (seen.root, seen.pinned) == (SECOND_ROOT.public_hex, ROOT.public_hex)
    assert verify(sign_trust(later, SECOND_ROOT), SECOND_ROOT, seen=seen) == later
    with pytest.raises(RollbackError):
        verify(sign_trust(earlier, SECOND_ROOT), SECOND_ROOT, seen=seen)
    other = earlier.with_expiry(NOW)
    assert other.version == later.version
    with pytest.raises(EquivocationError):
        verify(sign_trust(other, SECOND_ROOT), SECOND_ROOT, seen=seen)
    # Also where the second has handed over to a third since, and where an earlier root is pinned again.
    third = later.with_root(Handover.make(SECOND_ROOT, THIRD_ROOT))
    seen = seen_of(sign_trust(third, THIRD_ROOT), SECOND_ROOT)
    for pinned in (ROOT, THIRD_ROOT):
        assert verify(sign_trust(third, THIRD_ROOT), pinned, seen=seen) == third
        with pytest.raises(RollbackError):
            verify(sign_trust(TWICE, THIRD_ROOT), pinned, seen=seen)


@pytest.mark.parametrize("handed_over", [False, True])
def test_attack_fast_forward_by_a_stolen_root_heals_under_the_root_that_follows_it(handed_over: bool) -> None:
    """The thief uses up the numbers, under the stolen root or one of its own. The keeper's new root, to which the old
    one has handed over as well, is free of them where it is pinned; and from then on its own versions count."""
    last = TrustStore.model_validate({**_fields(TRUST), "version": 2**31 - 1})
    stolen = last.with_root(Handover.make(ROOT, FORGER)) if handed_over else last.with_expiry(NOW)
    seen = seen_of(sign_trust(stolen, FORGER if handed_over else ROOT))
    assert seen.version == 2**31
    healed, seen = verify_trust(sign_trust(ROTATED, SECOND_ROOT), root=SECOND_ROOT.public_hex, seen=seen)
    assert healed == ROTATED
    next_one = ROTATED.with_expiry(NOW)
    assert verify(sign_trust(next_one, SECOND_ROOT), SECOND_ROOT, seen=seen) == next_one
    with pytest.raises(RollbackError):
        verify(sign_trust(ROTATED, SECOND_ROOT), SECOND_ROOT, seen=seen_of(sign_trust(next_one, SECOND_ROOT)))


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


# Canonical encodings of points of order 1, 2, 4 and 8 (https://eprint.iacr.org/2020/1244).
SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
]


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


def test_attack_oversize() -> None:
    """Size is the first thing that is looked at."""
    room = MAX_BYTES - len(GENUINE)
    with pytest.raises(MalformedError):
        verify(GENUINE + b" " * room)
    for data in (GENUINE + b" " * (room + 1), b"[" * (MAX_BYTES + 1)):
        with pytest.raises(TooLargeError):
            verify(data)
        with pytest.raises(TooLargeError):
            claimed_root(data)


def test_a_store_that_would_be_refused_for_its_size_is_not_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.trust.signed_trust.MAX_BYTES", len(GENUINE))
    assert sign_trust(TRUST, ROOT) == GENUINE
    with pytest.raises(InputError, match="at most"):
        sign_trust(TRUST.with_key(STRANGER.public_hex, "individual", "individual-3"), ROOT)


def test_attack_envelope_of_another_kind() -> None:
    """The same root and the same bytes under another payload type, or another kind of content under this one."""
    payload = envelope.parse(GENUINE).payload
    assert verify(signed(payload, ROOT)) == TRUST
    for payload_type in ("application/vnd.learngene.release.v1+json", HANDOVER_TYPE):
        with pytest.raises(MalformedError, match="no trust store"):
            verify(signed(payload, ROOT, payload_type))
    with pytest.raises(MalformedError):
        verify(signed({"format": 1, "old": ROOT.public_hex, "new": FORGER.public_hex}, ROOT))


def _without(name: str) -> Callable[[dict[str, object]], object]:
    return lambda value: value.pop(name)


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(version="4"),
        lambda value: value.update(version=0),
        lambda value: value.update(format=2),
        lambda value: value.update(note=1),
        lambda value: value.update(expires_at=None),
        lambda value: value["keys"][0].update(role="root"),
        lambda value: value["keys"][0].update(public=value["keys"][0]["public"].upper()),
        lambda value: value["keys"][1].update(party="collective", role="collective"),
        _without("expires_at"),
        _without("version"),
        _without("revoked"),
        _without("handovers"),
        _without("format"),
        _without("root"),
    ],
)
def test_a_signed_store_outside_the_format_is_refused(change: Callable[[dict[str, object]], object]) -> None:
    """One store has one encoding: a field that could be left out would make two."""
    value = json.loads(TRUST.model_dump_json())
    assert verify(signed(value, ROOT)) == TRUST
    change(value)
    with pytest.raises(MalformedError):
        verify(signed(value, ROOT))


@given(st.integers(0, 8 * len(GENUINE) - 1))
def test_no_single_flipped_bit_is_accepted(bit: int) -> None:
    data = bytearray(GENUINE)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RefusedError):
        verify(bytes(data))


@given(st.binary(max_size=200))
def test_nothing_but_a_refusal_comes_of_any_bytes(data: bytes) -> None:
    for read in (verify, claimed_root):
        with pytest.raises(RefusedError):
            read(data)


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


def _fields(store: TrustStore) -> dict[str, object]:
    return {name: getattr(store, name) for name in TrustStore.model_fields}
