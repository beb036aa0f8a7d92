"""Sealing: one ciphertext, a content key for each audience, and neither opens anywhere but where it belongs."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from protocol.digest import digest_of
from protocol.encoding import blob
from protocol.errors import DigestMismatchError, MalformedError, PolicyDeniedError, WrongAudienceError
from protocol.exchange.collective_endpoint import Answer, CollectiveEndpoint
from protocol.exchange.verification import decrypt, verify_plaintext
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.kem import PUBLIC_BYTES
from protocol.messages import envelope, payloads, sealing
from protocol.messages.payloads import Grant, Request
from protocol.trust.policy import Policy
from tests.protocol.parties import (
    COLLECTIVE,
    CONTENT_KEY,
    ENCRYPTION,
    HYBRID_ENCRYPTION,
    INDIVIDUAL,
    NOW,
    OTHER_ENCRYPTION,
    OTHER_INDIVIDUAL,
    OTHER_RUN,
    RUN,
    Exchange,
    Site,
    content_key,
    content_of,
    flipped,
    learngene,
    opened,
    resigned,
)

NONCE = b"n" * 16
DIGEST = "ab" * 32
BOUND = {"run_id": RUN, "request": "1" * 64, "audience": "2" * 64, "ciphertext": "3" * 64}
BOTH = pytest.mark.parametrize("encryption", [ENCRYPTION, HYBRID_ENCRYPTION], ids=lambda key: key.kem)


def request_for(encryption: EncryptionKey) -> Request:
    return Request(
        run_id=RUN,
        signer=INDIVIDUAL.keyid,
        issued_at=NOW,
        expires_at=NOW + 1,
        audience=COLLECTIVE.keyid,
        form="condensed",
        nonce=NONCE.hex(),
        hpke_kem=encryption.kem,
        hpke_public=encryption.public.hex(),
    )


# The blob.


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=100))
def test_a_blob_is_opened_by_its_own_key_only(key: bytes, plaintext: bytes) -> None:
    sealed = sealing.encrypt(key, plaintext)
    assert len(sealed) == len(plaintext) + sealing.OVERHEAD_BYTES
    assert sealing.decrypt(key, sealed) == plaintext
    with pytest.raises(DigestMismatchError):
        sealing.decrypt(flipped(key, 77), sealed)
    with pytest.raises(DigestMismatchError):
        sealing.decrypt(key, sealed[:-1])


def test_a_blob_is_plain_aes_gcm() -> None:
    """What another implementation needs to know to open it: the nonce of zeros, the label, the tag at the end."""
    sealed = sealing.encrypt(CONTENT_KEY, b"a learngene")
    reader = Cipher(algorithms.AES(CONTENT_KEY), modes.GCM(bytes(12), sealed[-16:])).decryptor()
    reader.authenticate_additional_data(b"learngene blob v1")
    assert reader.update(sealed[:-16]) + reader.finalize() == b"a learngene"
    reader = Cipher(algorithms.AES(CONTENT_KEY), modes.GCM(bytes(12), sealed[-16:])).decryptor()
    reader.authenticate_additional_data(b"learngene blob v2")
    reader.update(sealed[:-16])
    with pytest.raises(InvalidTag):
        reader.finalize()


def test_no_flipped_bit_of_a_ciphertext_opens() -> None:
    sealed = sealing.encrypt(CONTENT_KEY, b"a learngene")
    for bit in range(8 * len(sealed)):
        with pytest.raises(DigestMismatchError):
            sealing.decrypt(CONTENT_KEY, flipped(sealed, bit))
    for other in (b"", sealed[:15], sealed[1:], sealed + b"\0"):
        with pytest.raises(DigestMismatchError):
            sealing.decrypt(CONTENT_KEY, other)


# The content key.


@BOTH
def test_a_content_key_is_bound_to_run_request_audience_and_ciphertext(encryption: EncryptionKey) -> None:
    sealed = sealing.seal_content_key(CONTENT_KEY, request_for(encryption), sealing.binding(**BOUND))
    assert sealing.open_content_key(sealed, encryption, sealing.binding(**BOUND)) == CONTENT_KEY
    for name, value in BOUND.items():
        with pytest.raises(WrongAudienceError, match="not sealed to this"):
            sealing.open_content_key(sealed, encryption, sealing.binding(**BOUND | {name: value[::-1] + "0"}))
    # No two of the four can change places either.
    swapped = BOUND | {"request": BOUND["audience"], "audience": BOUND["request"]}
    with pytest.raises(WrongAudienceError):
        sealing.open_content_key(sealed, encryption, sealing.binding(**swapped))


@BOTH
def test_a_content_key_is_opened_by_its_own_audience_only(encryption: EncryptionKey) -> None:
    info = sealing.binding(**BOUND)
    sealed = sealing.seal_content_key(CONTENT_KEY, request_for(encryption), info)
    for other in {ENCRYPTION, OTHER_ENCRYPTION, HYBRID_ENCRYPTION} - {encryption}:
        with pytest.raises(WrongAudienceError):
            sealing.open_content_key(sealed, other, info)
    # Half of the hybrid is not enough: the same X25519 key beside another ML-KEM key.
    if encryption.kem != "x25519":
        half = EncryptionKey.from_raw("mlkem768-x25519", b"H" * 64 + b"h" * 32)
        assert half.public[-32:] == encryption.public[-32:]
        with pytest.raises(WrongAudienceError):
            sealing.open_content_key(sealed, half, info)


@BOTH
def test_two_sealed_keys_have_nothing_in_common(encryption: EncryptionKey) -> None:
    """Sealing draws a fresh ephemeral key, so that nobody sees that two grants hold one content key."""
    info = sealing.binding(**BOUND)
    one, two = (sealing.seal_content_key(CONTENT_KEY, request_for(encryption), info) for _ in range(2))
    assert one != two
    for sealed in (one, two):
        assert CONTENT_KEY.hex() not in sealed
        assert sealing.open_content_key(sealed, encryption, info) == CONTENT_KEY


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_attack_with_a_content_key_of_another_length(exchange: Exchange, size: int) -> None:
    """AES would take sixteen bytes without a word."""
    grant = exchange.granted(exchange.answer.release, content_key=CONTENT_KEY)
    exchange.with_answer(grant=grant).verify()
    with pytest.raises(MalformedError, match="content key"):
        exchange.with_answer(grant=exchange.granted(exchange.answer.release, content_key=bytes(size))).verify()


@BOTH
@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), b"\xff" * 32])
def test_attack_with_an_encryption_key_that_keeps_no_secret(
    here: Site, there: Site, encryption: EncryptionKey, point: bytes
) -> None:
    """A point of small order, or in a second encoding: whoever listens would know what is agreed with it."""
    collective = here.collective()
    collective.publish(learngene(), NOW, CONTENT_KEY)
    request = there.individual(encryption=encryption).request("condensed", NOW, NONCE)
    weak = resigned(request, INDIVIDUAL, hpke_public=(encryption.public[:-32] + point).hex(), nonce="f" * 32)
    assert len(opened(Request, weak).hpke_public) == 2 * PUBLIC_BYTES[encryption.kem]
    with pytest.raises(MalformedError, match="encryption key"):
        collective.answer_request(weak, NOW)
    assert here.opened[0].grant(digest_of(weak)) is None  # type: ignore[union-attr]
    assert isinstance(collective.answer_request(request, NOW), Answer)


# Bundles.


def test_attack_with_a_bundle_read_with_another_key(exchange: Exchange) -> None:
    exchange.verify(key=ENCRYPTION)
    for key in (OTHER_ENCRYPTION, HYBRID_ENCRYPTION):
        with pytest.raises(WrongAudienceError, match="not sealed to this encryption key"):
            exchange.verify(key=key)


def test_attack_with_a_sealed_key_out_of_another_grant(exchange: Exchange) -> None:
    """Each is a genuine sealed key of this collective, to this individual's own encryption key, and fits elsewhere."""
    genuine = opened(Grant, exchange.answer.grant)

    def sealed(**elsewhere: str) -> str:
        bound = {
            "run_id": RUN,
            "request": genuine.request,
            "audience": genuine.audience,
            "ciphertext": content_of(exchange.answer.blob).sha256,
        }
        info = sealing.binding(**bound | elsewhere)
        return sealing.seal_content_key(CONTENT_KEY, opened(Request, exchange.request), info)

    def with_key(sealed_key: str) -> Exchange:
        return exchange.with_answer(grant=resigned(exchange.answer.grant, COLLECTIVE, sealed_key=sealed_key))

    with_key(sealed()).verify()
    for elsewhere in (
        {"run_id": OTHER_RUN},
        {"request": DIGEST},
        {"audience": OTHER_INDIVIDUAL.keyid},
        {"ciphertext": DIGEST},
    ):
        with pytest.raises(WrongAudienceError):
            with_key(sealed(**elsewhere)).verify()
    for nonsense in ("ab" * 80, "ab", sealed()[:-2], sealed() + "00"):
        with pytest.raises(WrongAudienceError):
            with_key(nonsense).verify()


