"""Verification: an attack for every refusal, each beside the untouched bundle, which is accepted."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from protocol.digest import digest_of
from protocol.encoding import blob, canonical_json
from protocol.errors import (
    BadSignatureError,
    DigestMismatchError,
    EquivocationError,
    ExpiredError,
    LearngeneError,
    MalformedError,
    NonFiniteError,
    PolicyDeniedError,
    RefusedError,
    RevokedKeyError,
    RollbackError,
    TooLargeError,
    UnknownKeyError,
    WrongAudienceError,
    WrongRunError,
)
from protocol.exchange import verification
from protocol.exchange.collective_endpoint import Answer
from protocol.exchange.expectation import Expectation
from protocol.exchange.release_chain import SeenRelease
from protocol.exchange.verification import (
    SealedLearngene,
    VerifiedEnvelopes,
    VerifiedLearngene,
    VerifiedRequest,
    decrypt,
    open_sealed,
    verify_abort,
    verify_committed,
    verify_plaintext,
    verify_receipt,
    verify_request,
)
from protocol.messages import envelope, payloads, sealing
from protocol.messages.builders import make_abort, make_receipt, make_request
from protocol.messages.payloads import LIFE, SKEW, Abort, Grant, Release, Request
from tests.protocol.parties import (
    COLLECTIVE,
    CONTENT_KEY,
    ENCRYPTION,
    INDIVIDUAL,
    INDIVIDUAL_POLICY,
    NEW_COLLECTIVE,
    NO_TRUST,
    NOW,
    OTHER_INDIVIDUAL,
    OTHER_RUN,
    ROTATED_TRUST,
    RUN,
    STRANGER,
    TRUST,
    Exchange,
    architecture,
    content_of,
    flipped,
    learngene,
    opened,
    resigned,
    signed_raw,
)

OTHER_DIGEST = "ab" * 32


def test_the_untouched_bundle_is_accepted(exchange: Exchange) -> None:
    verified = exchange.verify()
    original = learngene()
    assert verified.learngene.architecture == original.architecture
    assert verified.learngene.fisher == original.fisher
    assert set(verified.learngene.tensors) == set(original.tensors)
    opened_blob = decrypt(verified.sealed, ENCRYPTION)
    for name, array in verify_plaintext(verified.sealed, opened_blob).learngene.tensors.items():
        np.testing.assert_array_equal(array, original.tensors[name], strict=True)
        np.testing.assert_array_equal(array, verified.learngene.tensors[name], strict=True)
        # A view on the one decrypted blob, no second copy.
        assert np.shares_memory(array, np.frombuffer(opened_blob, np.uint8))
        assert not array.flags.writeable
    assert (verified.sealed.release_bytes, verified.sealed.grant_bytes, verified.sealed.ciphertext) == exchange.answer
    assert verified.release_digest == digest_of(exchange.answer.release)


def test_the_helpers_of_this_file_make_bundles_that_are_accepted(exchange: Exchange) -> None:
    """Otherwise an attack below could be refused for the helper's own fault."""
    assert resigned(exchange.answer.release, COLLECTIVE) == exchange.answer.release
    plaintext = blob.encode(learngene().tensors)
    assert exchange.with_plaintext(plaintext).answer[::2] == exchange.answer[::2]
    exchange.with_plaintext(plaintext).verify()
    exchange.with_release(exchange.answer.release).verify()
    body = envelope.parse(exchange.answer.grant).payload
    grant = signed_raw(payloads.PAYLOAD_TYPES["grant"], body, COLLECTIVE)
    exchange.with_answer(grant=grant).verify()


def test_attack_with_an_oversized_envelope(exchange: Exchange) -> None:
    for part in ("release", "grant"):
        with pytest.raises(TooLargeError):
            exchange.with_answer(**{part: b"{" * (envelope.MAX_BYTES + 1)}).verify()


def test_attack_with_respelled_json(exchange: Exchange) -> None:
    for data in (
        exchange.answer.release.replace(b'{"payload"', b'{ "payload"'),
        exchange.answer.release.replace(b'"payloadType"', b'"payload":"","payloadType"'),
        b"[" * 1000,
        b"",
    ):
        with pytest.raises(MalformedError):
            exchange.with_answer(release=data).verify()


