"""The gate: what the policy does not allow does not leave, and the default is to refuse."""

import numpy as np
import pytest
from pydantic import ValidationError

from protocol.errors import LearngeneError, MalformedError, PolicyDeniedError, TooLargeError
from protocol.exchange.egress import egress
from protocol.learngene.learngene import DifferentialPrivacy
from protocol.messages import envelope, payloads
from protocol.messages.builders import make_abort, make_receipt, make_request
from protocol.messages.payloads import PAYLOAD_TYPES, Release, TensorDescription
from protocol.trust.policy import Policy, check_release
from tests.protocol.parties import (
    COLLECTIVE,
    COLLECTIVE_POLICY,
    ENCRYPTION,
    INDIVIDUAL,
    INDIVIDUAL_POLICY,
    NOW,
    RUN,
    Exchange,
)

RECEIPT = make_receipt(run_id=RUN, release="0" * 64, audience=COLLECTIVE.keyid, key=INDIVIDUAL, now=NOW)
ABORT = make_abort(run_id=RUN, audience=COLLECTIVE.keyid, code="stopped", subject=None, key=INDIVIDUAL, now=NOW)


def release_of(exchange: Exchange) -> Release:
    return payloads.decode(Release, envelope.parse(exchange.answer.release).payload)


def test_each_side_sends_its_own_kinds_and_no_other(exchange: Exchange) -> None:
    for data in (exchange.request, RECEIPT, ABORT):
        assert egress(INDIVIDUAL_POLICY, data) == data
    for data in (exchange.answer.release, exchange.answer.grant, ABORT):
        assert egress(COLLECTIVE_POLICY, data) == data
    for data in (exchange.answer.release, exchange.answer.grant):
        with pytest.raises(PolicyDeniedError):
            egress(INDIVIDUAL_POLICY, data)
    for data in (exchange.request, RECEIPT):
        with pytest.raises(PolicyDeniedError):
            egress(COLLECTIVE_POLICY, data)


def test_a_policy_may_narrow_but_never_widen(exchange: Exchange) -> None:
    with pytest.raises(PolicyDeniedError):
        egress(Policy(role="individual", kinds_out=("receipt",)), exchange.request)
    with pytest.raises(ValidationError, match="never sends: release"):
        Policy(role="individual", kinds_out=("release",))
    with pytest.raises(ValidationError):
        Policy(role="collective", kinds_out=(), minimum_fisher_samples=128)


def test_what_is_not_a_message_does_not_leave() -> None:
    unknown = envelope.Envelope("application/vnd.learngene.picture.v1+json", b"{}", INDIVIDUAL.keyid, bytes(64))
    picture = np.zeros(3072, np.uint8).tobytes()
    for data in (b"", picture, envelope.encode(unknown)):
        for policy in (INDIVIDUAL_POLICY, COLLECTIVE_POLICY):
            with pytest.raises(LearngeneError):
                egress(policy, data)


def test_an_unpadded_or_chatty_payload_does_not_leave() -> None:
    request = make_request(
        run_id=RUN,
        audience=COLLECTIVE.keyid,
        form="paper",
        key=INDIVIDUAL,
        encryption=ENCRYPTION,
        now=NOW,
        nonce=bytes(16),
    )
    body = envelope.parse(request).payload
    for changed in (body.replace(b'"pad":"00', b'"pad":"'), body.replace(b'"pad":"00000', b'"pad":"hello')):
        data = envelope.encode(envelope.Envelope(PAYLOAD_TYPES["request"], changed, INDIVIDUAL.keyid, bytes(64)))
        with pytest.raises(MalformedError):
            egress(INDIVIDUAL_POLICY, data)


def test_a_fisher_diagonal_from_few_samples_neither_leaves_nor_is_accepted(exchange: Exchange) -> None:
    release = release_of(exchange)
    assert release.fisher is not None
    check_release(COLLECTIVE_POLICY, release)
    few = release.model_copy(update={"fisher": release.fisher.model_copy(update={"samples": 1023})})
    for policy in (COLLECTIVE_POLICY, INDIVIDUAL_POLICY):
        with pytest.raises(PolicyDeniedError, match="1023 samples"):
            check_release(policy, few)


PRIVATE = DifferentialPrivacy(
    epsilon_micro=8_000_000, delta_exponent=5, relation="add-or-remove", scope="weights-and-fisher"
)


