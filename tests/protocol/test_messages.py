"""Payloads: the schema is the list of what may be said, and an individual's payloads all have one length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import canonical_json, envelope, messages
from protocol.architecture import Form
from protocol.bundle import make_abort, make_grant, make_receipt, make_release, make_request
from protocol.errors import MalformedError
from protocol.messages import Abort, Grant, Payload, Receipt, Release, Request
from tests.protocol.parties import COLLECTIVE, COLLECTIVE_POLICY, INDIVIDUAL, NOW, RUN, learngene

DIGEST = "ab" * 32


def payload_of(data: bytes) -> bytes:
    return envelope.parse(data).payload


REQUEST = payload_of(
    make_request(run_id=RUN, audience=COLLECTIVE.keyid, form="condensed", key=INDIVIDUAL, now=NOW, nonce=b"n" * 16)
)
RELEASE = payload_of(
    make_release(
        learngene(),
        run_id=RUN,
        seq=1,
        prev=messages.NO_RELEASE,
        key=COLLECTIVE,
        key_epoch=1,
        policy=COLLECTIVE_POLICY,
        now=NOW,
    )[0]
)
GRANT = payload_of(
    make_grant(
        run_id=RUN, release=DIGEST, request=DIGEST, audience=INDIVIDUAL.keyid, key=COLLECTIVE, now=NOW, until=NOW + 9
    )
)
RECEIPT = payload_of(make_receipt(run_id=RUN, release=DIGEST, audience=COLLECTIVE.keyid, key=INDIVIDUAL, now=NOW))
ABORT = payload_of(
    make_abort(run_id=RUN, audience=COLLECTIVE.keyid, code="stopped", subject=None, key=INDIVIDUAL, now=NOW)
)
ALL: list[tuple[type[Payload], bytes]] = [
    (Request, REQUEST),
    (Release, RELEASE),
    (Grant, GRANT),
    (Receipt, RECEIPT),
    (Abort, ABORT),
]


@pytest.mark.parametrize(("model", "data"), ALL)
def test_round_trip(model: type[Payload], data: bytes) -> None:
    assert messages.encode(messages.decode(model, data)) == data


def test_every_payload_of_an_individual_has_one_length() -> None:
    sealed = make_request(
        run_id=RUN, audience=DIGEST, form="paper", key=INDIVIDUAL, now=0, nonce=bytes(16), hpke_public=DIGEST
    )
    subject = make_abort(run_id=RUN, audience=DIGEST, code="digest_mismatch", subject=DIGEST, key=INDIVIDUAL, now=0)
    lengths = {len(data) for data in (REQUEST, RECEIPT, ABORT, payload_of(sealed), payload_of(subject))}
    assert lengths == {messages.PADDED_BYTES}


@given(st.sampled_from(["condensed", "paper"]), st.none() | st.just(DIGEST), st.integers(0, 2**40 - messages.LIFE))
def test_the_length_of_an_envelope_says_nothing(form: Form, hpke_public: str | None, now: int) -> None:
    data = make_request(
        run_id=RUN, audience=DIGEST, form=form, key=INDIVIDUAL, now=now, nonce=bytes(16), hpke_public=hpke_public
    )
    other = make_request(run_id=RUN, audience=DIGEST, form="paper", key=INDIVIDUAL, now=1, nonce=b"n" * 16)
    assert len(data) == len(other)


def change(data: bytes, **changes: canonical_json.Value) -> bytes:
    return canonical_json.encode(canonical_json.decode(data) | dict(changes))


@pytest.mark.parametrize(("model", "data"), ALL)
@pytest.mark.parametrize(
    "changes",
    [{"v": 2}, {"v": "1"}, {"v": True}, {"note": "x"}, {"run_id": "0" * 31}, {"run_id": "F" * 32}, {"issued_at": -1}],
)
def test_what_the_schema_does_not_allow_is_refused(
    model: type[Payload], data: bytes, changes: dict[str, canonical_json.Value]
) -> None:
    changed = canonical_json.decode(change(data, **changes))
    if "pad" in changed:
        # The length stays right, so that the schema alone is at fault.
        excess = len(canonical_json.encode(changed)) - messages.PADDED_BYTES
        changed["pad"] = str(changed["pad"])[excess:] if excess > 0 else str(changed["pad"]) + "0" * -excess
    with pytest.raises(MalformedError, match="schema"):
        messages.decode(model, canonical_json.encode(changed))


@pytest.mark.parametrize(("model", "data"), ALL)
def test_a_missing_field_is_refused(model: type[Payload], data: bytes) -> None:
    for name in canonical_json.decode(data):
        rest = {key: value for key, value in canonical_json.decode(data).items() if key != name}
        with pytest.raises(MalformedError):
            messages.decode(model, canonical_json.encode(rest))


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
        {"tensors": [{"name": "a", "role": "weight", "dtype": "float16", "shape": [1]}]},
        {"tensors": [{"name": "a", "role": "weight", "dtype": "float32", "shape": [1, 1, 1, 1, 1]}]},
        {"tensors": [{"name": "a", "role": "weight", "dtype": "float32", "shape": [1]}] * 257},
    ],
)
def test_what_a_release_cannot_say(changes: dict[str, canonical_json.Value]) -> None:
    with pytest.raises(MalformedError, match="schema"):
        messages.decode(Release, change(RELEASE, **changes))


def test_free_text_in_the_padding_is_refused() -> None:
    pad = str(canonical_json.decode(REQUEST)["pad"])
    with pytest.raises(MalformedError, match="schema"):
        messages.decode(Request, change(REQUEST, pad="hello" + pad[5:]))


def test_padding_of_another_length_is_refused() -> None:
    pad = str(canonical_json.decode(REQUEST)["pad"])
    for other in (pad[1:], pad + "0", ""):
        with pytest.raises(MalformedError, match="512"):
            messages.decode(Request, change(REQUEST, pad=other))


def test_a_payload_of_another_kind_is_refused() -> None:
    for model, _ in ALL:
        for other, data in ALL:
            if other is not model:
                with pytest.raises(MalformedError):
                    messages.decode(model, data)
