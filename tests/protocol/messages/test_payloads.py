"""Payloads: the schema is the list of what may be said, and an individual's payloads all have one length."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.digest import digest_of
from protocol.encoding import canonical_json
from protocol.errors import MalformedError
from protocol.keys.encryption_key import EncryptionKey
from protocol.learngene.architecture import Form
from protocol.messages import envelope, payloads
from protocol.messages.builders import make_abort, make_grant, make_receipt, make_release, make_request
from protocol.messages.payloads import Abort, Grant, Payload, Receipt, Release, Request
from tests.protocol.parties import (
    COLLECTIVE,
    COLLECTIVE_POLICY,
    CONTENT_KEY,
    ENCRYPTION,
    HYBRID_ENCRYPTION,
    INDIVIDUAL,
    NOW,
    RUN,
    learngene,
)

DIGEST = "ab" * 32


def payload_of(data: bytes) -> bytes:
    return envelope.parse(data).payload


def request(
    *, form: Form = "condensed", encryption: EncryptionKey = ENCRYPTION, now: int = NOW, nonce: bytes = b"n" * 16
) -> bytes:
    return make_request(
        run_id=RUN, audience=COLLECTIVE.keyid, form=form, key=INDIVIDUAL, encryption=encryption, now=now, nonce=nonce
    )


REQUEST = payload_of(request())
HYBRID_REQUEST = payload_of(request(encryption=HYBRID_ENCRYPTION))
RELEASE_BYTES = make_release(
    learngene(),
    run_id=RUN,
    seq=1,
    prev=payloads.NO_RELEASE,
    key=COLLECTIVE,
    key_epoch=1,
    policy_sha256=COLLECTIVE_POLICY.sha256,
    now=NOW,
    content_key=CONTENT_KEY,
)[0]
RELEASE = payload_of(RELEASE_BYTES)


def grant(asked: bytes, now: int = NOW) -> Grant:
    """The answer to a request with this payload."""
    data = make_grant(
        payloads.decode(Request, asked),
        DIGEST,
        payloads.decode(Release, RELEASE),
        digest_of(RELEASE_BYTES),
        key=COLLECTIVE,
        now=now,
        content_key=CONTENT_KEY,
    )
    return payloads.decode(Grant, payload_of(data))


GRANT = payloads.encode(grant(REQUEST))
RECEIPT = payload_of(make_receipt(run_id=RUN, release=DIGEST, audience=COLLECTIVE.keyid, key=INDIVIDUAL, now=NOW))
ABORT = payload_of(
    make_abort(run_id=RUN, audience=COLLECTIVE.keyid, code="stopped", subject=None, key=INDIVIDUAL, now=NOW)
)
ALL: list[tuple[type[Payload], bytes]] = [
    (Request, REQUEST),
    (Request, HYBRID_REQUEST),
    (Release, RELEASE),
    (Grant, GRANT),
    (Receipt, RECEIPT),
    (Abort, ABORT),
]


@pytest.mark.parametrize(("model", "data"), ALL)
def test_round_trip(model: type[Payload], data: bytes) -> None:
    assert payloads.encode(payloads.decode(model, data)) == data


def test_every_payload_of_an_individual_has_one_length() -> None:
    """But for the request with the long public key of the hybrid, which has one of its own."""
    subject = make_abort(run_id=RUN, audience=DIGEST, code="digest_mismatch", subject=DIGEST, key=INDIVIDUAL, now=0)
    lengths = {len(data) for data in (REQUEST, RECEIPT, ABORT, payload_of(request(form="paper")), payload_of(subject))}
    assert lengths == {payloads.PADDED_BYTES}
    lengths = {len(payload_of(request(form=form, encryption=HYBRID_ENCRYPTION))) for form in get_args(Form)}
    assert lengths == {len(HYBRID_REQUEST)} == {payloads.REQUEST_BYTES["mlkem768-x25519"]}
    # The public key's 2432 digits and everything else fit, with room for the largest numbers.
    assert str(canonical_json.decode(HYBRID_REQUEST)["pad"]).startswith("0" * 16)


@given(
    st.sampled_from(get_args(Form)),
    st.sampled_from([ENCRYPTION, HYBRID_ENCRYPTION]),
    st.integers(0, 2**40 - payloads.LIFE),
)
def test_the_length_of_an_envelope_says_nothing(form: Form, encryption: EncryptionKey, now: int) -> None:
    """Neither the form nor the time; which kind of key is used is no secret."""
    assert len(request(form=form, encryption=encryption, now=now)) == len(
        request(encryption=encryption, now=1, nonce=bytes(16))
    )


@pytest.mark.parametrize(("data", "other"), [(REQUEST, HYBRID_REQUEST), (HYBRID_REQUEST, REQUEST)])
def test_attack_with_an_encryption_key_of_another_kind(data: bytes, other: bytes) -> None:
    """Neither the name of the kind nor the key alone can be exchanged, and none of the two left out."""
    kind, key = (canonical_json.decode(other)[name] for name in ("hpke_kem", "hpke_public"))
    for changes in ({"hpke_kem": kind}, {"hpke_public": key}, {"hpke_public": None}, {"hpke_kem": None}):
        with pytest.raises(MalformedError, match="schema"):
            payloads.decode(Request, repadded(change(data, **changes), len(data)))
    both = change(data, hpke_kem=kind, hpke_public=key)
    assert payloads.decode(Request, repadded(both, len(other))).hpke_public == key
    if len(both) < len(data):
        with pytest.raises(MalformedError, match="it must have"):
            payloads.decode(Request, repadded(both, len(data)))


def test_a_grant_always_holds_a_sealed_key() -> None:
    assert payloads.decode(Grant, GRANT).sealed_key
    for sealed in (None, "", "abc", "AB", "zz", "ab" * 2049):
        with pytest.raises(MalformedError, match="schema"):
            payloads.decode(Grant, change(GRANT, sealed_key=sealed))


def test_a_grant_is_never_valid_for_longer_than_its_release() -> None:
    release = payloads.decode(Release, RELEASE)
    assert grant(REQUEST).expires_at == release.expires_at
    assert grant(REQUEST, now=NOW + 60).expires_at == release.expires_at
    assert grant(REQUEST, now=NOW - 60).expires_at == NOW - 60 + payloads.LIFE


def test_what_a_release_withdraws_has_one_order_and_a_limit() -> None:
    digests = [f"{number:064x}" for number in range(payloads.MOST_WITHDRAWN + 1)]
    for withdraws in ([], digests[:2], digests[:-1]):
        release = payloads.decode(Release, change(RELEASE, withdraws=withdraws))
        assert list(release.withdraws) == withdraws
    for withdraws in (digests[:2][::-1], digests[:1] * 2, digests, ["ab"], None):
        with pytest.raises(MalformedError, match="schema"):
            payloads.decode(Release, change(RELEASE, withdraws=withdraws))


def change(data: bytes, **changes: canonical_json.Value) -> bytes:
    return canonical_json.encode(canonical_json.decode(data) | dict(changes))


def repadded(data: bytes, length: int) -> bytes:
    """A payload with as much padding as makes it so long, so that the schema alone is at fault; without any where it
    is too long already."""
    bare = canonical_json.encode(canonical_json.decode(data) | {"pad": ""})
    return change(data, pad="0" * (length - len(bare)))


@pytest.mark.parametrize(("model", "data"), ALL)
@pytest.mark.parametrize(
    "changes",
    [{"v": 2}, {"v": "1"}, {"v": True}, {"note": "x"}, {"run_id": "0" * 31}, {"run_id": "F" * 32}, {"issued_at": -1}],
)
def test_what_the_schema_does_not_allow_is_refused(
    model: type[Payload], data: bytes, changes: dict[str, canonical_json.Value]
) -> None:
    changed = change(data, **changes)
    with pytest.raises(MalformedError, match="schema"):
        payloads.decode(model, repadded(changed, len(data)) if "pad" in canonical_json.decode(data) else changed)


@pytest.mark.parametrize(("model", "data"), ALL)
def test_a_missing_field_is_refused(model: type[Payload], data: bytes) -> None:
    for name in canonical_json.decode(data):
        rest = {key: value for key, value in canonical_json.decode(data).items() if key != name}
        with pytest.raises(MalformedError):
            payloads.decode(model, canonical_json.encode(rest))


@pytest.mark.parametrize(
    "changes",
    [
        {"form": "paper"},
        {"seq": 0},
        {"seq": 2},
        {"prev": DIGEST},
        {"tensors": []},
        {"dp": {"epsilon": 1}},
        {"fisher": {"source": "individual", "estimator": "sampled", "samples": 1024, "clip_micro": 0}},
        {"plaintext": {"size": 0, "sha256": DIGEST}},
        {"tensors": [{"name": "classifier/weight", "role": "weight", "dtype": "float32", "shape": [1]}]},
        {"tensors": [{"name": "a", "role": "classifier", "dtype": "float32", "shape": [1]}]},
        {"tensors": [{"name": "a", "role": "weight", "dtype": "float64", "shape": [1]}]},
        {"tensors": [{"name": "a", "role": "weight", "dtype": "float32", "shape": [1, 1, 1, 1, 1]}]},
        {"tensors": [{"name": "a", "role": "weight", "dtype": "float32", "shape": [1]}] * 257},
    ],
)
def test_what_a_release_cannot_say(changes: dict[str, canonical_json.Value]) -> None:
    with pytest.raises(MalformedError, match="schema"):
        payloads.decode(Release, change(RELEASE, **changes))


def test_free_text_in_the_padding_is_refused() -> None:
    pad = str(canonical_json.decode(REQUEST)["pad"])
    with pytest.raises(MalformedError, match="schema"):
        payloads.decode(Request, change(REQUEST, pad="hello" + pad[5:]))


def test_padding_of_another_length_is_refused() -> None:
    for data, length in ((REQUEST, "512"), (HYBRID_REQUEST, "3072")):
        pad = str(canonical_json.decode(data)["pad"])
        for other in (pad[1:], pad + "0", ""):
            with pytest.raises(MalformedError, match=length):
                payloads.decode(Request, change(data, pad=other))


def test_a_payload_of_another_kind_is_refused() -> None:
    for model, _ in ALL:
        for other, data in ALL:
            if other is not model:
                with pytest.raises(MalformedError):
                    payloads.decode(model, data)