def test_attack_by_a_stranger(exchange: Exchange) -> None:
    """A complete and consistent bundle under a key that was never pinned."""
    release = resigned(exchange.answer.release, STRANGER, signer=STRANGER.keyid)
    grant = resigned(exchange.answer.grant, STRANGER, signer=STRANGER.keyid, release=digest_of(release))
    with pytest.raises(UnknownKeyError):
        exchange.with_answer(release=release, grant=grant).verify()


def test_attack_by_an_individual_that_plays_the_collective(exchange: Exchange) -> None:
    release = resigned(exchange.answer.release, OTHER_INDIVIDUAL, signer=OTHER_INDIVIDUAL.keyid)
    with pytest.raises(UnknownKeyError, match="pinned as individual"):
        exchange.with_answer(release=release).verify()


def test_attack_with_a_pinned_key_id_and_a_strangers_signature(exchange: Exchange) -> None:
    old = envelope.parse(exchange.answer.release)
    forged = signed_raw(old.payload_type, old.payload, STRANGER, keyid=COLLECTIVE.keyid)
    with pytest.raises(BadSignatureError):
        exchange.with_answer(release=forged).verify()


def test_attack_with_an_altered_payload_under_the_old_signature(exchange: Exchange) -> None:
    old = envelope.parse(exchange.answer.grant)
    altered = old.payload.replace(INDIVIDUAL.keyid.encode(), OTHER_INDIVIDUAL.keyid.encode())
    assert altered != old.payload
    data = envelope.encode(dataclasses.replace(old, payload=altered))
    with pytest.raises(BadSignatureError):
        exchange.with_answer(grant=data).verify()


def test_attack_with_a_message_of_another_type(exchange: Exchange) -> None:
    """The type is signed: a grant in the release's place, and a grant relabelled as a release."""
    with pytest.raises(MalformedError, match="not the expected release"):
        exchange.with_answer(release=exchange.answer.grant).verify()
    relabelled = dataclasses.replace(
        envelope.parse(exchange.answer.grant), payload_type=payloads.PAYLOAD_TYPES["release"]
    )
    with pytest.raises(BadSignatureError):
        exchange.with_answer(release=envelope.encode(relabelled)).verify()


def test_attack_with_a_payload_beyond_the_schema(exchange: Exchange) -> None:
    payload_type = payloads.PAYLOAD_TYPES["grant"]
    value = canonical_json.decode(envelope.parse(exchange.answer.grant).payload)
    for body in (
        canonical_json.encode(value | {"note": "buy now"}),
        canonical_json.encode(value | {"v": 2}),
        canonical_json.encode(value).replace(b'"v":1', b'"v":1.0'),
        canonical_json.encode(value) + b" ",
        b"not json",
    ):
        with pytest.raises(MalformedError):
            exchange.with_answer(grant=signed_raw(payload_type, body, COLLECTIVE)).verify()


def test_attack_with_a_payload_in_anothers_name(exchange: Exchange) -> None:
    value = canonical_json.decode(envelope.parse(exchange.answer.grant).payload)
    body = canonical_json.encode(value | {"signer": STRANGER.keyid})
    with pytest.raises(MalformedError, match="another signer"):
        exchange.with_answer(grant=signed_raw(payloads.PAYLOAD_TYPES["grant"], body, COLLECTIVE)).verify()


def test_attack_with_two_collectives_mixed(exchange: Exchange) -> None:
    """Release and grant each from a pinned collective, but not from one."""
    trust = TRUST.with_key(STRANGER.public_hex, "collective", "collective-2")
    exchange.verify(trust=trust)
    grant = resigned(exchange.answer.grant, STRANGER, signer=STRANGER.keyid)
    with pytest.raises(UnknownKeyError, match="not both signed"):
        exchange.with_answer(grant=grant).verify(trust=trust)


def test_attack_with_a_release_of_another_key_epoch(exchange: Exchange) -> None:
    release = resigned(exchange.answer.release, COLLECTIVE, key_epoch=2)
    with pytest.raises(UnknownKeyError):
        exchange.with_release(release).verify()


def test_attack_by_mix_and_match(exchange: Exchange) -> None:
    """A genuine release under the genuine grant of another one."""
    release = resigned(exchange.answer.release, COLLECTIVE, issued_at=NOW + 1)
    with pytest.raises(DigestMismatchError, match="another release"):
        exchange.with_answer(release=release).verify()


