"""The bundle file: one encoding, refused in every other; what is read from it is believed only once it is verified."""

import dataclasses
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.digest import digest_of
from protocol.errors import (
    BadSignatureError,
    DigestMismatchError,
    ExpiredError,
    InputError,
    MalformedError,
    PolicyDeniedError,
    RefusedError,
    RevokedKeyError,
    RollbackError,
    TooLargeError,
    UnknownKeyError,
    WrongAudienceError,
    WrongRunError,
)
from protocol.exchange.expectation import Holder
from protocol.exchange.verification import SealedLearngene, open_sealed, verify_file
from protocol.messages import bundle_file, envelope
from protocol.messages.bundle_file import MAGIC, BundleFile, decode, encode
from protocol.messages.payloads import LIFE, SKEW
from tests.protocol.parties import (
    COLLECTIVE,
    CONTENT_KEY,
    ENCRYPTION,
    INDIVIDUAL,
    INDIVIDUAL_POLICY,
    NO_TRUST,
    NOW,
    OTHER_ENCRYPTION,
    OTHER_INDIVIDUAL,
    OTHER_RUN,
    RUN,
    STRANGER,
    TRUST,
    Exchange,
    Site,
    learngene,
)

LATE = NOW + LIFE + SKEW + 1
HEADER = struct.Struct("<8sI3Q")
PART = st.binary(min_size=1, max_size=60)


def verified(bundle: BundleFile, *, now: int = NOW, **changes: object) -> SealedLearngene:
    """``verify_file`` as somebody calls it who has nothing but a trust store."""
    arguments: dict[str, object] = {"holder": Holder(), "trust": TRUST, "policy": INDIVIDUAL_POLICY, "now": now}
    return verify_file(*bundle, **(arguments | changes))  # type: ignore[arg-type]


@given(PART, PART, PART)
def test_what_is_written_is_read_and_has_one_encoding(release: bytes, grant: bytes, blob: bytes) -> None:
    bundle = BundleFile(release, grant, blob)
    data = encode(bundle)
    assert decode(data) == bundle
    assert encode(decode(data)) == data
    assert len(data) == HEADER.size + len(release) + len(grant) + len(blob)


@given(PART, PART, PART, st.data())
def test_a_file_cut_short_or_with_more_behind_it_is_refused(
    release: bytes, grant: bytes, blob: bytes, data: st.DataObject
) -> None:
    whole = encode(BundleFile(release, grant, blob))
    with pytest.raises(MalformedError):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(MalformedError, match="its header says"):
        decode(whole + data.draw(PART))


def header(*, magic: bytes = MAGIC, version: int = 1, lengths: tuple[int, int, int] = (1, 1, 1)) -> bytes:
    return HEADER.pack(magic, version, *lengths) + b"rgb"


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", MalformedError, "no bundle file"),
        (b"PK\x03\x04" * 20, MalformedError, "no bundle file"),
        (header(magic=MAGIC.replace(b"\r\n", b"\n") + b"\n"), MalformedError, "no bundle file"),
        (MAGIC, MalformedError, "inside its header"),
        (header(version=2), MalformedError, "version 2"),
        (header(lengths=(0, 1, 2)), MalformedError, "no release"),
        (header(lengths=(envelope.MAX_BYTES + 1, 1, 1)), TooLargeError, "release"),
        (header(lengths=(1, 2**64 - 1, 1)), TooLargeError, "grant"),
        (header(lengths=(1, 1, (1 << 30) + 1)), TooLargeError, "blob"),
        (header(lengths=(1, 1, 2)), MalformedError, "its header says"),
    ],
)
def test_another_container_is_refused(data: bytes, error: type[RefusedError], words: str) -> None:
    assert decode(header()) == BundleFile(b"r", b"g", b"b")
    with pytest.raises(error, match=words):
        decode(data)


def test_what_the_container_cannot_hold_is_not_written() -> None:
    with pytest.raises(ValueError, match="grant"):
        encode(BundleFile(b"r", b"", b"b"))
    with pytest.raises(ValueError, match="release"):
        encode(BundleFile(bytes(envelope.MAX_BYTES + 1), b"g", b"b"))


def test_a_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path, bundle = tmp_path / "one.learngene", BundleFile(b"r", b"g", b"b")
    bundle_file.write(path, bundle)
    assert bundle_file.read(path) == bundle
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="not overwritten"):
        bundle_file.write(path, bundle)
    with pytest.raises(InputError, match="no folder"):
        bundle_file.write(tmp_path / "nowhere" / "one.learngene", bundle)
    with pytest.raises(InputError, match="cannot read"):
        bundle_file.read(tmp_path / "two.learngene")
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(InputError):
            bundle_file.read(tmp_path / name)