def test_attack_by_granting_one_audience_another_content(exchange: Exchange) -> None:
    """GCM does not commit to its key: a collective could look for a ciphertext that a second key opens as well, to
    something else. The release names one plaintext, and that binds it."""
    sealed = exchange.verify().sealed
    with pytest.raises(DigestMismatchError, match="does not open"):
        exchange.with_answer(grant=exchange.granted(exchange.answer.release, content_key=b"x" * 32)).verify()
    # Past the tag, as such a second key would be: another learngene, in every other way a good one.
    plaintext, other = (blob.encode(learngene(seed).tensors) for seed in (0, 1))
    assert decrypt(sealed, ENCRYPTION) == plaintext
    assert len(other) == len(plaintext)
    verify_plaintext(sealed, plaintext)
    with pytest.raises(DigestMismatchError, match="not the one that was signed"):
        verify_plaintext(sealed, other)
    # And a ciphertext of its own for that audience is not the released one.
    with pytest.raises(DigestMismatchError, match="the blob is not the one"):
        exchange.with_answer(blob=sealing.encrypt(CONTENT_KEY, other)).verify()


# Endpoints.


def granted(collective: CollectiveEndpoint, request: bytes) -> Answer:
    answer = collective.answer_request(request, NOW)
    assert isinstance(answer, Answer)
    return answer


