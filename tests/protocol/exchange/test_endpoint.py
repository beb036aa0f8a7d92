"""What holds for both endpoints: an exchange from end to end, a relay that cheats, trust that changes, clocks."""

import contextlib
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from protocol.digest import digest_of
from protocol.encoding import blob as blobs
from protocol.errors import (
    ExpiredError,
    InputError,
    RefusedError,
    RevokedKeyError,
    RollbackError,
    StorageFailedError,
    TooLargeError,
    UnknownKeyError,
)
from protocol.exchange.audit import read_crossings
from protocol.exchange.collective_endpoint import Answer
from protocol.exchange.expectation import Expectation
from protocol.exchange.individual_ledger import State
from protocol.messages import envelope
from protocol.messages.builders import make_abort
from protocol.messages.bundle_file import BundleFile
from protocol.messages.payloads import LIFE, SKEW
from protocol.trust.policy import Policy
from tests.protocol.exchange.two_sites import DIGEST, NONCE, OTHER_NONCE, Changing, everywhere, inherits, kinds
from tests.protocol.parties import (
    COLLECTIVE,
    INDIVIDUAL,
    NEW_COLLECTIVE,
    NOW,
    ROTATED_TRUST,
    RUN,
    STRANGER,
    TRUST,
    Exchange,
    Site,
    content_key,
    learngene,
)


