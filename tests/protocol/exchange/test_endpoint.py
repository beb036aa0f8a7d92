"""The endpoints: an exchange from end to end, again after a crash at every point, and against a relay that cheats."""

import dataclasses
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.digest import digest_of
from protocol.encoding import blob as blobs
from protocol.errors import (
    DigestMismatchError,
    EquivocationError,
    ExpiredError,
    InputError,
    NonFiniteError,
    PolicyDeniedError,
    RefusedError,
    RevokedKeyError,
    RollbackError,
    StorageFailedError,
    TooLargeError,
    UnknownKeyError,
    WrongAudienceError,
    WrongRunError,
)
from protocol.exchange import collective_endpoint, content_keys
from protocol.exchange.audit import read_crossings
from protocol.exchange.collective_endpoint import Answer, CollectiveEndpoint, Withdrawal
from protocol.exchange.expectation import Expectation
from protocol.exchange.individual_endpoint import IndividualEndpoint
from protocol.exchange.individual_ledger import IndividualLedger, State
from protocol.exchange.verification import VerifiedLearngene
from protocol.keys.signing_key import SigningKey
from protocol.messages import envelope, payloads
from protocol.messages.builders import make_abort, make_receipt, make_request
from protocol.messages.bundle_file import BundleFile
from protocol.messages.payloads import LIFE, SKEW, Grant, Receipt
from protocol.transport.frame import Frame
from protocol.trust.policy import Policy
from protocol.trust.trust_store import TrustStore
from tests.protocol.parties import (
    COLLECTIVE,
    ENCRYPTION,
    INDIVIDUAL,
    NEW_COLLECTIVE,
    NO_TRUST,
    NOW,
    OTHER_ENCRYPTION,
    OTHER_INDIVIDUAL,
    OTHER_RUN,
    ROTATED_TRUST,
    RUN,
    STRANGER,
    TRUST,
    Exchange,
    Site,
    content_key,
    flipped,
    learngene,
    opened,
    resigned,
)

NONCE = b"n" * 16
OTHER_NONCE = b"o" * 16
DIGEST, PARSE = digest_of, envelope.parse


def kinds(site: Site) -> list[tuple[str, str, str]]:
    return [(line.sender, line.receiver, line.kind) for line in read_crossings(site.folder / "crossings.jsonl")]


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


# Resuming: a new endpoint on the same folder is a restarted node.


def test_publishing_the_same_content_after_a_restart_is_the_stored_release(here: Site) -> None:
    first = here.collective().publish(learngene(), NOW, content_key(0))
    again = here.collective().publish(learngene(), NOW + 60, content_key(1))
    assert again == first
    assert len(here.opened[0].releases(RUN)) == 1  # type: ignore[union-attr]


def test_a_restarted_collective_continues_its_chain(here: Site) -> None:
    first = here.collective().publish(learngene(), NOW, content_key(0))
    second = here.collective().publish(learngene(seed=1), NOW, content_key(1))
    assert (second.seq, second.payload.prev) == (2, first.digest)
    # Back to the first content: what is newest has changed, so this is a new release.
    third = here.collective().publish(learngene(), NOW, content_key(2))
    assert (third.seq, third.payload.prev) == (3, second.digest)


def test_other_facts_about_the_same_tensors_are_another_release(here: Site) -> None:
    first = here.collective().publish(learngene(), NOW, content_key(0))
    assert here.collective().publish(learngene(samples=2048), NOW, content_key(9)).seq == 2
    assert first.payload.fisher is not None


def test_a_release_past_its_time_is_published_again(here: Site, there: Site) -> None:
    first = here.collective().publish(learngene(), NOW, content_key(0))
    end = first.payload.expires_at
    request = there.individual().request("condensed", NOW + LIFE, NONCE)
    with pytest.raises(ExpiredError, match="publish the learngene again"):
        here.collective().answer_request(request, end)
    second = here.collective().publish(learngene(), end, content_key(1))
    assert (second.seq, second.payload.prev) == (2, first.digest)
    there.individual().inherit(*here.collective().answer_request(request, end), end)


