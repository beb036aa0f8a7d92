"""No flipped bit gets through: all bits of the envelopes, random ones of the blob and of the learngene inside it.

Each step that reads a blob sees 100,000 flips at every test run. The whole verification sees a sample of them, and all
100,000 by `pytest -m exhaustive tests/protocol/exchange/test_bit_flips.py` (about a minute).
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from protocol.encoding import blob
from protocol.errors import BadSignatureError, DigestMismatchError, MalformedError, RefusedError, UnknownKeyError
from protocol.exchange.collective_endpoint import Answer
from protocol.exchange.verification import (
    SealedLearngene,
    VerifiedEnvelopes,
    decrypt,
    verify_ciphertext,
    verify_envelopes,
    verify_plaintext,
)
from protocol.messages import sealing
from tests.protocol.parties import (
    CONTENT_KEY,
    ENCRYPTION,
    INDIVIDUAL_POLICY,
    NOW,
    TRUST,
    Exchange,
    flipped,
    learngene,
)

FLIPS = 100_000


def envelopes_of(exchange: Exchange) -> VerifiedEnvelopes:
    release, grant, _ = exchange.answer
    return verify_envelopes(
        release,
        grant,
        expectation=exchange.expectation,
        seen=(),
        trust=TRUST,
        policy=INDIVIDUAL_POLICY,
        now=NOW,
    )


def sealed_of(exchange: Exchange) -> SealedLearngene:
    return verify_ciphertext(envelopes_of(exchange), exchange.answer.blob)


def bits(data: bytes, count: int = FLIPS) -> Iterator[int]:
    """So many random bits; the same ones every time."""
    for bit in np.random.default_rng(20).integers(8 * len(data), size=count):
        yield int(bit)


@pytest.mark.parametrize("part", ["release", "grant"])
def test_no_flipped_bit_of_an_envelope_is_accepted(exchange: Exchange, part: str) -> None:
    """Every bit. Nearly all are found by the strict reading or by the signature; an altered key id names no key."""
    envelopes_of(exchange)
    data = getattr(exchange.answer, part)
    refusals = set()
    for bit in range(8 * len(data)):
        with pytest.raises(RefusedError) as refusal:
            envelopes_of(exchange.with_answer(**{part: flipped(data, bit)}))
        refusals.add(refusal.type)
    # Neither is an accident of the other's: each has bits that only it finds.
    assert refusals == {MalformedError, BadSignatureError, UnknownKeyError}
    envelopes_of(exchange)


def test_no_flipped_bit_of_a_blob_is_accepted(exchange: Exchange) -> None:
    envelopes = envelopes_of(exchange)
    data = exchange.answer.blob
    verify_ciphertext(envelopes, data)
    for bit in bits(data):
        with pytest.raises(DigestMismatchError):
            verify_ciphertext(envelopes, flipped(data, bit))
    verify_ciphertext(envelopes, data)


def test_no_flipped_bit_of_a_ciphertext_opens(exchange: Exchange) -> None:
    """The second line: even where nobody had compared the digest, GCM's tag finds every flip."""
    data = exchange.answer.blob
    assert sealing.decrypt(CONTENT_KEY, data) == decrypt(sealed_of(exchange), ENCRYPTION)
    for bit in bits(data):
        with pytest.raises(DigestMismatchError):
            sealing.decrypt(CONTENT_KEY, flipped(data, bit))


def test_no_flipped_bit_of_a_learngene_is_accepted_from_whoever_has_its_key(exchange: Exchange) -> None:
    """Every audience knows the content key, so that any of them can seal an altered learngene that opens without
    complaint. What the collective signed is not that: the ciphertext's digest says so, and the plaintext's as well."""
    sealed = sealed_of(exchange)
    envelopes = envelopes_of(exchange)
    plaintext = blob.encode(learngene().tensors)
    assert sealing.encrypt(CONTENT_KEY, plaintext) == exchange.answer.blob
    verify_plaintext(sealed, plaintext)
    for bit in bits(plaintext):
        altered = flipped(plaintext, bit)
        resealed = sealing.encrypt(CONTENT_KEY, altered)
        assert len(resealed) == len(exchange.answer.blob)
        with pytest.raises(DigestMismatchError, match="the blob is not the one that was signed"):
            verify_ciphertext(envelopes, resealed)
        with pytest.raises(DigestMismatchError, match="the opened blob is not the one that was signed"):
            verify_plaintext(sealed, sealing.decrypt(CONTENT_KEY, resealed))
    verify_plaintext(sealed, plaintext)


@pytest.mark.parametrize("count", [500, pytest.param(FLIPS, marks=pytest.mark.exhaustive)])
def test_no_flipped_bit_of_a_bundle_is_accepted(exchange: Exchange, count: int) -> None:
    """From end to end, as it travels: the three parts as one stretch of bytes."""
    release, grant, data = exchange.answer
    ends = (len(release), len(release) + len(grant))
    whole = release + grant + data
    for bit in bits(whole, count):
        altered = flipped(whole, bit)
        parts = (altered[: ends[0]], altered[ends[0] : ends[1]], altered[ends[1] :])
        with pytest.raises(RefusedError):
            dataclasses.replace(exchange, answer=Answer(*parts)).verify()
    exchange.verify()