def test_where_privacy_is_asked_for_a_release_without_enough_of_it_does_not_pass(exchange: Exchange) -> None:
    """On neither side. Positive control: without the demand, each of them passes."""
    release = release_of(exchange)
    for default in (COLLECTIVE_POLICY, INDIVIDUAL_POLICY):
        demands = default.model_copy(update={"largest_epsilon_micro": 8_000_000})
        for stated in (PRIVATE, PRIVATE.model_copy(update={"epsilon_micro": 1, "delta_exponent": 30})):
            check_release(demands, release.model_copy(update={"dp": stated}))
        for lacking, why in (
            (None, "states none"),
            (PRIVATE.model_copy(update={"epsilon_micro": 8_000_001}), "states epsilon 8"),
            (PRIVATE.model_copy(update={"scope": "fisher-given-weights"}), "weights carry no guarantee"),
            (PRIVATE.model_copy(update={"delta_exponent": 4}), r"states delta 1e-4.*at most 1e-5"),
        ):
            short = release.model_copy(update={"dp": lacking})
            check_release(default, short)
            with pytest.raises(PolicyDeniedError, match=why):
                check_release(demands, short)
        stricter = demands.model_copy(update={"smallest_delta_exponent": 6})
        with pytest.raises(PolicyDeniedError, match=r"states delta 1e-5.*at most 1e-6"):
            check_release(stricter, release.model_copy(update={"dp": PRIVATE}))


def test_a_classifier_never_leaves(exchange: Exchange) -> None:
    release = release_of(exchange)
    classifier = TensorDescription(name="classifier.weight", role="weight", dtype="float32", shape=(5, 6))
    with_classifier = release.model_copy(update={"tensors": (*release.tensors, classifier)})
    with pytest.raises(PolicyDeniedError, match=r"classifier\.weight"):
        check_release(COLLECTIVE_POLICY, with_classifier)
    in_its_place = release.model_copy(update={"tensors": (*release.tensors[:-1], classifier)})
    with pytest.raises(PolicyDeniedError, match=r"classifier\.weight"):
        check_release(COLLECTIVE_POLICY, in_its_place)


def test_a_tensor_missing_twice_misshaped_or_out_of_order_does_not_leave(exchange: Exchange) -> None:
    release = release_of(exchange)
    first, second, *rest = release.tensors
    other_shape = first.model_copy(update={"shape": (99,)})
    other_role = first.model_copy(update={"role": "statistic"})
    for tensors in (
        (second, *rest),
        (first, first, second, *rest),
        (second, first, *rest),
        (other_shape, second, *rest),
        (other_role, second, *rest),
    ):
        with pytest.raises(PolicyDeniedError):
            check_release(COLLECTIVE_POLICY, release.model_copy(update={"tensors": tensors}))


def test_a_blob_is_bounded_by_its_architecture_and_by_the_policy(exchange: Exchange) -> None:
    release = release_of(exchange)
    larger = release.plaintext.model_copy(update={"size": release.plaintext.size + 8})
    with pytest.raises(MalformedError, match="architecture"):
        check_release(COLLECTIVE_POLICY, release.model_copy(update={"plaintext": larger}))
    for more in (-1, 1, 8):
        content = release.ciphertext.model_copy(update={"size": release.ciphertext.size + more})
        with pytest.raises(MalformedError, match="ciphertext"):
            check_release(COLLECTIVE_POLICY, release.model_copy(update={"ciphertext": content}))
    # What crosses the wire is bounded: the ciphertext, not what is in it.
    check_release(COLLECTIVE_POLICY.model_copy(update={"largest_blob": release.ciphertext.size}), release)
    narrow = COLLECTIVE_POLICY.model_copy(update={"largest_blob": release.ciphertext.size - 1})
    with pytest.raises(TooLargeError):
        check_release(narrow, release)


def test_a_policy_names_at_least_one_kind_of_encryption_key() -> None:
    assert Policy(role="collective", kinds_out=(), kems=("mlkem768-x25519",)).kems == ("mlkem768-x25519",)
    for kems in ((), ("rsa",), ("x25519", "none")):
        with pytest.raises(ValidationError, match="kems"):
            Policy(role="collective", kinds_out=(), kems=kems)  # type: ignore[arg-type]


def test_the_digest_names_the_policy(exchange: Exchange) -> None:
    assert release_of(exchange).policy_sha256 == COLLECTIVE_POLICY.sha256
    assert COLLECTIVE_POLICY.sha256 == Policy.for_role("collective").sha256
    assert COLLECTIVE_POLICY.sha256 != COLLECTIVE_POLICY.model_copy(update={"largest_blob": 1}).sha256