def test_a_collective_killed_after_publishing_goes_on(here: Site) -> None:
    """A real process, ended without any clean-up right after ``publish`` returned."""
    program = (
        "import os, sys; from pathlib import Path\n"
        "from tests.protocol.parties import Site, content_key, learngene, NOW\n"
        "print(Site(Path(sys.argv[1])).collective().publish(learngene(), NOW, content_key(0)).digest, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program, str(here.folder)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    assert here.collective().publish(learngene(), NOW + 1, content_key(1)).digest == done.stdout.strip()
    assert here.collective().publish(learngene(seed=1), NOW + 1, content_key(2)).payload.prev == done.stdout.strip()


def test_the_same_request_again_has_the_very_same_answer(here: Site, there: Site) -> None:
    collective = here.collective()
    collective.publish(learngene(), NOW, content_key(0))
    request = there.individual().request("condensed", NOW, NONCE)
    answer = collective.answer_request(request, NOW)
    collective.publish(learngene(seed=1), NOW, content_key(1))
    assert here.collective().answer_request(request, NOW + 1000) == answer
    newer = collective.answer_request(there.individual().request("condensed", NOW, OTHER_NONCE, fresh=True), NOW)
    assert newer.release != answer.release


def test_a_restarted_individual_sends_its_open_request_again(there: Site) -> None:
    request = there.individual().request("condensed", NOW, NONCE)
    assert there.individual().request("condensed", NOW + LIFE - 1, OTHER_NONCE) == request
    assert there.individual().request("condensed", NOW + LIFE, OTHER_NONCE) != request


# What is stored and does not hold any more, or not yet: sent again, it would be refused for ever.


def test_a_request_whose_answer_is_past_its_time_is_answered_with_the_newest_release(here: Site, there: Site) -> None:
    """The request is younger than the release that it was granted, so that it still counts when that does not."""
    collective, individual = here.collective(), there.individual()
    first = collective.publish(learngene(), NOW, content_key(0))
    end = first.payload.expires_at
    request = individual.request("condensed", end - 60, NONCE)
    old = collective.answer_request(request, end - 60)
    second = collective.publish(learngene(seed=1), end - 30, content_key(1))
    assert collective.answer_request(request, end - 1) == old
    answer = collective.answer_request(request, end)
    assert isinstance(answer, Answer)
    assert digest_of(answer.release) == second.digest
    assert here.collective().answer_request(request, end + 1) == answer
    receipt, inherited = individual.inherit(*answer, end + 1)
    assert inherited.release_digest == second.digest
    collective.accept_receipt(receipt, end + 1)


def test_a_request_whose_grant_alone_is_past_its_time_is_granted_the_same_release_anew(here: Site, there: Site) -> None:
    """The grant was made while the clock was behind, so that it ends before its release does."""
    collective = here.collective()
    published = collective.publish(learngene(), NOW, content_key(0))
    behind = NOW - SKEW
    request = there.individual().request("condensed", NOW, NONCE)
    here.set_clock(behind)
    old = collective.answer_request(request, behind)
    assert isinstance(old, Answer)
    now = opened(Grant, old.grant).expires_at
    assert now < published.payload.expires_at
    assert collective.answer_request(request, now - 1) == old
    answer = collective.answer_request(request, now)
    assert isinstance(answer, Answer)
    assert (answer.release, opened(Grant, answer.grant).issued_at) == (old.release, now)
    assert collective.answer_request(request, now + 1) == answer


def test_an_open_request_of_a_clock_that_was_ahead_is_made_anew(here: Site, there: Site) -> None:
    collective = here.collective()
    collective.publish(learngene(), NOW, content_key(0))
    early = there.individual().request("condensed", NOW + SKEW + 1, NONCE)
    with pytest.raises(ExpiredError, match="from the future"):
        collective.answer_request(early, NOW)
    there.set_clock(NOW)
    request = there.individual().request("condensed", NOW, OTHER_NONCE)
    assert request != early
    there.individual().inherit(*collective.answer_request(request, NOW), NOW)
    # A little ahead is no matter: everybody allows for it.
    ahead = there.individual().request("condensed", NOW + SKEW, b"p" * 16)
    there.set_clock(NOW)
    assert there.individual().request("condensed", NOW, OTHER_NONCE) == ahead
    assert isinstance(collective.answer_request(ahead, NOW), Answer)


def test_what_was_published_by_a_clock_that_was_ahead_is_published_anew(here: Site, there: Site) -> None:
    collective = here.collective()
    first = collective.publish(learngene(), NOW + SKEW + 1, content_key(0))
    here.set_clock(NOW)
    request = there.individual().request("condensed", NOW, NONCE)
    with pytest.raises(ExpiredError, match="from the future; publish the learngene again"):
        collective.answer_request(request, NOW)
    second = collective.publish(learngene(), NOW, content_key(1))
    assert (second.seq, second.payload.prev, second.payload.issued_at) == (2, first.digest, NOW)
    there.individual().inherit(*collective.answer_request(request, NOW), NOW)
    ahead = collective.publish(learngene(seed=1), NOW + SKEW, content_key(2))
    here.set_clock(NOW)
    assert collective.publish(learngene(seed=1), NOW, content_key(3)) == ahead


def test_an_answer_by_a_clock_that_was_ahead_is_granted_anew(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    published = collective.publish(learngene(), NOW, content_key(0))
    request = individual.request("condensed", NOW, NONCE)
    early = collective.answer_request(request, NOW + SKEW + 1)
    here.set_clock(NOW)
    with pytest.raises(ExpiredError, match="grant is from the future"):
        individual.inherit(*early, NOW)
    answer = collective.answer_request(request, NOW)
    assert isinstance(answer, Answer)
    assert digest_of(answer.release) == published.digest
    assert opened(Grant, answer.grant).issued_at == NOW
    receipt, _ = individual.inherit(*answer, NOW)
    collective.accept_receipt(receipt, NOW)


def test_a_receipt_that_is_past_its_time_is_made_anew_and_the_first_to_arrive_counts(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    published = collective.publish(learngene(), NOW, content_key(0))
    answer = collective.answer_request(individual.request("condensed", NOW, NONCE), NOW)
    lost = individual.inherit(*answer, NOW).receipt
    assert there.individual().inherit(*answer, NOW + LIFE - 1).receipt == lost
    late = NOW + LIFE + SKEW + 1
    with pytest.raises(ExpiredError):
        collective.accept_receipt(lost, late)
    receipt = there.individual().inherit(*answer, late).receipt
    assert receipt != lost
    assert there.individual().inherit(*answer, late + 1).receipt == receipt
    collective.accept_receipt(receipt, late)
    assert here.opened[0].receipts(published.digest) == {INDIVIDUAL.keyid: receipt}  # type: ignore[union-attr]
    # The first that arrived is kept, whatever is made later.
    again = there.individual().inherit(*answer, late + LIFE).receipt
    assert again != receipt
    collective.accept_receipt(again, late + LIFE)
    assert here.opened[0].receipts(published.digest) == {INDIVIDUAL.keyid: receipt}  # type: ignore[union-attr]


def test_a_receipt_of_a_clock_that_was_ahead_is_made_anew(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    collective.publish(learngene(), NOW + 9 * SKEW, content_key(0))
    ahead = NOW + 9 * SKEW
    answer = collective.answer_request(individual.request("condensed", ahead, NONCE), ahead)
    early = individual.inherit(*answer, ahead).receipt
    for site in (here, there):
        site.set_clock(NOW)
    with pytest.raises(ExpiredError):
        collective.accept_receipt(early, NOW)
    collective.accept_receipt(individual.inherit(*answer, NOW).receipt, NOW)


def test_a_receipt_for_a_former_key_of_the_collective_is_made_anew(here: Site, there: Site) -> None:
    trust = Changing(TRUST)
    individual = there.individual(trust=trust)
    collective = here.collective()
    published = collective.publish(learngene(), NOW, content_key(0))
    answer = collective.answer_request(individual.request("condensed", NOW, NONCE), NOW)
    lost = individual.inherit(*answer, NOW).receipt
    trust.store = ROTATED_TRUST
    new = here.collective(NEW_COLLECTIVE, trust=trust)
    with pytest.raises(WrongAudienceError):
        new.accept_receipt(lost, NOW)
    receipt = individual.inherit(*answer, NOW).receipt
    assert new.accept_receipt(receipt, NOW).payload.release == published.digest
    assert opened(Receipt, receipt).audience == NEW_COLLECTIVE.keyid
    assert individual.inherit(*answer, NOW).receipt == receipt


def test_a_late_receipt_for_a_release_whose_grant_was_replaced_is_accepted(here: Site, there: Site) -> None:
    """The individual inherited the first release; its receipt was on its way when that was withdrawn."""
    collective, individual = here.collective(), there.individual()
    first = collective.publish(learngene(), NOW, content_key(0))
    request = individual.request("condensed", NOW, NONCE)
    receipt, _ = individual.inherit(*collective.answer_request(request, NOW), NOW)
    collective.withdraw(first.digest)
    second = collective.publish(learngene(seed=1), NOW, content_key(1))
    answer = collective.answer_request(request, NOW)
    assert isinstance(answer, Answer)
    assert digest_of(answer.release) == second.digest
    assert collective.accept_receipt(receipt, NOW).payload.release == first.digest
    assert here.opened[0].receipts(first.digest) == {INDIVIDUAL.keyid: receipt}  # type: ignore[union-attr]
    assert here.opened[0].granted(first.digest) == (INDIVIDUAL.keyid,)  # type: ignore[union-attr]
    # The nonce is still that of the one request.
    with pytest.raises(EquivocationError):
        collective.answer_request(resigned(request, INDIVIDUAL, issued_at=NOW + 1, expires_at=NOW + LIFE), NOW)


@pytest.mark.parametrize("point", ["received", "verified", "commit", "acknowledged"])
@pytest.mark.parametrize("before", [True, False])
def test_a_crash_at_any_point_of_inheriting_is_mended_by_the_same_bundle(
    here: Site, there: Site, monkeypatch: pytest.MonkeyPatch, point: str, before: bool
) -> None:
    collective = here.collective()
    collective.publish(learngene(), NOW, content_key(0))
    answer = collective.answer_request(there.individual().request("condensed", NOW, NONCE), NOW)
    step = getattr(IndividualLedger, point)

    def crash(ledger: IndividualLedger, *arguments: object, **options: object) -> None:
        if not before:
            step(ledger, *arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(IndividualLedger, point, crash)
        with pytest.raises(KeyboardInterrupt):
            there.individual().inherit(*answer, NOW)
    receipt, inherited = there.individual().inherit(*answer, NOW + 1)
    assert inherited.sealed.ciphertext == answer.blob
    assert IndividualLedger(there.folder).state(RUN, "condensed") is State.ACKED
    collective.accept_receipt(receipt, NOW + 1)
    assert there.individual().inherit(*answer, NOW + 2).receipt == receipt


def test_a_new_exchange_for_a_release_that_is_committed_ends_with_its_stored_receipt(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    collective.publish(learngene(), NOW, content_key(0))
    first = individual.inherit(*collective.answer_request(individual.request("condensed", NOW, NONCE), NOW), NOW)
    request = individual.request("condensed", NOW + 60, OTHER_NONCE)
    answer = collective.answer_request(request, NOW + 60)
    assert answer.grant != first.learngene.sealed.grant_bytes
    assert individual.inherit(*answer, NOW + 60).receipt == first.receipt
    assert there.opened[0].state(RUN, "condensed") is State.ACKED  # type: ignore[union-attr]
    assert there.opened[0].open_requests(RUN) == {}  # type: ignore[union-attr]


def test_a_learngene_damaged_on_disk_comes_back_with_a_new_request(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    collective.publish(learngene(), NOW, content_key(0))
    _, inherited = individual.inherit(*collective.answer_request(individual.request("condensed", NOW, NONCE), NOW), NOW)
    path = there.folder / "learngenes" / inherited.release_digest / "blob.sealed"
    path.write_bytes(b"damaged")
    with pytest.raises(StorageFailedError, match="changed on disk"):
        individual.learngene("condensed")
    answer = collective.answer_request(individual.request("condensed", NOW, OTHER_NONCE), NOW)
    individual.inherit(*answer, NOW)
    mended = individual.learngene("condensed")
    assert mended is not None
    assert mended.sealed.ciphertext == answer.blob


def test_a_blob_damaged_at_the_collective_comes_back_with_publishing(here: Site, there: Site) -> None:
    collective = here.collective()
    published = collective.publish(learngene(), NOW, content_key(0))
    (path,) = (here.folder / "releases").iterdir()
    path.write_bytes(b"damaged")
    request = there.individual().request("condensed", NOW, NONCE)
    with pytest.raises(StorageFailedError, match="publish again"):
        collective.answer_request(request, NOW)
    assert collective.publish(learngene(), NOW, content_key(1)) == published
    there.individual().inherit(*collective.answer_request(request, NOW), NOW)


def test_publishing_from_a_worker_thread(here: Site) -> None:
    collective = here.collective()
    worker = threading.Thread(target=collective.publish, args=(learngene(), NOW, content_key(0)))
    worker.start()
    worker.join()
    assert collective.publish(learngene(), NOW, content_key(1)).seq == 1


# A relay that cheats.


def test_attack_by_replaying_an_old_bundle_changes_nothing(here: Site, there: Site) -> None:
    """The old release has its own stored receipt, and the individual keeps the newer learngene."""
    collective, individual = here.collective(), there.individual()
    collective.publish(learngene(), NOW, content_key(0))
    old = collective.answer_request(individual.request("condensed", NOW, NONCE), NOW)
    first = individual.inherit(*old, NOW)
    newest = collective.publish(learngene(seed=1), NOW, content_key(1))
    individual.inherit(*collective.answer_request(individual.request("condensed", NOW, OTHER_NONCE), NOW), NOW)
    open_request = individual.request("condensed", NOW, b"p" * 16)
    for bundle in (old, Answer(old.release, b"garbage", b"garbage")):
        replayed = individual.inherit(*bundle, NOW)
        assert replayed.receipt == first.receipt
        assert replayed.learngene.release_digest == newest.digest
        assert there.opened[0].open_requests(RUN) == {digest_of(open_request): "condensed"}  # type: ignore[union-attr]
        assert there.opened[0].state(RUN, "condensed") is State.REQUESTED  # type: ignore[union-attr]


def test_attack_by_a_rollback_that_the_collective_itself_signs(here: Site, there: Site, tmp_path: Path) -> None:
    """A collective restored from an old backup grants an older release than the one already seen."""
    collective, individual = here.collective(), there.individual()
    first = collective.publish(learngene(), NOW, content_key(0))
    second = collective.publish(learngene(seed=1), NOW, content_key(1))
    assert second.payload.prev == first.digest
    individual.inherit(*collective.answer_request(individual.request("condensed", NOW, NONCE), NOW), NOW)
    restored = Site(tmp_path / "restored").collective()
    assert restored.publish(learngene(), NOW, content_key(0)) == first
    request = individual.request("condensed", NOW, OTHER_NONCE)
    with pytest.raises(RollbackError):
        individual.inherit(*restored.answer_request(request, NOW), NOW)
    # And a second history under the same number.
    forked = restored.publish(learngene(seed=2), NOW, content_key(2))
    assert forked.seq == second.seq
    other = Site(tmp_path / "other").individual(OTHER_INDIVIDUAL)
    fresh = other.request("condensed", NOW, NONCE)
    assert other.inherit(*restored.answer_request(fresh, NOW), NOW).learngene.release_digest == forked.digest
    with pytest.raises(EquivocationError):
        individual.inherit(
            *restored.answer_request(individual.request("condensed", NOW, b"q" * 16, fresh=True), NOW), NOW
        )


def test_both_histories_of_a_collective_are_kept_as_evidence(here: Site, there: Site, tmp_path: Path) -> None:
    collective, individual = here.collective(), there.individual()
    first = collective.publish(learngene(), NOW, content_key(0))
    individual.inherit(*collective.answer_request(individual.request("condensed", NOW, NONCE), NOW), NOW)
    forked = Site(tmp_path / "forked").collective()
    others = [forked.publish(learngene(seed=seed), NOW, content_key(seed)) for seed in (1, 2)]
    folder = there.folder / "evidence"
    with pytest.raises(EquivocationError, match="two histories") as raised:
        individual.inherit(*forked.answer_request(individual.request("condensed", NOW, OTHER_NONCE), NOW), NOW)
    for kept in (first, others[1]):
        path = folder / f"{kept.digest}.json"
        assert str(path) in str(raised.value)
        assert path.read_bytes() == kept.envelope
    # Out of a file too; and what is kept proves it to whoever has the collective's public key.
    asked = Site(tmp_path / "asked").individual()
    bundle = forked.answer_request(asked.request("condensed", NOW, NONCE), NOW)
    assert isinstance(bundle, Answer)
    with pytest.raises(EquivocationError, match="keep the evidence"):
        individual.verify_file(BundleFile(*bundle), NOW)
    assert {path.stem for path in folder.iterdir()} == {first.digest, others[1].digest}
    for path in folder.iterdir():
        envelope.check_signature(envelope.parse(path.read_bytes()), bytes.fromhex(COLLECTIVE.public_hex))
    # Where they cannot be kept, that is said and it is refused all the same.
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_bytes(b"")
    with pytest.raises(EquivocationError, match=r"two histories.*this node could not"):
        individual.verify_file(BundleFile(*bundle), NOW)


def test_attack_with_a_damaged_blob_leaves_the_request_open(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    collective.publish(learngene(), NOW, content_key(0))
    release, grant, blob = collective.answer_request(individual.request("condensed", NOW, NONCE), NOW)
    with pytest.raises(DigestMismatchError):
        individual.inherit(release, grant, blob[:-1] + b"\xff", NOW)
    assert individual.learngene("condensed") is None
    assert there.opened[0].state(RUN, "condensed") is State.REQUESTED  # type: ignore[union-attr]
    assert kinds(there)[-3:] == [("unverified", "individual-1", kind) for kind in ("release", "grant", "blob")]
    assert individual.inherit(release, grant, blob, NOW).learngene.sealed.ciphertext == blob


def test_junk_beside_a_committed_release_is_recorded_as_what_it_is(here: Site, there: Site) -> None:
    """The receipt is sent again all the same: it says that the right one is stored."""
    collective, individual = here.collective(), there.individual()
    collective.publish(learngene(), NOW, content_key(0))
    release, grant, blob = collective.answer_request(individual.request("condensed", NOW, NONCE), NOW)
    receipt = individual.inherit(release, grant, blob, NOW).receipt
    for junk in (b"junk", flipped(blob, 9), b""):
        assert individual.inherit(release, grant, junk, NOW).receipt == receipt
        lines = [line for line in read_crossings(there.folder / "crossings.jsonl") if line.direction == "in"][-3:]
        assert [(line.sender, line.kind, line.decision) for line in lines] == [
            ("collective", "release", "allowed"),
            ("collective", "grant", "allowed"),
            ("unverified", "blob", "digest_mismatch"),
        ]
        assert lines[2].digest == DIGEST(junk)
    assert individual.inherit(release, grant, blob, NOW).receipt == receipt
    assert {line.decision for line in read_crossings(there.folder / "crossings.jsonl")[-4:]} == {"allowed"}


def test_a_disk_that_fails_under_another_grant_of_a_committed_release_is_an_error(
    here: Site, there: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    collective, individual = here.collective(), there.individual()
    collective.publish(learngene(), NOW, content_key(0))
    individual.inherit(*collective.answer_request(individual.request("condensed", NOW, NONCE), NOW), NOW)
    again = collective.answer_request(individual.request("condensed", NOW, OTHER_NONCE), NOW)

    def full(*_: object) -> None:
        raise StorageFailedError("the disk is full; make room")

    monkeypatch.setattr(IndividualLedger, "received", full)
    with pytest.raises(StorageFailedError, match="disk is full"):
        individual.inherit(*again, NOW)


def everywhere(monkeypatch: pytest.MonkeyPatch, digest: Callable[[bytes], str]) -> None:
    """Put ``digest`` in the place of the protocol's own, in every module that names it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("protocol.") and hasattr(module, "digest_of"):
            monkeypatch.setattr(module, "digest_of", digest)


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


def test_attack_by_handing_one_individuals_answer_to_another(here: Site, there: Site, tmp_path: Path) -> None:
    collective = here.collective()
    collective.publish(learngene(), NOW, content_key(0))
    answer = collective.answer_request(there.individual().request("condensed", NOW, NONCE), NOW)
    other = Site(tmp_path / "individual-2").individual(OTHER_INDIVIDUAL)
    other.request("condensed", NOW, NONCE)
    with pytest.raises(WrongAudienceError):
        other.inherit(*answer, NOW)


def test_attack_with_an_answer_that_nobody_asked_for(here: Site, there: Site, tmp_path: Path) -> None:
    collective = here.collective()
    collective.publish(learngene(), NOW, content_key(0))
    elsewhere = Site(tmp_path / "elsewhere").individual()
    answer = collective.answer_request(elsewhere.request("condensed", NOW, NONCE), NOW)
    with pytest.raises(WrongAudienceError, match="no open request"):
        there.individual().inherit(*answer, NOW)


def test_attack_with_one_nonce_for_two_requests(here: Site) -> None:
    collective = here.collective()
    collective.publish(learngene(), NOW, content_key(0))

    def ask(now: int) -> bytes:
        return make_request(
            run_id=RUN,
            audience=COLLECTIVE.keyid,
            form="condensed",
            key=INDIVIDUAL,
            encryption=ENCRYPTION,
            now=now,
            nonce=NONCE,
        )

    collective.answer_request(ask(NOW), NOW)
    collective.answer_request(ask(NOW), NOW)
    with pytest.raises(EquivocationError):
        collective.answer_request(ask(NOW + 1), NOW)
    assert kinds(here)[-1] == ("unverified", "collective", "request")


def test_attack_with_a_receipt_for_what_was_never_granted(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    published = collective.publish(learngene(), NOW, content_key(0))
    receipt, _ = individual.inherit(*collective.answer_request(individual.request("condensed", NOW, NONCE), NOW), NOW)
    for key, release in ((OTHER_INDIVIDUAL, published.digest), (INDIVIDUAL, "1" * 64)):
        forged = make_receipt(run_id=RUN, release=release, audience=COLLECTIVE.keyid, key=key, now=NOW)
        with pytest.raises(WrongAudienceError):
            collective.accept_receipt(forged, NOW)
    with pytest.raises(UnknownKeyError):
        collective.accept_receipt(
            make_receipt(run_id=RUN, release=published.digest, audience=COLLECTIVE.keyid, key=STRANGER, now=NOW), NOW
        )
    for _ in range(2):
        collective.accept_receipt(receipt, NOW)
    assert here.opened[0].receipts(published.digest) == {INDIVIDUAL.keyid: receipt}  # type: ignore[union-attr]


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


# The collective's own gate.


def test_a_blob_is_hashed_once_for_its_answer_and_once_more_before_the_socket(
    here: Site, there: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    collective = here.collective()
    collective.publish(learngene(), NOW, content_key(0))
    request = there.individual().request("condensed", NOW, NONCE)
    hashed: list[bytes] = []

    def digest(data: bytes) -> str:
        hashed.append(data)
        return DIGEST(data)

    everywhere(monkeypatch, digest)
    answer = collective.answer_request(request, NOW)
    assert isinstance(answer, Answer)
    assert hashed.count(answer.blob) == 1
    collective.gate.let_frame_out(Frame("bundle", parts=answer._asdict()), "collective")
    assert hashed.count(answer.blob) == 2
    assert [line.digest for line in read_crossings(here.folder / "crossings.jsonl")][-3:] == [
        DIGEST(part) for part in answer
    ]


def test_a_release_is_read_once_by_the_gate(here: Site, there: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    collective = here.collective()
    published = collective.publish(learngene(), NOW, content_key(0))
    answer = collective.answer_request(there.individual().request("condensed", NOW, NONCE), NOW)
    read: list[bytes] = []

    def parse(data: bytes) -> envelope.Envelope:
        read.append(data)
        return PARSE(data)

    monkeypatch.setattr(envelope, "parse", parse)
    collective.gate.let_out("individual-1", answer._asdict())
    assert read.count(published.envelope) == 1
    with pytest.raises(DigestMismatchError):
        collective.gate.let_out("individual-1", {**answer._asdict(), "blob": flipped(answer.blob, 3)})


def test_a_fisher_diagonal_from_few_samples_is_never_published(here: Site) -> None:
    collective = here.collective()
    with pytest.raises(PolicyDeniedError, match="128 samples"):
        collective.publish(learngene(samples=128), NOW, content_key(9))
    assert here.opened[0].releases(RUN) == []  # type: ignore[union-attr]
    assert collective.publish(learngene(samples=None), NOW, content_key(9)).payload.fisher is None


def test_a_diverged_network_is_never_published(here: Site) -> None:
    collective = here.collective()
    original = learngene()
    tensors = dict(original.tensors)
    tensors["block.0.conv.weight"] = np.full_like(tensors["block.0.conv.weight"], np.nan)
    with pytest.raises(NonFiniteError):
        collective.publish(dataclasses.replace(original, tensors=tensors), NOW, content_key(0))
    assert here.opened[0].releases(RUN) == []  # type: ignore[union-attr]


def test_nothing_published_is_nothing_granted(here: Site, there: Site) -> None:
    collective = here.collective()
    collective.publish(learngene(form="paper"), NOW, content_key(8))
    with pytest.raises(PolicyDeniedError, match="nothing of the form condensed"):
        collective.answer_request(there.individual().request("condensed", NOW, NONCE), NOW)


def test_a_policy_without_grants_lets_none_leave(here: Site, there: Site) -> None:
    collective = here.collective(policy=Policy(role="collective", kinds_out=("release",)))
    collective.publish(learngene(), NOW, content_key(0))
    with pytest.raises(PolicyDeniedError):
        collective.answer_request(there.individual().request("condensed", NOW, NONCE), NOW)
    crossed = [(crossing.kind, crossing.decision) for crossing in read_crossings(here.folder / "crossings.jsonl")]
    assert crossed == [("request", "allowed"), ("grant", "policy_denied")]


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


def test_what_leaves_an_individual_is_of_one_length_and_holds_no_measurement(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    collective.publish(learngene(), NOW, content_key(0))
    request = individual.request("condensed", NOW, NONCE)
    answer = collective.answer_request(request, NOW)
    receipt, _ = individual.inherit(*answer, NOW)
    for data, model in ((request, payloads.Request), (receipt, Receipt)):
        opened = envelope.parse(data)
        assert len(opened.payload) == payloads.PADDED_BYTES
        fields = set(json.loads(opened.payload)) - {
            "v",
            "run_id",
            "signer",
            "audience",
            "issued_at",
            "expires_at",
            "pad",
        }
        assert fields <= {"form", "nonce", "hpke_kem", "hpke_public", "release", "status"}
        payloads.decode(model, opened.payload)
    grant = payloads.decode(Grant, envelope.parse(answer.grant).payload)
    assert grant.expires_at <= NOW + LIFE


# Withdrawal.


def inherits(
    collective: CollectiveEndpoint, individual: IndividualEndpoint, nonce: bytes, now: int = NOW
) -> VerifiedLearngene:
    """A new exchange from end to end."""
    answer = collective.answer_request(individual.request("condensed", now, nonce, fresh=True), now)
    assert isinstance(answer, Answer)
    receipt, inherited = individual.inherit(*answer, now)
    collective.accept_receipt(receipt, now)
    return inherited


def test_a_withdrawn_release_is_granted_no_more_and_whoever_asks_learns_it(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    first = collective.publish(learngene(), NOW, content_key(0))
    request = individual.request("condensed", NOW, NONCE)
    assert isinstance(collective.answer_request(request, NOW), Answer)
    inherits(collective, individual, OTHER_NONCE)
    assert not individual.withdrawn(first.digest)

    (withdrawn,) = collective.withdraw(first.digest)
    assert (withdrawn.digest, withdrawn.withdrawn) == (first.digest, True)
    # The request that was answered already has another answer now.
    answer = here.collective().answer_request(request, NOW)
    assert isinstance(answer, Withdrawal)
    abort = individual.accept_abort(answer.abort, NOW)
    assert (abort.payload.code, abort.payload.subject) == ("withdrawn", first.digest)
    assert there.individual().withdrawn(first.digest)
    # It is still there, to be looked at; that it was withdrawn is said at every use.
    kept = individual.learngene("condensed")
    assert kept is not None
    assert individual.revocation_status(kept.release_digest, kept.release.signer) == "withdrawn"
    assert kept.release_digest == first.digest
    assert kinds(here)[-1] == kinds(there)[-1] == ("collective", "individual-1", "abort")


def test_a_withdrawn_release_is_replaced_by_the_next_which_says_so(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    first = collective.publish(learngene(), NOW, content_key(0))
    request = individual.request("condensed", NOW, NONCE)
    old = collective.answer_request(request, NOW)
    collective.withdraw(first.digest)
    second = collective.publish(learngene(seed=1), NOW, content_key(1))
    third = collective.publish(learngene(form="paper"), NOW, content_key(2))
    assert (first.payload.withdraws, second.payload.withdraws) == ((), (first.digest,))
    assert third.payload.withdraws == (first.digest,)
    # The same request, which asked for the newest, is answered with what is newest now.
    answer = collective.answer_request(request, NOW)
    assert isinstance(answer, Answer)
    assert digest_of(answer.release) == second.digest
    assert collective.answer_request(request, NOW) == answer
    assert individual.inherit(*answer, NOW).learngene.release_digest == second.digest
    assert individual.withdrawn(first.digest)
    assert not individual.withdrawn(second.digest)
    # A relay that kept the old answer cannot bring the withdrawn one back.
    individual.request("condensed", NOW, OTHER_NONCE)
    with pytest.raises(RefusedError):
        individual.inherit(*old, NOW)
    assert there.opened[0].latest(RUN, "condensed").release == second.digest  # type: ignore[union-attr]


def test_attack_with_a_release_that_is_known_to_be_withdrawn(here: Site, there: Site) -> None:
    """The answer was held back until the individual had learned of the withdrawal."""
    collective, individual = here.collective(), there.individual()
    first = collective.publish(learngene(), NOW, content_key(0))
    request = individual.request("condensed", NOW, NONCE)
    held_back = collective.answer_request(request, NOW)
    collective.withdraw(first.digest)
    withdrawal = collective.answer_request(request, NOW)
    assert isinstance(withdrawal, Withdrawal)
    individual.accept_abort(withdrawal.abort, NOW)
    with pytest.raises(ExpiredError, match="withdrawn by the collective"):
        individual.inherit(*held_back, NOW)
    assert individual.learngene("condensed") is None
    collective.publish(learngene(seed=1), NOW, content_key(1))
    assert inherits(collective, individual, OTHER_NONCE).release.seq == 2


def test_attack_with_a_withdrawal_that_the_collective_never_said(here: Site, there: Site, tmp_path: Path) -> None:
    collective, individual = here.collective(), there.individual()
    first = collective.publish(learngene(), NOW, content_key(0))
    inherits(collective, individual, NONCE)

    def abort(key: SigningKey, run_id: str = RUN, audience: str = INDIVIDUAL.keyid, now: int = NOW) -> bytes:
        return make_abort(run_id=run_id, audience=audience, code="withdrawn", subject=first.digest, key=key, now=now)

    for data, error in (
        (abort(STRANGER), UnknownKeyError),
        (abort(OTHER_INDIVIDUAL), UnknownKeyError),
        (abort(COLLECTIVE, run_id=OTHER_RUN), WrongRunError),
        (abort(COLLECTIVE, audience=OTHER_INDIVIDUAL.keyid), WrongAudienceError),
        (abort(COLLECTIVE, now=NOW - 2 * LIFE), ExpiredError),
        (resigned(abort(COLLECTIVE), STRANGER, signer=STRANGER.keyid), UnknownKeyError),
    ):
        with pytest.raises(error):
            individual.accept_abort(data, NOW)
        assert kinds(there)[-1] == ("unverified", "individual-1", "abort")
        assert not individual.withdrawn(first.digest)
    # A word of another kind withdraws nothing.
    other = make_abort(
        run_id=RUN, audience=INDIVIDUAL.keyid, code="stopped", subject=first.digest, key=COLLECTIVE, now=NOW
    )
    assert individual.accept_abort(other, NOW).payload.code == "stopped"
    assert not individual.withdrawn(first.digest)
    for _ in range(2):
        individual.accept_abort(abort(COLLECTIVE), NOW)
    assert individual.withdrawn(first.digest)


def test_a_withdrawn_learngene_is_never_published_again(here: Site) -> None:
    """Neither at once, nor after another one, nor with other facts about it, nor under a new key."""
    collective = here.collective()
    first = collective.publish(learngene(), NOW, content_key(0))
    collective.withdraw(first.digest)
    with pytest.raises(PolicyDeniedError, match="withdrawn as release 1; evolve anew"):
        collective.publish(learngene(), NOW, content_key(1))
    collective.publish(learngene(seed=1), NOW, content_key(2))
    new_key = here.collective(NEW_COLLECTIVE, trust=ROTATED_TRUST)
    for endpoint, again in ((collective, learngene()), (collective, learngene(samples=2048)), (new_key, learngene())):
        with pytest.raises(PolicyDeniedError, match="withdrawn as release 1"):
            endpoint.publish(again, NOW, content_key(3))
    assert [release.seq for release in collective.releases()] == [1, 2]


def test_a_release_that_is_made_while_another_one_is_withdrawn_says_so(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the command `withdraw` works beside a node that publishes."""
    collective = here.collective()
    first = collective.publish(learngene(), NOW, content_key(0))
    make = collective_endpoint.make_release

    def made_while_one_is_withdrawn(*arguments: Any, **named: Any) -> tuple[bytes, bytes]:  # noqa: ANN401
        made = make(*arguments, **named)
        here.collective().withdraw(first.digest)
        return made

    monkeypatch.setattr(collective_endpoint, "make_release", made_while_one_is_withdrawn)
    second = collective.publish(learngene(seed=1), NOW, content_key(1))
    assert (second.seq, second.payload.withdraws) == (2, (first.digest,))
    assert [release.digest for release in collective.releases()] == [first.digest, second.digest]
    # And where the one that is withdrawn is this very learngene, it is not published a second time.
    first = collective.publish(learngene(seed=2), NOW, content_key(2))
    with pytest.raises(PolicyDeniedError, match="withdrawn as release 3"):
        collective.publish(learngene(seed=2, samples=2048), NOW, content_key(3))


def test_only_what_was_released_can_be_withdrawn(here: Site) -> None:
    collective = here.collective()
    first = collective.publish(learngene(), NOW, content_key(0))
    with pytest.raises(InputError, match="has no release"):
        collective.withdraw("1" * 64)
    with pytest.raises(InputError, match="has no release"):
        dataclasses.replace(here, run_id=OTHER_RUN).collective().withdraw(first.digest)
    assert collective.releases() == [first]
    for _ in range(2):
        assert [one.withdrawn for one in collective.withdraw(first.digest)] == [True]


def test_withdrawing_what_is_not_the_newest_is_told_by_the_next_release_of_the_same_content(
    here: Site, there: Site
) -> None:
    collective, individual = here.collective(), there.individual()
    first = collective.publish(learngene(), NOW, content_key(0))
    inherits(collective, individual, NONCE)
    second = collective.publish(learngene(seed=1), NOW, content_key(1))
    collective.withdraw(first.digest)
    third = collective.publish(learngene(seed=1), NOW, content_key(2))
    assert (third.seq, third.payload.prev, third.payload.withdraws) == (3, second.digest, (first.digest,))
    assert third.payload.plaintext == second.payload.plaintext
    assert third.payload.ciphertext != second.payload.ciphertext
    # Now it is said, and the same content is this release.
    assert collective.publish(learngene(seed=1), NOW, content_key(3)) == third
    inherits(collective, individual, OTHER_NONCE)
    assert individual.withdrawn(first.digest)


def test_what_is_granted_is_released_again_so_that_every_form_tells_of_a_withdrawal(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    first = collective.publish(learngene(), NOW, content_key(0))
    paper = collective.publish(learngene(form="paper"), NOW, content_key(1))
    second = collective.publish(learngene(seed=1), NOW, content_key(2))
    inherits(collective, individual, NONCE)
    waiting = individual.request("paper", NOW, OTHER_NONCE)
    old = collective.answer_request(waiting, NOW)
    keys = map(content_key, range(4, 99))
    assert collective.release_again(NOW, lambda: next(keys)) == []
    collective.withdraw(first.digest)
    assert collective.answer_request(waiting, NOW) == old

    made = collective.release_again(NOW + 1, lambda: next(keys))
    assert {(one.payload.form, one.payload.plaintext) for one in made} == {
        (one.payload.form, one.payload.plaintext) for one in (second, paper)
    }
    assert all(one.payload.withdraws == (first.digest,) for one in made)
    assert [one.seq for one in collective.releases()] == [1, 2, 3, 4, 5]
    assert collective.release_again(NOW + 1, lambda: next(keys)) == []
    # Also whoever has an answer already, and asks in the same words.
    answer = collective.answer_request(waiting, NOW + 1)
    assert isinstance(answer, Answer)
    assert collective.answer_request(waiting, NOW + 1) == answer
    tensors = individual.inherit(*answer, NOW + 1).learngene.learngene.tensors
    for name, array in learngene(form="paper").tensors.items():
        np.testing.assert_array_equal(tensors[name], array, strict=True)
    assert individual.withdrawn(first.digest)


def test_only_what_would_be_granted_is_released_again(here: Site) -> None:
    """Neither what is withdrawn itself, nor what is past its time, of a former key, or kept back by the policy."""
    collective = here.collective()
    first = collective.publish(learngene(), NOW, content_key(0))
    paper = collective.publish(learngene(form="paper"), NOW, content_key(1))
    collective.withdraw(first.digest)
    only_condensed = Policy(role="collective", kinds_out=("abort", "grant", "release"), forms=("condensed",))
    for endpoint, now in (
        (here.collective(policy=only_condensed), NOW),
        (here.collective(NEW_COLLECTIVE, trust=ROTATED_TRUST), NOW),
        (collective, paper.payload.expires_at),
    ):
        assert endpoint.release_again(now, lambda: content_key(2)) == []
    here.set_clock(NOW)
    (made,) = collective.release_again(NOW, lambda: content_key(2))
    assert (made.payload.form, made.payload.withdraws) == ("paper", (first.digest,))


def test_releasing_again_never_puts_old_content_over_what_another_process_publishes_meanwhile(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    collective = here.collective()
    first = collective.publish(learngene(), NOW, content_key(0))
    collective.publish(learngene(seed=1), NOW, content_key(1))
    collective.withdraw(first.digest)
    make = collective_endpoint.make_release

    def made_while_another_is_published(*arguments: Any, **named: Any) -> tuple[bytes, bytes]:  # noqa: ANN401
        monkeypatch.setattr(collective_endpoint, "make_release", make)
        here.collective().publish(learngene(seed=2), NOW, content_key(2))
        return make(*arguments, **named)

    monkeypatch.setattr(collective_endpoint, "make_release", made_while_another_is_published)
    assert collective.release_again(NOW, lambda: content_key(3)) == []
    assert [release.payload.withdraws for release in collective.releases()] == [(), (), (first.digest,)]
    assert collective.publish(learngene(seed=2), NOW, content_key(4)).seq == 3


def test_what_holds_the_same_content_is_withdrawn_with_it(here: Site, there: Site) -> None:
    collective = here.collective()
    first = collective.publish(learngene(), NOW, content_key(0))
    other = collective.publish(learngene(seed=1), NOW, content_key(1))
    again = collective.publish(learngene(samples=2048), NOW, content_key(2))
    assert [one.digest for one in collective.withdraw(first.digest)] == [first.digest, again.digest]
    assert [one.withdrawn for one in collective.releases()] == [True, False, True]
    assert isinstance(collective.answer_request(there.individual().request("condensed", NOW, NONCE), NOW), Withdrawal)
    assert collective.publish(learngene(seed=1), NOW, content_key(3)).payload.withdraws == tuple(
        sorted((first.digest, again.digest))
    )
    assert other.payload.withdraws == ()


def test_of_more_withdrawals_than_a_release_can_name_it_names_the_last(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.exchange.collective_endpoint.MOST_WITHDRAWN", 2)
    monkeypatch.setattr("protocol.exchange.collective_ledger.MOST_WITHDRAWN", 2)
    collective = here.collective()
    gone = [collective.publish(learngene(seed), NOW, content_key(seed)).digest for seed in range(3)]
    for digest in gone:
        collective.withdraw(digest)
    last = collective.publish(learngene(seed=3), NOW, content_key(3))
    assert last.payload.withdraws == tuple(sorted(gone[1:]))
    assert collective.publish(learngene(seed=3), NOW, content_key(4)) == last


def test_a_wrong_blob_does_not_hide_what_an_authentic_release_withdraws(here: Site, there: Site) -> None:
    """Whoever carries an answer cannot keep its word of a withdrawal back by spoiling the blob beside it."""
    collective, individual = here.collective(), there.individual()
    first = collective.publish(learngene(), NOW, content_key(0))
    inherits(collective, individual, NONCE)
    collective.withdraw(first.digest)
    second = collective.publish(learngene(seed=1), NOW, content_key(1))
    answer = collective.answer_request(individual.request("condensed", NOW, OTHER_NONCE), NOW)
    assert isinstance(answer, Answer)
    with pytest.raises(DigestMismatchError):
        individual.inherit(answer.release, answer.grant, flipped(answer.blob, 5), NOW)
    ledger = there.opened[0]
    assert individual.withdrawn(first.digest)
    assert [one.seq for one in ledger.seen(RUN)] == [1, 2]  # type: ignore[union-attr]
    assert ledger.state(RUN, "condensed") is State.REQUESTED  # type: ignore[union-attr]
    assert ledger.latest(RUN, "condensed").release == first.digest  # type: ignore[union-attr]
    assert individual.inherit(*answer, NOW).learngene.release_digest == second.digest


def test_what_a_compromised_key_signed_is_compromised_at_every_use(here: Site, there: Site) -> None:
    """It was inherited before anybody knew of the theft. A key that was only replaced or has retired signed in good
    faith."""
    trust = Changing(TRUST)
    individual = there.individual(trust=trust)
    here.collective().publish(learngene(), NOW, content_key(0))
    inherited = inherits(here.collective(), individual, NONCE)
    name = (inherited.release_digest, inherited.release.signer)
    assert individual.revocation_status(*name) is None
    for reason, status in (("retired", None), ("superseded", None), ("compromised", "compromised")):
        trust.store = TRUST.without_key(COLLECTIVE.keyid, reason).with_key(  # type: ignore[arg-type]
            NEW_COLLECTIVE.public_hex, "collective", "collective"
        )
        assert individual.revocation_status(*name) == status
    assert individual.revocation_status(inherited.release_digest, NEW_COLLECTIVE.keyid) is None
    # It is there to be looked at, and what the new key signs is not compromised.
    assert individual.learngene("condensed") is not None
    new = here.collective(NEW_COLLECTIVE, trust=trust)
    new.publish(learngene(), NOW, content_key(1))
    replaced = inherits(new, individual, OTHER_NONCE)
    assert individual.revocation_status(replaced.release_digest, replaced.release.signer) is None


def test_a_bundle_out_of_a_file_tells_what_it_withdraws(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    first = collective.publish(learngene(), NOW, content_key(0))
    collective.withdraw(first.digest)
    collective.publish(learngene(seed=1), NOW, content_key(1))
    answer = collective.answer_request(individual.request("condensed", NOW, NONCE), NOW)
    assert isinstance(answer, Answer)
    with pytest.raises(DigestMismatchError):
        individual.verify_file(BundleFile(answer.release, answer.grant, flipped(answer.blob, 5)), NOW)
    assert not individual.withdrawn(first.digest)
    individual.verify_file(BundleFile(*answer), NOW)
    assert individual.withdrawn(first.digest)


# Trust that changes while an endpoint is open.


class Changing:
    """A trust store that is replaced, as the file of a running node is."""

    def __init__(self, store: TrustStore) -> None:
        self.store = store

    def __call__(self) -> TrustStore:
        return self.store


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


def test_a_running_individual_sees_that_the_collectives_key_was_revoked(here: Site, there: Site) -> None:
    trust = Changing(TRUST)
    collective, individual = here.collective(), there.individual(trust=trust)
    collective.publish(learngene(), NOW, content_key(0))
    answer = collective.answer_request(individual.request("condensed", NOW, NONCE), NOW)
    abort = make_abort(
        run_id=RUN, audience=INDIVIDUAL.keyid, code="withdrawn", subject="1" * 64, key=COLLECTIVE, now=NOW
    )
    trust.store = ROTATED_TRUST
    with pytest.raises(RevokedKeyError, match="collective was revoked as superseded"):
        individual.inherit(*answer, NOW)
    with pytest.raises(RevokedKeyError):
        individual.accept_abort(abort, NOW)
    with pytest.raises(RevokedKeyError):
        individual.verify_file(BundleFile(*answer), NOW)
    assert individual.learngene("condensed") is None
    assert not individual.withdrawn("1" * 64)
    trust.store = TRUST
    individual.inherit(*answer, NOW)


def test_a_running_collective_does_not_sign_with_a_revoked_key(here: Site, there: Site) -> None:
    trust = Changing(TRUST)
    collective = here.collective(trust=trust)
    first = collective.publish(learngene(), NOW, content_key(0))
    trust.store = ROTATED_TRUST
    with pytest.raises(InputError, match="own key is not in its trust store"):
        collective.publish(learngene(seed=1), NOW, content_key(1))
    assert collective.releases() == [first]
    with pytest.raises(InputError, match="own key"):
        here.collective(trust=trust)


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


def test_a_release_of_another_epoch_of_the_same_key_is_neither_granted_nor_taken_for_the_same(
    here: Site, there: Site
) -> None:
    """As after a trust store that was begun anew: individuals compare the epoch, not only the key."""
    trust = Changing(TRUST)
    collective, individual = here.collective(trust=trust), there.individual(trust=trust)
    first = collective.publish(learngene(), NOW, content_key(0))
    request = individual.request("condensed", NOW, NONCE)
    old = collective.answer_request(request, NOW)
    begun_anew = NO_TRUST.with_key(COLLECTIVE.public_hex, "collective", "collective", epoch=2)
    trust.store = begun_anew.with_key(INDIVIDUAL.public_hex, "individual", "individual-1")
    with pytest.raises(UnknownKeyError, match="current key"):
        individual.inherit(*old, NOW)
    with pytest.raises(ExpiredError, match="publish the learngene again"):
        collective.answer_request(request, NOW)
    second = collective.publish(learngene(), NOW, content_key(1))
    assert (second.seq, second.payload.prev, second.payload.key_epoch) == (2, first.digest, 2)
    individual.inherit(*collective.answer_request(request, NOW), NOW)


def test_a_kind_of_key_that_the_policy_does_not_have_any_more_is_not_answered_from_the_store(
    here: Site, there: Site
) -> None:
    collective = here.collective()
    collective.publish(learngene(), NOW, content_key(0))
    request = there.individual().request("condensed", NOW, NONCE)
    collective.answer_request(request, NOW)
    hybrid = Policy(role="collective", kinds_out=("abort", "grant", "release"), kems=("mlkem768-x25519",))
    with pytest.raises(PolicyDeniedError, match="key of the kind x25519"):
        here.collective(policy=hybrid).answer_request(request, NOW)


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


def test_attack_by_rollback_across_keys(here: Site, there: Site, tmp_path: Path) -> None:
    """A trust store in which the old key is believed again, as from a backup, does not bring its releases back."""
    trust = Changing(TRUST)
    individual = there.individual(trust=trust)
    old = here.collective()
    old.publish(learngene(), NOW, content_key(0))
    inherits(old, individual, NONCE)
    backup = Site(tmp_path / "backup").collective()
    for endpoint in (old, backup):
        for seed in range(3):
            endpoint.publish(learngene(seed), NOW, content_key(seed))
    trust.store = ROTATED_TRUST
    new = here.collective(NEW_COLLECTIVE, trust=trust)
    newest = new.publish(learngene(seed=3), NOW, content_key(3))
    inherits(new, individual, OTHER_NONCE)
    trust.store = TRUST
    request = individual.request("condensed", NOW, b"p" * 16)
    # One with a higher number than any that was seen of the old key.
    answer = backup.answer_request(request, NOW)
    with pytest.raises(RollbackError):
        individual.inherit(*answer, NOW)
    assert there.opened[0].latest(RUN, "condensed").release == newest.digest  # type: ignore[union-attr]


def test_an_open_request_is_made_anew_when_a_key_of_either_side_has_changed(there: Site) -> None:
    request = there.individual().request("condensed", NOW, NONCE)
    assert there.individual().request("condensed", NOW, OTHER_NONCE) == request
    new_individual = SigningKey.from_seed(b"I" * 32)
    rotated = TRUST.with_rotated_key("individual-1", "individual", new_individual.public_hex)
    for endpoint, expected in (
        (there.individual(encryption=OTHER_ENCRYPTION), {"hpke_public": OTHER_ENCRYPTION.public.hex()}),
        (there.individual(trust=ROTATED_TRUST), {"audience": NEW_COLLECTIVE.keyid}),
        (there.individual(new_individual, trust=rotated), {"signer": new_individual.keyid}),
    ):
        there.individual().request("condensed", NOW, NONCE, fresh=True)
        made = opened(payloads.Request, endpoint.request("condensed", NOW, OTHER_NONCE))
        assert made.nonce == OTHER_NONCE.hex()
        assert {name: getattr(made, name) for name in expected} == expected


def test_a_learngene_whose_encryption_key_is_gone_comes_back_with_a_new_request(here: Site, there: Site) -> None:
    collective = here.collective()
    collective.publish(learngene(), NOW, content_key(0))
    inherits(collective, there.individual(), NONCE)
    with pytest.raises(StorageFailedError, match="cannot be opened any more"):
        there.individual(encryption=OTHER_ENCRYPTION).learngene("condensed")
    before = there.individual().learngene("condensed")
    after = inherits(collective, there.individual(encryption=OTHER_ENCRYPTION), OTHER_NONCE)
    assert before is not None
    assert after.release_digest == before.release_digest
    assert after.sealed.grant_bytes != before.sealed.grant_bytes
    again = there.individual(encryption=OTHER_ENCRYPTION).learngene("condensed")
    assert again is not None
    assert again.sealed == after.sealed


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
    database = there.opened[0]._database
    before = database.total_changes
    individual.request("condensed", NOW, NONCE)
    assert database.total_changes == before
    individual.request("condensed", NOW + 1, NONCE)
    assert database.total_changes == before + 1


def test_no_content_key_lies_open_on_the_collectives_disk(here: Site, there: Site) -> None:
    """Searched for as raw bytes and as hexadecimal digits, in every file, the write-ahead log among them."""
    key, other = secrets.token_bytes(32), secrets.token_bytes(32)
    collective, individual = here.collective(), there.individual()
    published = collective.publish(learngene(), NOW, key)
    assert isinstance(collective.answer_request(individual.request("condensed", NOW, NONCE), NOW), Answer)
    collective.withdraw(published.digest)
    collective.publish(learngene(seed=1), NOW, other)

    def found(piece: bytes) -> list[str]:
        files = (path for path in here.folder.rglob("*") if path.is_file())
        contents = {path.name: path.read_bytes() for path in files}
        return [name for name, data in contents.items() if piece in data or piece.hex().encode() in data]

    assert found(key) == found(other) == []
    # The control: the closed one is found where the open one would be.
    assert "ledger.db-wal" in found(published.closed_key)
    for ledger in here.opened:
        ledger.close()
    assert found(key) == found(other) == []
    assert found(published.closed_key) == ["ledger.db"]


def test_a_closed_content_key_opens_only_for_its_release_and_its_collective(here: Site) -> None:
    collective = here.collective()
    first = collective.publish(learngene(), NOW, content_key(5))
    second = collective.publish(learngene(seed=1), NOW, content_key(6))
    assert content_keys.reopen(COLLECTIVE, first.closed_key, first.digest) == content_key(5)
    for key, closed, digest in (
        (COLLECTIVE, first.closed_key, second.digest),
        (NEW_COLLECTIVE, first.closed_key, first.digest),
        (COLLECTIVE, flipped(first.closed_key, 3), first.digest),
    ):
        with pytest.raises(StorageFailedError, match="does not open with this node's signing key"):
            content_keys.reopen(key, closed, digest)