def test_attack_with_the_grant_of_another_individual(exchange: Exchange) -> None:
    grant = resigned(exchange.answer.grant, COLLECTIVE, audience=OTHER_INDIVIDUAL.keyid)
    with pytest.raises(WrongAudienceError, match="not for this individual"):
        exchange.with_answer(grant=grant).verify()


def test_attack_across_runs(exchange: Exchange) -> None:
    elsewhere = exchange.with_release(resigned(exchange.answer.release, COLLECTIVE, run_id=OTHER_RUN), run_id=OTHER_RUN)
    with pytest.raises(WrongRunError):
        elsewhere.verify()
    with pytest.raises(WrongRunError):
        exchange.with_answer(grant=resigned(exchange.answer.grant, COLLECTIVE, run_id=OTHER_RUN)).verify()
    with pytest.raises(WrongRunError):
        exchange.with_release(resigned(exchange.answer.release, COLLECTIVE, run_id=OTHER_RUN)).verify()


def test_attack_with_an_answer_to_another_request(exchange: Exchange) -> None:
    with pytest.raises(WrongAudienceError, match="no open request"):
        exchange.with_answer(grant=resigned(exchange.answer.grant, COLLECTIVE, request=OTHER_DIGEST)).verify()
    with pytest.raises(WrongAudienceError, match="no open request"):
        exchange.verify(expectation=Expectation(RUN, INDIVIDUAL.keyid, {}))


def test_attack_with_another_form_than_was_asked_for(exchange: Exchange) -> None:
    requests = {digest_of(exchange.request): "paper"}
    with pytest.raises(WrongAudienceError, match="asked for the form paper"):
        exchange.verify(expectation=Expectation(RUN, INDIVIDUAL.keyid, requests))  # type: ignore[arg-type]


def test_attack_by_freezing_a_bundle_until_it_is_old(exchange: Exchange) -> None:
    exchange.verify(now=NOW + LIFE + SKEW)
    with pytest.raises(ExpiredError, match="past its time"):
        exchange.verify(now=NOW + LIFE + SKEW + 1)
    short = exchange.with_answer(grant=resigned(exchange.answer.grant, COLLECTIVE, expires_at=NOW + 1))
    with pytest.raises(ExpiredError, match="the grant is past its time"):
        short.verify(now=NOW + SKEW + 2)


def test_attack_with_a_bundle_from_the_future(exchange: Exchange) -> None:
    exchange.verify(now=NOW - SKEW)
    with pytest.raises(ExpiredError, match="from the future"):
        exchange.verify(now=NOW - SKEW - 1)


def test_attack_with_a_life_that_never_ends(exchange: Exchange) -> None:
    for expires_at in (NOW + LIFE + 1, 2**40, NOW):
        for changed in (
            exchange.with_answer(grant=resigned(exchange.answer.grant, COLLECTIVE, expires_at=expires_at)),
            exchange.with_release(resigned(exchange.answer.release, COLLECTIVE, expires_at=expires_at)),
        ):
            with pytest.raises(ExpiredError, match="claims a life"):
                changed.verify()


def test_attack_under_a_trust_store_past_its_time(exchange: Exchange) -> None:
    with pytest.raises(ExpiredError, match="trust store"):
        exchange.verify(trust=TRUST.model_copy(update={"expires_at": NOW - 1}))


def later(exchange: Exchange, seq: int = 5, prev: str = OTHER_DIGEST) -> Exchange:
    return exchange.with_release(resigned(exchange.answer.release, COLLECTIVE, seq=seq, prev=prev))


def test_attack_by_rollback(exchange: Exchange) -> None:
    bundle = later(exchange)
    bundle.verify(seen=(SeenRelease(1, 3, "condensed", "1" * 64, "2" * 64),))
    with pytest.raises(RollbackError):
        bundle.verify(seen=(SeenRelease(1, 7, "condensed", "1" * 64, "2" * 64),))
    # Another form has its own newest release; the chain may have gaps for an individual.
    bundle.verify(seen=(SeenRelease(1, 7, "paper", "1" * 64, "2" * 64),))


