"""The collective's endpoint: publishing, granting and withdrawing, also after a restart."""

import dataclasses
import secrets
import subprocess
import sys
import threading
from collections import Counter
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
    StorageFailedError,
    UnknownKeyError,
    WrongAudienceError,
)
from protocol.exchange import collective_endpoint, content_keys
from protocol.exchange.audit import read_crossings
from protocol.exchange.collective_endpoint import Answer, Withdrawal
from protocol.messages import envelope, payloads
from protocol.messages.builders import make_receipt, make_request
from protocol.messages.payloads import LIFE, SKEW, Grant, Release
from protocol.transport.frame import Frame
from protocol.trust.policy import Policy
from tests.protocol.exchange.two_sites import DIGEST, NONCE, OTHER_NONCE, PARSE, Changing, everywhere, inherits, kinds
from tests.protocol.parties import (
    COLLECTIVE,
    ENCRYPTION,
    INDIVIDUAL,
    NEW_COLLECTIVE,
    NO_TRUST,
    NOW,
    OTHER_INDIVIDUAL,
    OTHER_RUN,
    ROTATED_TRUST,
    RUN,
    STRANGER,
    TRUST,
    Site,
    content_key,
    flipped,
    learngene,
    opened,
    resigned,
)

# Resuming: a new endpoint on the same folder is a restarted node.


def test_publishing_the_same_content_after_a_restart_is_the_stored_release(here: Site) -> None:
    first = here.collective().publish(learngene(), NOW, content_key(0))
    again = here.collective().publish(learngene(), NOW + 60, content_key(1))
    assert again == first
    assert len(here.opened[0].releases(RUN)) == 1  # type: ignore[union-attr]


def test_publishing_encodes_the_blob_once_and_parses_the_new_envelope_once(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def counted(module: Any, name: str) -> None:  # noqa: ANN401
        function = getattr(module, name)

        def call(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
            calls[name] += 1
            return function(*arguments, **named)

        monkeypatch.setattr(module, name, call)

    collective = here.collective()
    counted(blobs, "encode")
    counted(envelope, "parse")
    first = collective.publish(learngene(), NOW, content_key(0))
    assert calls == {"encode": 1, "parse": 1}
    # What was not parsed a second time is what the ledger reads from then on.
    assert collective.releases() == [first]
    assert payloads.decode(Release, envelope.parse(first.envelope).payload) == first.payload
    # Once more the same: its blob is compared with the stored one, nothing new is made.
    calls.clear()
    assert collective.publish(learngene(), NOW, content_key(1)) == first
    assert calls["encode"] == 1


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
