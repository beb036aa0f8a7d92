"""The signed form of a trust store: what the pinned root signed is read; a forgery or a way back is refused."""

import base64
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.digest import digest_of
from protocol.errors import (
    BadSignatureError,
    EquivocationError,
    InputError,
    MalformedError,
    RefusedError,
    RollbackError,
    TooLargeError,
    UnknownKeyError,
)
from protocol.messages import envelope
from protocol.messages.envelope import Envelope
from protocol.trust.root_handover import HANDOVER_TYPE, Handover
from protocol.trust.signed_trust import MAX_BYTES, TrustSeen, claimed_root, sign_trust, verify_trust
from protocol.trust.trust_store import TrustStore
from tests.protocol.parties import COLLECTIVE, INDIVIDUAL, NOW, ROOT, STRANGER, TRUST
from tests.protocol.trust.stores import FORGER, ROTATED, SECOND_ROOT, THIRD_ROOT, seen_of, signed, verify

TWICE = ROTATED.with_root(Handover.make(SECOND_ROOT, THIRD_ROOT))


GENUINE = sign_trust(TRUST, ROOT)


def _without(name: str) -> Callable[[dict[str, object]], object]:
    return lambda value: value.pop(name)


def _fields(store: TrustStore) -> dict[str, object]:
    return {name: getattr(store, name) for name in TrustStore.model_fields}


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