def test_attack_by_equivocation(exchange: Exchange) -> None:
    """Two histories: another release with this number, or a neighbour that does not fit."""
    bundle = later(exchange)
    digest = digest_of(bundle.answer.release)
    same, before, after = (
        SeenRelease(1, 5, "condensed", digest, OTHER_DIGEST),
        SeenRelease(1, 4, "condensed", OTHER_DIGEST, "2" * 64),
        SeenRelease(1, 6, "paper", "1" * 64, digest),
    )
    bundle.verify(seen=(before, same, after))
    for other in (
        dataclasses.replace(same, digest="1" * 64),
        dataclasses.replace(before, digest="1" * 64),
        dataclasses.replace(after, prev="1" * 64),
        dataclasses.replace(same, digest="1" * 64, form="paper"),
    ):
        with pytest.raises(EquivocationError):
            bundle.verify(seen=(other,))


def after_rotation(exchange: Exchange, seq: int = 2, prev: str = OTHER_DIGEST) -> Exchange:
    """The collective goes on with a new key."""
    changes: dict[str, object] = {"signer": NEW_COLLECTIVE.keyid, "key_epoch": 2, "seq": seq, "prev": prev}
    release = resigned(exchange.answer.release, NEW_COLLECTIVE, **changes)
    grant = resigned(exchange.granted(release), NEW_COLLECTIVE, signer=NEW_COLLECTIVE.keyid)
    return exchange.with_answer(release=release, grant=grant)


def test_numbers_count_anew_with_every_key(exchange: Exchange) -> None:
    """Whatever a thief signed with the old key, a new one goes on: neither its numbers nor its history bind."""
    bundle = after_rotation(exchange)
    for seen in (
        SeenRelease(1, 2**31, "condensed", "1" * 64, "2" * 64),
        SeenRelease(1, 2, "condensed", "1" * 64, "2" * 64),
        SeenRelease(1, 1, "condensed", "1" * 64, "2" * 64),
        SeenRelease(1, 3, "paper", "1" * 64, "2" * 64),
    ):
        bundle.verify(seen=(seen,), trust=ROTATED_TRUST)
        # Under one key, each of these is a refusal.
        with pytest.raises((RollbackError, EquivocationError)):
            bundle.verify(seen=(dataclasses.replace(seen, key_epoch=2),), trust=ROTATED_TRUST)


def test_attack_by_rollback_across_keys(exchange: Exchange) -> None:
    """To an earlier key's release, even if the trust store that revoked that key has not arrived here again."""
    seen = (SeenRelease(2, 2, "condensed", "1" * 64, "2" * 64),)
    bundle = later(exchange, seq=9)
    bundle.verify()
    with pytest.raises(RollbackError):
        bundle.verify(seen=seen)
    with pytest.raises(RevokedKeyError):
        bundle.verify(seen=seen, trust=ROTATED_TRUST)


def test_attack_with_a_revoked_key(exchange: Exchange) -> None:
    revoked = TRUST.without_key(COLLECTIVE.keyid, "compromised")
    exchange.verify()
    for trust in (revoked, ROTATED_TRUST):
        with pytest.raises(RevokedKeyError, match="revoked"):
            exchange.verify(trust=trust)
    after_rotation(exchange).verify(trust=ROTATED_TRUST)
    # The new key with the old epoch, and the old epoch's release under the new key's grant.
    mixed = resigned(exchange.answer.grant, NEW_COLLECTIVE, signer=NEW_COLLECTIVE.keyid)
    with pytest.raises(RevokedKeyError):
        exchange.with_answer(grant=mixed).verify(trust=ROTATED_TRUST)
    wrong_epoch = resigned(after_rotation(exchange).answer.release, NEW_COLLECTIVE, key_epoch=1)
    with pytest.raises(UnknownKeyError, match="current key"):
        after_rotation(exchange).with_answer(release=wrong_epoch).verify(trust=ROTATED_TRUST)


def test_attack_with_a_release_that_was_withdrawn(exchange: Exchange) -> None:
    digest = digest_of(exchange.answer.release)
    for withdrawn in (frozenset(), frozenset({OTHER_DIGEST})):
        exchange.verify(expectation=dataclasses.replace(exchange.expectation, withdrawn=withdrawn))
    with pytest.raises(ExpiredError, match="withdrawn"):
        exchange.verify(
            expectation=dataclasses.replace(exchange.expectation, withdrawn=frozenset({digest, OTHER_DIGEST}))
        )


def test_attack_with_a_fisher_diagonal_that_the_policy_refuses(exchange: Exchange) -> None:
    fisher = learngene(samples=128).fisher
    with pytest.raises(PolicyDeniedError, match="128 samples"):
        exchange.with_release(resigned(exchange.answer.release, COLLECTIVE, fisher=fisher)).verify()