def peak(work: Callable[[], object]) -> int:
    """Bytes that Python allocates at most at once while it works."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_file_is_read_once_and_not_copied(tmp_path: Path) -> None:
    path, size = tmp_path / "one.learngene", 8 << 20
    bundle_file.write(path, BundleFile(b"r", b"g", bytes(size)))
    assert size < peak(lambda: bundle_file.read(path)) < size + (1 << 20)
    # The measure sees a copy.
    assert peak(lambda: bundle_file.read(path).blob[1:]) > 2 * size - (1 << 20)


@pytest.mark.parametrize(
    ("start", "error"),
    [
        (b"PK\x03\x04" * 20, MalformedError),
        (HEADER.pack(MAGIC, 2, 1, 1, 64 << 20), MalformedError),
        (HEADER.pack(MAGIC, 1, envelope.MAX_BYTES + 1, 1, 64 << 20), TooLargeError),
        (HEADER.pack(MAGIC, 1, 1, 1, 64 << 20), MalformedError),
        (HEADER.pack(MAGIC, 1, 1, 1, 60 << 20), TooLargeError),
    ],
    ids=["other magic", "version", "release too large", "file shorter than it says", "over the policy's limit"],
)
def test_attack_large_file_is_refused_before_it_is_read(
    tmp_path: Path, start: bytes, error: type[RefusedError]
) -> None:
    """A file of 64 MB with holes, which costs its sender nothing."""
    path = tmp_path / "one.learngene"
    path.write_bytes(start)
    os.truncate(path, 64 << 20)

    def read() -> None:
        with pytest.raises(error):
            bundle_file.read(path, largest_blob=(64 << 20) if error is MalformedError else (1 << 20))

    assert peak(read) < 1 << 20


def test_a_policy_bounds_the_blob_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "one.learngene"
    bundle_file.write(path, BundleFile(b"r", b"g", bytes(1000)))
    assert bundle_file.read(path, largest_blob=1000).blob == bytes(1000)
    with pytest.raises(TooLargeError, match="blob has 1000 bytes, at most 999"):
        bundle_file.read(path, largest_blob=999)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.learngene"
    bundle_file.write(path, BundleFile(b"r", b"g", bytes(1000)))
    status = path.stat()
    with path.open("rb+") as file:
        file.truncate(len(MAGIC) + 500)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", lambda descriptor: status)
        with pytest.raises(MalformedError, match="changed while it was read"):
            bundle_file.read(path)


def test_a_bundle_is_verified_with_nothing_but_the_trust_store(exchange: Exchange) -> None:
    bundle = decode(encode(BundleFile(*exchange.answer)))
    found = verified(bundle)
    assert found.release_digest == digest_of(exchange.answer.release)
    assert found.ciphertext == exchange.answer.blob
    assert verified(bundle, now=NOW + LIFE).release.run_id == RUN


def test_the_content_of_a_file_opens_with_its_audience_s_key_alone(exchange: Exchange) -> None:
    sealed = verified(BundleFile(*exchange.answer))
    opened = open_sealed(sealed, ENCRYPTION)
    for name, array in learngene().tensors.items():
        np.testing.assert_array_equal(opened.learngene.tensors[name], array)
        assert array.tobytes() not in encode(BundleFile(*exchange.answer))
    with pytest.raises(WrongAudienceError):
        open_sealed(sealed, OTHER_ENCRYPTION)


def test_a_bundle_past_its_time_is_refused_where_no_ledger_committed_it(exchange: Exchange) -> None:
    bundle = BundleFile(*exchange.answer)
    with pytest.raises(ExpiredError):
        verified(bundle, now=LATE)
    other = Holder(committed=frozenset({"0" * 64}))
    with pytest.raises(ExpiredError):
        verified(bundle, now=LATE, holder=other)
    known = Holder(committed=frozenset({digest_of(bundle.release)}))
    assert verified(bundle, now=LATE, holder=known).ciphertext == bundle.blob


def test_what_a_ledger_committed_is_not_believed_under_a_key_that_is_no_longer_pinned(exchange: Exchange) -> None:
    bundle = BundleFile(*exchange.answer)
    known = Holder(committed=frozenset({digest_of(bundle.release)}))
    trust = NO_TRUST.with_key(INDIVIDUAL.public_hex, "individual", "individual-1")
    with pytest.raises(UnknownKeyError):
        verified(bundle, holder=known, trust=trust)
    with pytest.raises(RevokedKeyError):
        verified(bundle, holder=known, trust=TRUST.without_key(COLLECTIVE.keyid, "compromised"))
    renewed = trust.with_key(COLLECTIVE.public_hex, "collective", "collective", epoch=2)
    with pytest.raises(UnknownKeyError, match=r"as epoch 1, the trust store as epoch 2; .*trust add --epoch 1"):
        verified(bundle, holder=known, trust=renewed)


def test_a_bundle_for_another_party_or_run_is_refused(exchange: Exchange) -> None:
    bundle = BundleFile(*exchange.answer)
    with pytest.raises(WrongAudienceError):
        verified(bundle, holder=Holder(audience=OTHER_INDIVIDUAL.keyid))
    with pytest.raises(WrongRunError):
        verified(bundle, holder=Holder(run_id=OTHER_RUN))
    nobody = NO_TRUST.with_key(COLLECTIVE.public_hex, "collective", "collective")
    for trust in (
        nobody,
        nobody.with_key(STRANGER.public_hex, "individual", "individual-1"),
        nobody.with_key(INDIVIDUAL.public_hex, "collective", "individual-1"),
    ):
        with pytest.raises(WrongAudienceError, match="trust store"):
            verified(bundle, trust=trust)


def test_parts_of_two_bundles_are_refused(exchange: Exchange, here: Site, there: Site) -> None:
    collective = here.collective()
    collective.publish(learngene(seed=1), NOW, b"2" * 32)
    other = collective.answer_request(there.individual().request("condensed", NOW, b"p" * 16), NOW)
    mine = BundleFile(*exchange.answer)
    with pytest.raises(DigestMismatchError, match="another release"):
        verified(mine._replace(grant=other.grant))
    with pytest.raises(DigestMismatchError, match="not the one"):
        verified(mine._replace(blob=other.blob))


@pytest.mark.parametrize("part", ["release", "grant", "blob"])
def test_no_flipped_bit_of_a_file_is_accepted(exchange: Exchange, part: str) -> None:
    bundle = BundleFile(*exchange.answer)
    whole: bytes = getattr(bundle, part)
    for position in range(0, len(whole), max(1, len(whole) // 60)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        with pytest.raises(RefusedError):
            verified(bundle._replace(**{part: bytes(changed)}))


def test_a_signature_of_another_collective_is_refused(exchange: Exchange) -> None:
    opened = envelope.parse(exchange.answer.release)
    forged = dataclasses.replace(opened, signature=bytes(64))
    with pytest.raises(BadSignatureError):
        verified(BundleFile(*exchange.answer)._replace(release=envelope.encode(forged)))


def test_the_individual_s_endpoint_packs_what_it_committed_and_verifies_it_later(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    assert individual.bundle("condensed") is None
    collective.publish(learngene(), NOW, CONTENT_KEY)
    answer = collective.answer_request(individual.request("condensed", NOW, b"n" * 16), NOW)
    arrived = BundleFile(*answer)
    individual.inherit(*answer, NOW)
    packed = there.individual().bundle("condensed")
    assert packed == arrived
    assert there.individual().verify_file(decode(encode(packed)), LATE).sealed.ciphertext == answer.blob
    with pytest.raises(WrongAudienceError):
        there.individual(key=OTHER_INDIVIDUAL).verify_file(packed, NOW)


def test_a_file_that_was_never_inherited_expires(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    collective.publish(learngene(), NOW, CONTENT_KEY)
    answer = collective.answer_request(individual.request("condensed", NOW, b"n" * 16), NOW)
    individual.verify_file(BundleFile(*answer), NOW)
    for now in (LATE, NOW):
        with pytest.raises(ExpiredError):
            individual.verify_file(BundleFile(*answer), now)


def test_an_older_file_that_the_ledger_never_committed_is_a_rollback(here: Site, there: Site, tmp_path: Path) -> None:
    collective, individual = here.collective(), there.individual()
    collective.publish(learngene(), NOW, CONTENT_KEY)
    elsewhere = Site(tmp_path / "elsewhere")
    old = collective.answer_request(elsewhere.individual().request("condensed", NOW, b"e" * 16), NOW)
    collective.publish(learngene(seed=1), NOW, b"2" * 32)
    individual.inherit(*collective.answer_request(individual.request("condensed", NOW, b"n" * 16), NOW), NOW)
    with pytest.raises(RollbackError):
        individual.verify_file(BundleFile(*old), NOW)
    for ledger in elsewhere.opened:
        ledger.close()


def test_a_fisher_diagonal_from_few_samples_is_refused_from_a_file_too(exchange: Exchange) -> None:
    strict = INDIVIDUAL_POLICY.model_copy(update={"minimum_fisher_samples": 4096})
    with pytest.raises(PolicyDeniedError):
        verified(BundleFile(*exchange.answer), policy=strict)