def test_one_exchange_from_end_to_end(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    published = collective.publish(learngene(), NOW, content_key(0))
    request = individual.request("condensed", NOW, NONCE)
    answer = collective.answer_request(request, NOW)
    receipt, inherited = individual.inherit(*answer, NOW)
    accepted = collective.accept_receipt(receipt, NOW)

    assert accepted.key.party == "individual-1"
    assert accepted.payload.release == published.digest == inherited.release_digest
    for name, array in learngene().tensors.items():
        np.testing.assert_array_equal(inherited.learngene.tensors[name], array, strict=True)
    assert here.opened[0].receipts(published.digest) == {INDIVIDUAL.keyid: receipt}  # type: ignore[union-attr]
    assert there.opened[0].state(RUN, "condensed") is State.ACKED  # type: ignore[union-attr]
    again = there.individual().learngene("condensed")
    assert again is not None
    assert again.sealed.ciphertext == answer.blob
    assert individual.learngene("paper") is None


def test_both_sides_record_the_same_crossings(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    collective.publish(learngene(), NOW, content_key(0))
    receipt, _ = individual.inherit(*collective.answer_request(individual.request("condensed", NOW, NONCE), NOW), NOW)
    collective.accept_receipt(receipt, NOW)
    up, down = ("individual-1", "collective"), ("collective", "individual-1")
    expected = [(*up, "request"), (*down, "release"), (*down, "grant"), (*down, "blob"), (*up, "receipt")]
    assert kinds(here) == kinds(there) == expected
    logs = [read_crossings(site.folder / "crossings.jsonl") for site in (here, there)]
    assert [line.digest for line in logs[0]] == [line.digest for line in logs[1]]


def test_two_forms_are_two_releases_of_one_chain(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    condensed = collective.publish(learngene(), NOW, content_key(0))
    paper = collective.publish(learngene(form="paper"), NOW, content_key(8))
    assert (paper.seq, paper.payload.prev) == (2, condensed.digest)
    # The second form first: an individual's view of the chain has gaps, and each form its own newest release.
    for form, nonce in (("paper", NONCE), ("condensed", OTHER_NONCE)):
        answer = collective.answer_request(individual.request(form, NOW, nonce), NOW)  # type: ignore[arg-type]
        assert individual.inherit(*answer, NOW).learngene.release.form == form
    for form in ("paper", "condensed"):
        kept = individual.learngene(form)  # type: ignore[arg-type]
        assert kept is not None
        assert kept.learngene.architecture.form == form


def test_what_is_too_large_is_refused_before_it_is_hashed(
    here: Site, there: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    collective = here.collective()
    collective.publish(learngene(), NOW, content_key(0))
    request = there.individual().request("condensed", NOW, NONCE)
    answer = collective.answer_request(request, NOW)
    assert isinstance(answer, Answer)
    policy = Policy(role="individual", kinds_out=("abort", "receipt", "request"), largest_blob=len(answer.blob))
    individual = there.individual(policy=policy)
    hashed: list[int] = []

    def digest(data: bytes) -> str:
        hashed.append(len(data))
        return DIGEST(data)

    everywhere(monkeypatch, digest)
    long = envelope.MAX_BYTES + 1
    flood = {
        "blob": Answer(answer.release, answer.grant, answer.blob + b"x"),
        "release": Answer(b"x" * long, answer.grant, answer.blob),
        "grant": Answer(answer.release, b"x" * long, answer.blob),
    }
    for kind, bundle in flood.items():
        hashed.clear()
        with pytest.raises(TooLargeError, match=f"a {kind} of"):
            individual.inherit(*bundle, NOW)
        assert max(hashed) <= len(answer.blob)
        assert long not in hashed
        lines = {line.kind: line for line in read_crossings(there.folder / "crossings.jsonl")[-3:]}
        assert {line.decision for line in lines.values()} == {"too_large"}
        assert (lines[kind].digest, lines[kind].bytes) == ("", len(getattr(bundle, kind)))
    for use in (
        lambda: individual.accept_abort(b"x" * long, NOW),
        lambda: collective.answer_request(b"x" * long, NOW),
        lambda: collective.accept_receipt(b"x" * long, NOW),
    ):
        with pytest.raises(TooLargeError):
            use()
    assert long not in hashed
    individual.inherit(*answer, NOW)


def test_a_relay_that_drops_repeats_and_alters_never_brings_a_wrong_state(here: Site, there: Site) -> None:
    """Seeded schedules over three releases: whatever arrives, what is inherited is a release of the collective, the
    numbers only rise, and at last an honest delivery gets through."""
    rng = np.random.default_rng(11)
    collective, individual = here.collective(), there.individual()
    carried: list[Answer] = []
    newest = 0
    for step in range(45):
        if step % 15 == 0:
            collective.publish(learngene(seed=step), NOW, content_key(step))
        request = individual.request("condensed", NOW, rng.bytes(16))
        if rng.random() < 0.5:
            carried.append(collective.answer_request(request, NOW))
        if not carried:
            continue
        parts = [carried[rng.integers(len(carried))][part] for part in range(3)]
        if rng.random() < 0.4:
            victim = rng.integers(3)
            data = bytearray(parts[victim])
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            parts[victim] = bytes(data)
        try:
            inherited = individual.inherit(parts[0], parts[1], parts[2], NOW).learngene
        except RefusedError:
            kept = individual.learngene("condensed")
            assert (0 if kept is None else kept.release.seq) == newest
            continue
        assert inherited.release.seq >= newest
        newest = inherited.release.seq
        assert inherited.sealed.release_bytes in [answer.release for answer in carried]
        assert inherited.sealed.ciphertext in [answer.blob for answer in carried]
    answer = collective.answer_request(individual.request("condensed", NOW, b"z" * 16, fresh=True), NOW)
    assert individual.inherit(*answer, NOW).learngene.release.seq == 3


def test_nothing_leaves_that_cannot_be_recorded(here: Site, there: Site) -> None:
    individual = there.individual()
    os.mkdir(there.folder / "crossings.jsonl")
    with pytest.raises(StorageFailedError, match="nothing is sent"):
        individual.request("condensed", NOW, NONCE)


def test_a_endpoint_needs_the_policy_and_the_pinned_key_of_its_role(here: Site, there: Site) -> None:
    with pytest.raises(InputError, match="policy"):
        here.collective(policy=Policy.for_role("individual"))
    with pytest.raises(InputError, match="policy"):
        there.individual(policy=Policy.for_role("collective"))
    with pytest.raises(InputError, match="own key"):
        here.collective(key=STRANGER)


def test_a_stranger_is_refused(here: Site, tmp_path: Path) -> None:
    collective = here.collective()
    collective.publish(learngene(), NOW, content_key(0))
    with pytest.raises(UnknownKeyError):
        collective.answer_request(
            Site(tmp_path / "stranger").individual(STRANGER).request("condensed", NOW, NONCE), NOW
        )


def test_a_running_endpoint_sees_a_revocation(here: Site, there: Site) -> None:
    trust = Changing(TRUST)
    collective, individual = here.collective(trust=trust), there.individual(trust=trust)
    collective.publish(learngene(), NOW, content_key(0))
    request = individual.request("condensed", NOW, NONCE)
    answer = collective.answer_request(request, NOW)
    receipt, _ = there.individual(trust=trust).inherit(*answer, NOW)

    trust.store = TRUST.without_key(INDIVIDUAL.keyid, "compromised")
    with pytest.raises(RevokedKeyError, match="individual-1 was revoked as compromised"):
        collective.answer_request(request, NOW)
    with pytest.raises(RevokedKeyError):
        collective.accept_receipt(receipt, NOW)
    assert [kind[0] for kind in kinds(here)[-2:]] == ["unverified", "unverified"]

    trust.store = TRUST
    assert collective.answer_request(request, NOW) == answer
    collective.accept_receipt(receipt, NOW)


def test_nothing_is_believed_under_a_trust_store_past_its_time(here: Site, there: Site) -> None:
    trust = Changing(TRUST)
    collective, individual = here.collective(trust=trust), there.individual(trust=trust)
    collective.publish(learngene(), NOW, content_key(0))
    request = individual.request("condensed", NOW, NONCE)
    answer = collective.answer_request(request, NOW)
    receipt, _ = there.individual().inherit(*answer, NOW)
    abort = make_abort(run_id=RUN, audience=INDIVIDUAL.keyid, code="stopped", subject=None, key=COLLECTIVE, now=NOW)

    trust.store = TRUST.with_expiry(NOW - 1)
    for use in (
        lambda: collective.answer_request(request, NOW),
        lambda: collective.accept_receipt(receipt, NOW),
        lambda: individual.accept_abort(abort, NOW),
        lambda: individual.verify_file(BundleFile(*answer), NOW),
    ):
        with pytest.raises(ExpiredError, match="trust store is past its time; get a new version"):
            use()
    # What is committed keeps its receipt; what is new is not looked at.
    assert individual.inherit(*answer, NOW).receipt == receipt
    here.collective().publish(learngene(seed=1), NOW, content_key(1))
    fresh = there.individual().request("condensed", NOW, OTHER_NONCE)
    newer = here.collective().answer_request(fresh, NOW)
    with pytest.raises(ExpiredError, match="trust store"):
        individual.inherit(*newer, NOW)
    assert there.opened[0].state(RUN, "condensed") is State.REQUESTED  # type: ignore[union-attr]

    trust.store = TRUST.with_expiry(NOW)
    collective.accept_receipt(receipt, NOW)
    individual.inherit(*newer, NOW)


# A new key.


def test_nothing_new_is_signed_under_a_trust_store_past_its_time(here: Site, there: Site) -> None:
    trust = Changing(TRUST.with_expiry(NOW))
    collective, individual = here.collective(trust=trust), there.individual(trust=trust)
    first = collective.publish(learngene(), NOW, content_key(0))
    request = individual.request("condensed", NOW, NONCE)
    for use in (
        lambda: collective.publish(learngene(seed=1), NOW + 1, content_key(1)),
        lambda: collective.publish(learngene(), NOW + 1, content_key(1)),
        lambda: collective.release_again(NOW + 1, lambda: content_key(1)),
        lambda: individual.request("condensed", NOW + 1, NONCE),
        lambda: individual.request("paper", NOW + 1, NONCE),
    ):
        with pytest.raises(ExpiredError, match="trust store is past its time"):
            use()
    assert collective.releases() == [first]
    assert there.opened[0].open_requests(RUN) == {digest_of(request): "condensed"}  # type: ignore[union-attr]


def test_recovery_from_a_fast_forward_with_a_stolen_key(here: Site, there: Site, tmp_path: Path) -> None:
    """A thief signs the largest number that there is, so that nothing honest could ever follow. A new key does."""
    trust = Changing(TRUST)
    individual = there.individual(trust=trust)
    honest = here.collective()
    first = honest.publish(learngene(), NOW, content_key(0))
    inherits(honest, individual, NONCE)

    thief = Exchange(
        individual.request("condensed", NOW, b"t" * 16, fresh=True),
        Answer(first.envelope, b"", b""),
        Expectation(RUN, INDIVIDUAL.keyid, {}),
    ).with_plaintext(blobs.encode(learngene(seed=66).tensors), seq=2**31, prev="1" * 64)
    assert individual.inherit(*thief.answer, NOW).learngene.release.seq == 2**31
    honest.publish(learngene(seed=1), NOW, content_key(1))
    stuck = individual.request("condensed", NOW, b"u" * 16, fresh=True)
    with pytest.raises(RollbackError):
        individual.inherit(*honest.answer_request(stuck, NOW), NOW)

    # The root revokes the key and pins the new one; both running nodes read it.
    trust.store = ROTATED_TRUST
    collective = here.collective(NEW_COLLECTIVE, trust=trust)
    # The request that is still open was addressed to the old key: it is made anew, and so is the release.
    request = individual.request("condensed", NOW, b"v" * 16)
    assert request != stuck
    with pytest.raises(ExpiredError, match="former key; publish the learngene again"):
        collective.answer_request(request, NOW)
    third = collective.publish(learngene(seed=1), NOW, content_key(2))
    assert (third.seq, third.payload.key_epoch) == (3, 2)
    answer = collective.answer_request(request, NOW)
    receipt, inherited = individual.inherit(*answer, NOW)
    collective.accept_receipt(receipt, NOW)
    assert inherited.release_digest == third.digest
    # The chain goes on within the new key.
    fourth = collective.publish(learngene(seed=2), NOW, content_key(3))
    assert inherits(collective, individual, b"w" * 16).release_digest == fourth.digest
    # And nothing of the old key comes back: neither the thief's release nor an honest one.
    individual.request("condensed", NOW, b"x" * 16)
    with pytest.raises(RevokedKeyError):
        individual.inherit(*honest.answer_request(stuck, NOW), NOW)
    # The thief's was inherited once and has its receipt; what is newest stays newest.
    assert individual.inherit(*thief.answer, NOW).learngene.release_digest == fourth.digest
    kept = there.individual(trust=trust).learngene("condensed")
    assert kept is not None
    assert kept.release_digest == fourth.digest


def test_what_has_expired_once_is_not_answered_again_by_a_clock_that_is_set_back(
    here: Site, there: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Over a restart, too; every kind of message that a site takes, and its own trust store."""
    collective, individual = here.collective(), there.individual()
    collective.publish(learngene(), NOW, content_key(0))
    answer = collective.answer_request(individual.request("condensed", NOW, NONCE), NOW)
    receipt = individual.inherit(*answer, NOW).receipt
    published = collective.publish(learngene(seed=1), NOW, content_key(1))
    request = there.individual().request("condensed", NOW, OTHER_NONCE)
    second = collective.answer_request(request, NOW)
    assert isinstance(second, Answer)
    abort = make_abort(
        run_id=RUN, audience=INDIVIDUAL.keyid, code="withdrawn", subject=published.digest, key=COLLECTIVE, now=NOW
    )
    # The control: a clock that is merely a little behind says nothing and refuses nothing.
    assert here.collective().answer_request(request, NOW - SKEW) == second
    there.individual().verify_file(BundleFile(*second), NOW - SKEW)
    assert not caplog.records
    late = NOW + LIFE + SKEW + 1
    for endpoint in (here.collective(), there.individual()):
        assert endpoint.time(late) == late
    for attempt in (
        lambda: here.collective().answer_request(request, NOW),
        lambda: here.collective().accept_receipt(receipt, NOW),
        lambda: there.individual().inherit(*second, NOW),
        lambda: there.individual().verify_file(BundleFile(*second), NOW),
        lambda: there.individual().accept_abort(abort, NOW),
    ):
        caplog.clear()
        with pytest.raises(ExpiredError):
            attempt()
        # It is named, with what to do.
        (record,) = caplog.records
        assert "2027-01-15" in record.getMessage()
        assert "clock --forget" in record.getMessage()
    # Where the clock had been wrong, the operator says so.
    for site in (here, there):
        site.set_clock(NOW)
    assert here.collective().answer_request(request, NOW) == second
    there.individual().inherit(*second, NOW)


def test_a_trust_store_that_has_expired_once_stays_so(here: Site) -> None:
    end = TRUST.expires_at
    here.collective().publish(learngene(), NOW, content_key(0))
    for now in (end + SKEW + 1, NOW):
        with pytest.raises(ExpiredError, match="trust store"):
            here.collective().publish(learngene(seed=1), now, content_key(1))


def test_status_and_a_second_message_of_the_same_second_write_nothing(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    collective.publish(learngene(), NOW, content_key(0))
    individual.request("condensed", NOW, NONCE)
    with contextlib.closing(sqlite3.connect(there.folder / "ledger.db")) as observer:

        def version() -> object:
            """Changes whenever another connection has written."""
            return observer.execute("PRAGMA data_version").fetchone()

        before = version()
        individual.request("condensed", NOW, NONCE)
        assert version() == before
        individual.request("condensed", NOW + 1, NONCE)
        assert version() != before