def test_attack_with_a_classifier_on_board(exchange: Exchange) -> None:
    tensors = {**learngene().tensors, "classifier.weight": np.zeros((5, 6), np.float32)}
    described = opened(Release, exchange.answer.release).tensors
    extra = payloads.TensorDescription(name="classifier.weight", role="weight", dtype="float32", shape=(5, 6))
    release = resigned(exchange.answer.release, COLLECTIVE, tensors=(*described, extra))
    bundle = exchange.with_release(release)
    with pytest.raises(PolicyDeniedError):
        bundle.verify()
    with pytest.raises(MalformedError, match="its architecture makes"):
        exchange.with_plaintext(blob.encode(tensors)).verify()


def test_attack_with_a_blob_larger_than_the_policy_allows(exchange: Exchange) -> None:
    with pytest.raises(TooLargeError):
        exchange.verify(policy=INDIVIDUAL_POLICY.model_copy(update={"largest_blob": 100}))


def test_attack_with_a_truncated_extended_or_swapped_blob(exchange: Exchange) -> None:
    data = exchange.answer.blob
    for other in (b"", data[:-1], data + b"\0", bytes(len(data)), blob.encode(learngene().tensors)):
        with pytest.raises(DigestMismatchError):
            exchange.with_answer(blob=other).verify()


def test_a_block_is_said_in_one_way_only(exchange: Exchange) -> None:
    """A field is never left out for its default: what says the same has the same bytes."""
    release = opened(Release, exchange.answer.release)
    blocks = tuple(block.model_copy(update={"norm": "group"}) for block in release.architecture.blocks)
    grouped = release.model_copy(update={"architecture": release.architecture.model_copy(update={"blocks": blocks})})
    said = payloads.encode(grouped)
    assert said.count(b'"norm":"group"') == len(blocks)
    assert payloads.decode(Release, said) == grouped
    assert b'"norm":"batch",' in payloads.encode(release)
    with pytest.raises(MalformedError, match="does not fit its schema"):
        payloads.decode(Release, payloads.encode(release).replace(b'"norm":"batch",', b"", 1))


def test_attack_with_a_plaintext_that_was_not_signed(exchange: Exchange) -> None:
    content = opened(Release, exchange.answer.release).plaintext.model_copy(update={"sha256": OTHER_DIGEST})
    with pytest.raises(DigestMismatchError):
        exchange.with_release(resigned(exchange.answer.release, COLLECTIVE, plaintext=content)).verify()


@pytest.mark.parametrize(
    ("missing", "stops_the_insider", "stops_the_outsider"),
    [
        ((), "the blob is not the one", "the blob is not the one"),
        (("the blob",), "the opened blob is not the one", "does not open"),
        (("the opened blob",), "the blob is not the one", "the blob is not the one"),
        (("the blob", "the opened blob"), None, "does not open"),
    ],
)
def test_attack_by_an_insider_who_has_the_content_key(
    exchange: Exchange,
    monkeypatch: pytest.MonkeyPatch,
    missing: tuple[str, ...],
    stops_the_insider: str | None,
    stops_the_outsider: str,
) -> None:
    """Every audience of a release has its content key, so that one of them and the relay can seal other weights for
    another. GCM accepts them, and HPKE binds only what the release says of the ciphertext: the two signed digests alone
    stop that, either of them without the other. Whoever has no content key is stopped by GCM as well."""
    check = verification._check_content

    def but_for_those_missing(data: bytes, content: payloads.Content, what: str) -> None:
        if what not in missing:
            check(data, content, what)

    theirs = sealing.encrypt(CONTENT_KEY, blob.encode(learngene(seed=1).tensors))
    assert len(theirs) == len(exchange.answer.blob)
    monkeypatch.setattr(verification, "_check_content", but_for_those_missing)
    with pytest.raises(DigestMismatchError, match=stops_the_outsider):
        exchange.with_answer(blob=flipped(exchange.answer.blob, 999)).verify()
    by_insider = exchange.with_answer(blob=theirs)
    if stops_the_insider is None:
        arrived = by_insider.verify().learngene.tensors
        for name, array in learngene(seed=1).tensors.items():
            np.testing.assert_array_equal(arrived[name], array)
    else:
        with pytest.raises(DigestMismatchError, match=stops_the_insider):
            by_insider.verify()
    exchange.verify()