def test_one_blob_serves_every_audience(here: Site, there: Site, tmp_path: Path) -> None:
    collective = here.collective()
    collective.publish(learngene(), NOW, CONTENT_KEY)
    individuals = [
        there.individual(),
        Site(tmp_path / "individual-2").individual(OTHER_INDIVIDUAL, encryption=HYBRID_ENCRYPTION),
    ]
    answers = [granted(collective, individual.request("condensed", NOW, NONCE)) for individual in individuals]
    assert answers[0].blob == answers[1].blob
    assert answers[0].release == answers[1].release
    sealed = [opened(Grant, answer.grant).sealed_key for answer in answers]
    assert len(set(sealed)) == 2
    for individual, own, other in zip(individuals, answers, answers[::-1], strict=True):
        with pytest.raises(WrongAudienceError):
            individual.inherit(*other, NOW)
        individual.inherit(*own, NOW)


def test_the_hybrid_from_end_to_end(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual(encryption=HYBRID_ENCRYPTION)
    collective.publish(learngene(), NOW, CONTENT_KEY)
    request = individual.request("condensed", NOW, NONCE)
    assert len(envelope.parse(request).payload) == payloads.REQUEST_BYTES["mlkem768-x25519"] > payloads.PADDED_BYTES
    answer = granted(collective, request)
    # ML-KEM's ciphertext (1088), X25519's point (32), the content key (32), the tag (16).
    assert len(opened(Grant, answer.grant).sealed_key) == 2 * (1088 + 32 + 32 + 16)
    receipt, inherited = individual.inherit(*answer, NOW)
    collective.accept_receipt(receipt, NOW)
    for name, array in learngene().tensors.items():
        np.testing.assert_array_equal(inherited.learngene.tensors[name], array, strict=True)
    again = there.individual(encryption=HYBRID_ENCRYPTION).learngene("condensed")
    assert again is not None
    assert again.sealed.ciphertext == answer.blob


def test_a_site_may_seal_to_the_hybrid_only(here: Site, there: Site) -> None:
    policy = Policy.for_role("collective").model_copy(update={"kems": ("mlkem768-x25519",)})
    collective = here.collective(policy=policy)
    collective.publish(learngene(), NOW, CONTENT_KEY)
    with pytest.raises(PolicyDeniedError, match="x25519, this site seals to: mlkem768-x25519"):
        collective.answer_request(there.individual().request("condensed", NOW, NONCE), NOW)
    request = there.individual(encryption=HYBRID_ENCRYPTION).request("condensed", NOW, b"o" * 16)
    there.individual(encryption=HYBRID_ENCRYPTION).inherit(*granted(collective, request), NOW)


def test_a_content_key_never_seals_a_second_learngene(here: Site) -> None:
    """With one key and one nonce, the two ciphertexts would give away the difference of the two learngenes."""
    collective = here.collective()
    first = collective.publish(learngene(), NOW, CONTENT_KEY)
    for other in (learngene(seed=1), learngene(form="paper"), learngene(samples=2048)):
        with pytest.raises(ValueError, match="one release only"):
            here.collective().publish(other, NOW, CONTENT_KEY)
    with pytest.raises(ValueError, match="one release only"):
        dataclasses.replace(here, run_id=OTHER_RUN).collective().publish(learngene(seed=1), NOW, CONTENT_KEY)
    assert collective.releases() == [first]
    assert len(list((here.folder / "releases").iterdir())) == 1
    assert collective.publish(learngene(seed=1), NOW, content_key(1)).seq == 2


def test_a_lost_blob_is_sealed_again_to_the_very_same_bytes(here: Site, there: Site) -> None:
    """With the release's own key, whatever fresh one comes along; so that grants that are out still open it."""
    collective = here.collective()
    published = collective.publish(learngene(), NOW, CONTENT_KEY)
    answer = granted(collective, there.individual().request("condensed", NOW, NONCE))
    (path,) = (here.folder / "releases").iterdir()
    path.unlink()
    assert collective.publish(learngene(), NOW, content_key(1)) == published
    assert path.read_bytes() == answer.blob
    there.individual().inherit(*answer, NOW)


def test_neither_what_travels_nor_the_individuals_disk_holds_plaintext(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    collective.publish(learngene(), NOW, CONTENT_KEY)
    request = individual.request("condensed", NOW, NONCE)
    answer = granted(collective, request)
    receipt, inherited = individual.inherit(*answer, NOW)
    pieces = {name: array.tobytes()[:12] for name, array in learngene().tensors.items()}
    plaintext = decrypt(inherited.sealed, ENCRYPTION)
    stored = [path.read_bytes() for path in there.folder.rglob("*") if path.is_file()]
    assert answer.blob in stored
    for name, piece in pieces.items():
        assert piece in plaintext, name
        assert not any(piece in data for data in (request, *answer, receipt, *stored)), name
    secrets = (CONTENT_KEY, CONTENT_KEY.hex().encode())
    assert not any(secret in data for secret in secrets for data in (request, *answer, receipt, *stored))