def test_attack_with_a_header_that_is_not_canonical(exchange: Exchange) -> None:
    """As long as the canonical one, signed and with the right digest, but with two names in the wrong order."""
    data = blob.encode(learngene().tensors)
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    for other in (
        header.replace(b'"F32"', b'"I32"', 1),
        header.replace(b'"input.mean"', b'"input.maen"', 1),
        header.replace(b'"shape":[4,3,3,3]', b'"shape":[3,4,3,3]', 1),
        b" " + header[:-1] if header.endswith(b" ") else header[:-1] + b" ",
    ):
        assert other != header
        assert len(other) == length
        with pytest.raises(MalformedError):
            exchange.with_plaintext(data[:8] + other + data[8 + length :]).verify()


def poisoned(name: str, value: float) -> bytes:
    tensors = {key: array.copy() for key, array in learngene().tensors.items()}
    tensors[name].reshape(-1)[-1] = value
    return blob.encode(tensors)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block.0.conv.weight", np.nan),
        ("block.1.norm.bias", np.inf),
        ("input.mean", -np.inf),
        ("fisher.block.0.conv.weight", np.nan),
        ("fisher.block.1.norm.bias", -1e-30),
        ("block.0.norm.running_var", -0.5),
        ("input.std", 0.0),
    ],
)
def test_attack_with_values_that_no_computation_could_have_meant(exchange: Exchange, name: str, value: float) -> None:
    exchange.with_plaintext(poisoned(name, 0.5)).verify()
    with pytest.raises(NonFiniteError, match=name):
        exchange.with_plaintext(poisoned(name, value)).verify()


def test_large_but_finite_values_are_accepted(exchange: Exchange) -> None:
    """Their sum overflows float32; each of them does not."""
    tensors = {key: array.copy() for key, array in learngene().tensors.items()}
    tensors["block.0.conv.weight"][...] = 3e38
    exchange.with_plaintext(blob.encode(tensors)).verify()


def test_the_order_of_the_checks_is_the_fixed_one(exchange: Exchange) -> None:
    """Every earlier fault is added to the later ones; the earliest is always the one that is named."""
    good = exchange.answer
    # From the last step to the first: each step's own fault on top of all the faults behind it.
    bad_values = poisoned("input.std", 0.0)
    bad_header = bad_values.replace(b'"F32"', b'"I32"', 1)
    ciphertext = sealing.encrypt(CONTENT_KEY, bad_header)
    in_release: dict[str, object] = {}
    in_grant: dict[str, object] = {}
    in_call: dict[str, object] = {}

    def made(**key: bytes) -> tuple[bytes, bytes]:
        release = resigned(good.release, COLLECTIVE, **in_release)
        return release, exchange.granted(release, **key, **in_grant)  # type: ignore[arg-type]

    def attempt(expected: type[LearngeneError], release: bytes, grant: bytes, data: bytes) -> None:
        with pytest.raises(expected):
            dataclasses.replace(exchange, answer=Answer(release, grant, data)).verify(**in_call)

    with pytest.raises(NonFiniteError):
        exchange.with_plaintext(bad_values).verify()
    with pytest.raises(MalformedError, match="header"):
        exchange.with_plaintext(bad_header).verify()
    in_release |= {
        "plaintext": content_of(bad_header).model_copy(update={"sha256": OTHER_DIGEST}),
        "ciphertext": content_of(ciphertext),
    }
    attempt(DigestMismatchError, *made(), ciphertext)
    with pytest.raises(DigestMismatchError, match="the opened blob"):
        exchange.with_answer(release=made()[0], grant=made()[1], blob=ciphertext).verify()
    release, grant = made(content_key=b"x" * 32)
    with pytest.raises(DigestMismatchError, match="does not open"):
        exchange.with_answer(release=release, grant=grant, blob=ciphertext).verify()
    in_grant["sealed_key"] = "ab" * 80
    attempt(WrongAudienceError, *made(), ciphertext)
    longer = ciphertext + b"\0"
    attempt(DigestMismatchError, *made(), longer)
    in_release["fisher"] = learngene(samples=8).fisher
    attempt(PolicyDeniedError, *made(), longer)
    in_call["seen"] = (SeenRelease(1, 1, "condensed", OTHER_DIGEST, "0" * 64),)
    attempt(EquivocationError, *made(), longer)
    in_call["now"] = NOW + 2 * LIFE
    attempt(ExpiredError, *made(), longer)
    in_grant["request"] = OTHER_DIGEST
    attempt(WrongAudienceError, *made(), longer)
    in_release["run_id"] = OTHER_RUN
    attempt(WrongRunError, *made(), longer)
    in_grant["audience"] = OTHER_INDIVIDUAL.keyid
    attempt(WrongAudienceError, *made(), longer)
    in_grant["release"] = OTHER_DIGEST
    attempt(DigestMismatchError, *made(), longer)
    release, grant = made()
    body = envelope.parse(release).payload.replace(b'"v":1', b'"v":3')
    wrong_schema = signed_raw(payloads.PAYLOAD_TYPES["release"], body, COLLECTIVE)
    attempt(MalformedError, wrong_schema, grant, longer)
    unsigned = envelope.encode(dataclasses.replace(envelope.parse(wrong_schema), signature=bytes(64)))
    attempt(BadSignatureError, unsigned, grant, longer)
    unknown = envelope.encode(dataclasses.replace(envelope.parse(unsigned), keyid=STRANGER.keyid))
    attempt(UnknownKeyError, unknown, grant, longer)
    attempt(MalformedError, unknown + b" ", grant, longer)
    attempt(TooLargeError, unknown + b" " * envelope.MAX_BYTES, grant, longer)


# Requests, receipts and aborts.


def verify_a_request(data: bytes, **changes: object) -> VerifiedRequest:
    arguments: dict[str, Any] = {
        "trust": TRUST,
        "run_id": RUN,
        "audience": COLLECTIVE.keyid,
        "known": lambda keyid, nonce: None,
        "now": NOW,
    }
    return verify_request(data, **(arguments | changes))


def test_an_honest_request_is_accepted(exchange: Exchange) -> None:
    verified = verify_a_request(exchange.request)
    assert verified.payload.form == "condensed"
    assert verified.key.party == "individual-1"
    assert verified.digest == digest_of(exchange.request)
    again = verify_a_request(exchange.request, known=lambda keyid, nonce: verified.digest)
    assert again.digest == verified.digest


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (TooLargeError, lambda data: data + b" " * envelope.MAX_BYTES),
        (MalformedError, lambda data: data[:-1]),
        (UnknownKeyError, lambda data: resigned(data, STRANGER, signer=STRANGER.keyid)),
        (UnknownKeyError, lambda data: resigned(data, COLLECTIVE, signer=COLLECTIVE.keyid)),
        (
            BadSignatureError,
            lambda data: data.replace(envelope.parse(data).keyid.encode(), OTHER_INDIVIDUAL.keyid.encode()),
        ),
        (WrongAudienceError, lambda data: resigned(data, INDIVIDUAL, audience=OTHER_INDIVIDUAL.keyid)),
        (WrongRunError, lambda data: resigned(data, INDIVIDUAL, run_id=OTHER_RUN)),
        (ExpiredError, lambda data: resigned(data, INDIVIDUAL, issued_at=NOW + SKEW + 1, expires_at=NOW + LIFE)),
        (ExpiredError, lambda data: resigned(data, INDIVIDUAL, issued_at=0, expires_at=NOW - SKEW - 1)),
        (ExpiredError, lambda data: resigned(data, INDIVIDUAL, expires_at=NOW + LIFE + 1)),
    ],
)
def test_attack_on_a_request(exchange: Exchange, error: type[LearngeneError], change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(error):
        verify_a_request(change(exchange.request))


def test_attack_with_a_nonce_used_before(exchange: Exchange) -> None:
    with pytest.raises(EquivocationError, match="nonce"):
        verify_a_request(exchange.request, known=lambda keyid, nonce: OTHER_DIGEST)


def test_attack_with_an_unpadded_request(exchange: Exchange) -> None:
    body = envelope.parse(exchange.request).payload.replace(b'"pad":"00', b'"pad":"')
    with pytest.raises(MalformedError, match="512"):
        verify_a_request(signed_raw(payloads.PAYLOAD_TYPES["request"], body, INDIVIDUAL))


def test_a_receipt_is_bound_to_run_and_audience() -> None:
    receipt = make_receipt(run_id=RUN, release=OTHER_DIGEST, audience=COLLECTIVE.keyid, key=INDIVIDUAL, now=NOW)
    here: dict[str, Any] = {"trust": TRUST, "run_id": RUN, "audience": COLLECTIVE.keyid, "now": NOW}
    verified = verify_receipt(receipt, **here)
    assert (verified.payload.release, verified.payload.status) == (OTHER_DIGEST, "committed")
    for error, changes in (
        (WrongRunError, {"run_id": OTHER_RUN}),
        (WrongAudienceError, {"audience": STRANGER.keyid}),
        (ExpiredError, {"now": NOW + LIFE + SKEW + 1}),
        (UnknownKeyError, {"trust": NO_TRUST}),
    ):
        with pytest.raises(error):
            verify_receipt(receipt, **(here | changes))
    request = make_request(
        run_id=RUN,
        audience=COLLECTIVE.keyid,
        form="paper",
        key=INDIVIDUAL,
        encryption=ENCRYPTION,
        now=NOW,
        nonce=bytes(16),
    )
    with pytest.raises(MalformedError, match="not the expected receipt"):
        verify_receipt(request, **here)


def test_an_abort_comes_from_the_role_that_is_expected() -> None:
    abort = make_abort(
        run_id=RUN, audience=INDIVIDUAL.keyid, code="policy_denied", subject=OTHER_DIGEST, key=COLLECTIVE, now=NOW
    )
    here: dict[str, Any] = {"trust": TRUST, "run_id": RUN, "audience": INDIVIDUAL.keyid, "now": NOW}
    verified = verify_abort(abort, role="collective", **here)
    assert (verified.payload.code, verified.payload.subject) == ("policy_denied", OTHER_DIGEST)
    with pytest.raises(UnknownKeyError):
        verify_abort(abort, role="individual", **here)
    with pytest.raises(WrongRunError):
        verify_abort(abort, role="collective", **(here | {"run_id": OTHER_RUN}))


def test_every_refusal_has_its_own_abort_code() -> None:
    codes = set(Abort.model_fields["code"].annotation.__args__)  # type: ignore[union-attr]
    refusals = {error.code for error in RefusedError.__subclasses__()} | {RefusedError.code}
    assert refusals | {"stopped", "withdrawn"} == codes
    assert len({error.code for error in RefusedError.__subclasses__()}) == len(RefusedError.__subclasses__())


# Verified objects.


def test_verified_objects_are_made_by_verification_only(exchange: Exchange) -> None:
    verified = exchange.verify()
    fields = {field.name: getattr(verified, field.name) for field in dataclasses.fields(verified)}
    for proof in (None, object(), verified):
        with pytest.raises(TypeError, match=r"^only "):
            VerifiedLearngene(**fields, proof=proof)
    with pytest.raises(TypeError):
        VerifiedLearngene(**fields)
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(verified, learngene=learngene())
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(verified.sealed, ciphertext=b"another")
    with pytest.raises(dataclasses.FrozenInstanceError):
        verified.sealed = verified.sealed  # type: ignore[misc]
    sealed = {field.name: getattr(verified.sealed, field.name) for field in dataclasses.fields(verified.sealed)}
    with pytest.raises(TypeError, match=r"^only "):
        SealedLearngene(**sealed, proof=None)
    request = verify_a_request(exchange.request)
    with pytest.raises(TypeError, match=r"^only "):
        VerifiedRequest(payload=request.payload, digest=request.digest, key=request.key, proof=None)
    with pytest.raises(TypeError):
        VerifiedEnvelopes(release=verified.release)  # type: ignore[call-arg]


def test_what_was_committed_is_read_back_only_with_its_digests(exchange: Exchange) -> None:
    release, grant, data = exchange.answer
    digests = {"release_digest": digest_of(release), "grant_digest": digest_of(grant)}
    sealed = verify_committed(release, grant, data, **digests)
    assert open_sealed(sealed, ENCRYPTION).learngene.architecture == architecture()
    for one, two, three in ((grant, grant, data), (release, release, data), (release, grant, flipped(data, 9000))):
        with pytest.raises(DigestMismatchError):
            verify_committed(one, two, three, **digests)


def test_verification_does_not_change_what_it_is_given(exchange: Exchange) -> None:
    before = copy.deepcopy(exchange.answer)
    exchange.verify()
    assert exchange.answer == before
    assert opened(Grant, exchange.answer.grant).request == digest_of(exchange.request)
    assert opened(Request, exchange.request).audience == COLLECTIVE.keyid
