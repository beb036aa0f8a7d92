"""The desks: an exchange from end to end, again after a crash at every point, and against a relay that cheats."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from protocol import envelope, messages
from protocol.audit import read_crossings
from protocol.bundle import Answer, make_receipt, make_request
from protocol.errors import (
    DigestMismatchError,
    EquivocationError,
    ExpiredError,
    InputError,
    NonFiniteError,
    PolicyDeniedError,
    RefusedError,
    RollbackError,
    StorageFailedError,
    UnknownKeyError,
    WrongAudienceError,
)
from protocol.ledger import IndividualLedger, State
from protocol.messages import LIFE, Grant, Receipt
from protocol.policy import Policy
from tests.protocol.parties import COLLECTIVE, INDIVIDUAL, NOW, OTHER_INDIVIDUAL, RUN, STRANGER, Site, learngene

NONCE = b"n" * 16
OTHER_NONCE = b"o" * 16


def kinds(site: Site) -> list[tuple[str, str, str]]:
    return [(line.sender, line.receiver, line.kind) for line in read_crossings(site.folder / "crossings.jsonl")]


def test_one_exchange_from_end_to_end(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    published = collective.publish(learngene(), NOW)
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
    assert again.blob == answer.blob
    assert individual.learngene("paper") is None


def test_both_sides_record_the_same_crossings(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    collective.publish(learngene(), NOW)
    receipt, _ = individual.inherit(*collective.answer_request(individual.request("condensed", NOW, NONCE), NOW), NOW)
    collective.accept_receipt(receipt, NOW)
    up, down = ("individual-1", "collective"), ("collective", "individual-1")
    expected = [(*up, "request"), (*down, "release"), (*down, "grant"), (*down, "blob"), (*up, "receipt")]
    assert kinds(here) == kinds(there) == expected
    logs = [read_crossings(site.folder / "crossings.jsonl") for site in (here, there)]
    assert [line.digest for line in logs[0]] == [line.digest for line in logs[1]]


def test_two_forms_are_two_releases_of_one_chain(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    condensed = collective.publish(learngene(), NOW)
    paper = collective.publish(learngene(form="paper"), NOW)
    assert (paper.seq, paper.prev) == (2, condensed.digest)
    # The second form first: an individual's view of the chain has gaps, and each form its own newest release.
    for form, nonce in (("paper", NONCE), ("condensed", OTHER_NONCE)):
        answer = collective.answer_request(individual.request(form, NOW, nonce), NOW)  # type: ignore[arg-type]
        assert individual.inherit(*answer, NOW).learngene.release.form == form
    for form in ("paper", "condensed"):
        kept = individual.learngene(form)  # type: ignore[arg-type]
        assert kept is not None
        assert kept.learngene.architecture.form == form


# Resuming: a new desk on the same folder is a restarted node.


def test_publishing_the_same_content_after_a_restart_is_the_stored_release(here: Site) -> None:
    first = here.collective().publish(learngene(), NOW)
    again = here.collective().publish(learngene(), NOW + 60)
    assert again == first
    assert len(here.opened[0].releases(RUN)) == 1  # type: ignore[union-attr]


def test_a_restarted_collective_continues_its_chain(here: Site) -> None:
    first = here.collective().publish(learngene(), NOW)
    second = here.collective().publish(learngene(seed=1), NOW)
    assert (second.seq, second.prev) == (2, first.digest)
    # Back to the first content: what is newest has changed, so this is a new release.
    third = here.collective().publish(learngene(), NOW)
    assert (third.seq, third.prev) == (3, second.digest)


def test_other_facts_about_the_same_tensors_are_another_release(here: Site) -> None:
    first = here.collective().publish(learngene(), NOW)
    assert here.collective().publish(learngene(samples=2048), NOW).seq == 2
    assert first.payload.fisher is not None


def test_a_release_past_its_time_is_published_again(here: Site, there: Site) -> None:
    first = here.collective().publish(learngene(), NOW)
    end = first.payload.expires_at
    request = there.individual().request("condensed", NOW + LIFE, NONCE)
    with pytest.raises(ExpiredError, match="publish the learngene again"):
        here.collective().answer_request(request, end)
    second = here.collective().publish(learngene(), end)
    assert (second.seq, second.prev) == (2, first.digest)
    there.individual().inherit(*here.collective().answer_request(request, end), end)


def test_a_collective_killed_after_publishing_goes_on(here: Site) -> None:
    """A real process, ended without any clean-up right after ``publish`` returned."""
    program = (
        "import os, sys; from pathlib import Path\n"
        "from tests.protocol.parties import Site, learngene, NOW\n"
        "print(Site(Path(sys.argv[1])).collective().publish(learngene(), NOW).digest, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, str(here.folder)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    assert here.collective().publish(learngene(), NOW + 1).digest == done.stdout.strip()
    assert here.collective().publish(learngene(seed=1), NOW + 1).prev == done.stdout.strip()


def test_the_same_request_again_has_the_very_same_answer(here: Site, there: Site) -> None:
    collective = here.collective()
    collective.publish(learngene(), NOW)
    request = there.individual().request("condensed", NOW, NONCE)
    answer = collective.answer_request(request, NOW)
    collective.publish(learngene(seed=1), NOW)
    assert here.collective().answer_request(request, NOW + 1000) == answer
    newer = collective.answer_request(there.individual().request("condensed", NOW, OTHER_NONCE, fresh=True), NOW)
    assert newer.release != answer.release


def test_a_restarted_individual_sends_its_open_request_again(there: Site) -> None:
    request = there.individual().request("condensed", NOW, NONCE)
    assert there.individual().request("condensed", NOW + LIFE, OTHER_NONCE) == request
    assert there.individual().request("condensed", NOW + LIFE + 1, OTHER_NONCE) != request


@pytest.mark.parametrize("point", ["received", "verified", "commit", "acknowledged"])
@pytest.mark.parametrize("before", [True, False])
def test_a_crash_at_any_point_of_inheriting_is_mended_by_the_same_bundle(
    here: Site, there: Site, monkeypatch: pytest.MonkeyPatch, point: str, before: bool
) -> None:
    collective = here.collective()
    collective.publish(learngene(), NOW)
    answer = collective.answer_request(there.individual().request("condensed", NOW, NONCE), NOW)
    step = getattr(IndividualLedger, point)

    def crash(ledger: IndividualLedger, *arguments: object) -> None:
        if not before:
            step(ledger, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(IndividualLedger, point, crash)
        with pytest.raises(KeyboardInterrupt):
            there.individual().inherit(*answer, NOW)
    receipt, inherited = there.individual().inherit(*answer, NOW + 1)
    assert inherited.blob == answer.blob
    assert IndividualLedger(there.folder).state(RUN, "condensed") is State.ACKED
    collective.accept_receipt(receipt, NOW + 1)
    assert there.individual().inherit(*answer, NOW + 2).receipt == receipt


def test_a_new_exchange_for_a_release_that_is_committed_ends_with_its_stored_receipt(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    collective.publish(learngene(), NOW)
    first = individual.inherit(*collective.answer_request(individual.request("condensed", NOW, NONCE), NOW), NOW)
    request = individual.request("condensed", NOW + 60, OTHER_NONCE)
    answer = collective.answer_request(request, NOW + 60)
    assert answer.grant != first.learngene.grant_bytes
    assert individual.inherit(*answer, NOW + 60).receipt == first.receipt
    assert there.opened[0].state(RUN, "condensed") is State.ACKED  # type: ignore[union-attr]
    assert there.opened[0].open_requests(RUN) == {}  # type: ignore[union-attr]


def test_a_learngene_damaged_on_disk_comes_back_with_a_new_request(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    collective.publish(learngene(), NOW)
    _, inherited = individual.inherit(*collective.answer_request(individual.request("condensed", NOW, NONCE), NOW), NOW)
    path = there.folder / "learngenes" / inherited.release_digest / "blob.safetensors"
    path.write_bytes(b"damaged")
    with pytest.raises(StorageFailedError, match="changed on disk"):
        individual.learngene("condensed")
    answer = collective.answer_request(individual.request("condensed", NOW, OTHER_NONCE), NOW)
    individual.inherit(*answer, NOW)
    mended = individual.learngene("condensed")
    assert mended is not None
    assert mended.blob == answer.blob


def test_a_blob_damaged_at_the_collective_comes_back_with_publishing(here: Site, there: Site) -> None:
    collective = here.collective()
    published = collective.publish(learngene(), NOW)
    (path,) = (here.folder / "releases").iterdir()
    path.write_bytes(b"damaged")
    request = there.individual().request("condensed", NOW, NONCE)
    with pytest.raises(StorageFailedError, match="publish again"):
        collective.answer_request(request, NOW)
    assert collective.publish(learngene(), NOW) == published
    there.individual().inherit(*collective.answer_request(request, NOW), NOW)


def test_publishing_from_a_worker_thread(here: Site) -> None:
    collective = here.collective()
    worker = threading.Thread(target=collective.publish, args=(learngene(), NOW))
    worker.start()
    worker.join()
    assert collective.publish(learngene(), NOW).seq == 1


# A relay that cheats.


def test_attack_by_replaying_an_old_bundle_changes_nothing(here: Site, there: Site) -> None:
    """The old release has its own stored receipt, and the individual keeps the newer learngene."""
    collective, individual = here.collective(), there.individual()
    collective.publish(learngene(), NOW)
    old = collective.answer_request(individual.request("condensed", NOW, NONCE), NOW)
    first = individual.inherit(*old, NOW)
    newest = collective.publish(learngene(seed=1), NOW)
    individual.inherit(*collective.answer_request(individual.request("condensed", NOW, OTHER_NONCE), NOW), NOW)
    open_request = individual.request("condensed", NOW, b"p" * 16)
    for bundle in (old, Answer(old.release, b"garbage", b"garbage")):
        replayed = individual.inherit(*bundle, NOW)
        assert replayed.receipt == first.receipt
        assert replayed.learngene.release_digest == newest.digest
        assert there.opened[0].open_requests(RUN) == {envelope.digest(open_request): "condensed"}  # type: ignore[union-attr]
        assert there.opened[0].state(RUN, "condensed") is State.REQUESTED  # type: ignore[union-attr]


def test_attack_by_a_rollback_that_the_collective_itself_signs(here: Site, there: Site, tmp_path: Path) -> None:
    """A collective restored from an old backup grants an older release than the one already seen."""
    collective, individual = here.collective(), there.individual()
    first = collective.publish(learngene(), NOW)
    second = collective.publish(learngene(seed=1), NOW)
    assert second.prev == first.digest
    individual.inherit(*collective.answer_request(individual.request("condensed", NOW, NONCE), NOW), NOW)
    restored = Site(tmp_path / "restored").collective()
    assert restored.publish(learngene(), NOW) == first
    request = individual.request("condensed", NOW, OTHER_NONCE)
    with pytest.raises(RollbackError):
        individual.inherit(*restored.answer_request(request, NOW), NOW)
    # And a second history under the same number.
    forked = restored.publish(learngene(seed=2), NOW)
    assert forked.seq == second.seq
    other = Site(tmp_path / "other").individual(OTHER_INDIVIDUAL)
    fresh = other.request("condensed", NOW, NONCE)
    assert other.inherit(*restored.answer_request(fresh, NOW), NOW).learngene.release_digest == forked.digest
    with pytest.raises(EquivocationError):
        individual.inherit(
            *restored.answer_request(individual.request("condensed", NOW, b"q" * 16, fresh=True), NOW), NOW
        )


def test_attack_with_a_damaged_blob_leaves_the_request_open(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    collective.publish(learngene(), NOW)
    release, grant, blob = collective.answer_request(individual.request("condensed", NOW, NONCE), NOW)
    with pytest.raises(DigestMismatchError):
        individual.inherit(release, grant, blob[:-1] + b"\xff", NOW)
    assert individual.learngene("condensed") is None
    assert there.opened[0].state(RUN, "condensed") is State.REQUESTED  # type: ignore[union-attr]
    assert kinds(there)[-3:] == [("unverified", "individual-1", kind) for kind in ("release", "grant", "blob")]
    assert individual.inherit(release, grant, blob, NOW).learngene.blob == blob


def test_attack_by_handing_one_individuals_answer_to_another(here: Site, there: Site, tmp_path: Path) -> None:
    collective = here.collective()
    collective.publish(learngene(), NOW)
    answer = collective.answer_request(there.individual().request("condensed", NOW, NONCE), NOW)
    other = Site(tmp_path / "individual-2").individual(OTHER_INDIVIDUAL)
    other.request("condensed", NOW, NONCE)
    with pytest.raises(WrongAudienceError):
        other.inherit(*answer, NOW)


def test_attack_with_an_answer_that_nobody_asked_for(here: Site, there: Site, tmp_path: Path) -> None:
    collective = here.collective()
    collective.publish(learngene(), NOW)
    elsewhere = Site(tmp_path / "elsewhere").individual()
    answer = collective.answer_request(elsewhere.request("condensed", NOW, NONCE), NOW)
    with pytest.raises(WrongAudienceError, match="no open request"):
        there.individual().inherit(*answer, NOW)


def test_attack_with_one_nonce_for_two_requests(here: Site) -> None:
    collective = here.collective()
    collective.publish(learngene(), NOW)

    def ask(now: int) -> bytes:
        return make_request(
            run_id=RUN, audience=COLLECTIVE.keyid, form="condensed", key=INDIVIDUAL, now=now, nonce=NONCE
        )

    collective.answer_request(ask(NOW), NOW)
    collective.answer_request(ask(NOW), NOW)
    with pytest.raises(EquivocationError):
        collective.answer_request(ask(NOW + 1), NOW)
    assert kinds(here)[-1] == ("unverified", "collective", "request")


def test_attack_with_a_receipt_for_what_was_never_granted(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    published = collective.publish(learngene(), NOW)
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
            collective.publish(learngene(seed=step), NOW)
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
        assert inherited.release_bytes in [answer.release for answer in carried]
        assert inherited.blob in [answer.blob for answer in carried]
    answer = collective.answer_request(individual.request("condensed", NOW, b"z" * 16, fresh=True), NOW)
    assert individual.inherit(*answer, NOW).learngene.release.seq == 3


# The collective's own gate.


def test_a_fisher_diagonal_from_few_samples_is_never_published(here: Site) -> None:
    collective = here.collective()
    with pytest.raises(PolicyDeniedError, match="128 samples"):
        collective.publish(learngene(samples=128), NOW)
    assert here.opened[0].releases(RUN) == []  # type: ignore[union-attr]
    assert collective.publish(learngene(samples=None), NOW).payload.fisher is None


def test_a_diverged_network_is_never_published(here: Site) -> None:
    collective = here.collective()
    original = learngene()
    tensors = dict(original.tensors)
    tensors["block.0.conv.weight"] = np.full_like(tensors["block.0.conv.weight"], np.nan)
    with pytest.raises(NonFiniteError):
        collective.publish(dataclasses.replace(original, tensors=tensors), NOW)
    assert here.opened[0].releases(RUN) == []  # type: ignore[union-attr]


def test_nothing_published_is_nothing_granted(here: Site, there: Site) -> None:
    collective = here.collective()
    collective.publish(learngene(form="paper"), NOW)
    with pytest.raises(PolicyDeniedError, match="nothing of the form condensed"):
        collective.answer_request(there.individual().request("condensed", NOW, NONCE), NOW)


def test_a_policy_without_grants_lets_none_leave(here: Site, there: Site) -> None:
    collective = here.collective(policy=Policy(role="collective", kinds_out=("release",)))
    collective.publish(learngene(), NOW)
    with pytest.raises(PolicyDeniedError):
        collective.answer_request(there.individual().request("condensed", NOW, NONCE), NOW)
    assert [kind for _, _, kind in kinds(here)] == ["request"]


def test_nothing_leaves_that_cannot_be_recorded(here: Site, there: Site) -> None:
    individual = there.individual()
    os.mkdir(there.folder / "crossings.jsonl")
    with pytest.raises(StorageFailedError, match="nothing is sent"):
        individual.request("condensed", NOW, NONCE)


def test_a_desk_needs_the_policy_and_the_pinned_key_of_its_role(here: Site, there: Site) -> None:
    with pytest.raises(InputError, match="policy"):
        here.collective(policy=Policy.for_role("individual"))
    with pytest.raises(InputError, match="policy"):
        there.individual(policy=Policy.for_role("collective"))
    with pytest.raises(InputError, match="own key"):
        here.collective(key=STRANGER)


def test_a_stranger_is_refused(here: Site, tmp_path: Path) -> None:
    collective = here.collective()
    collective.publish(learngene(), NOW)
    with pytest.raises(UnknownKeyError):
        collective.answer_request(
            Site(tmp_path / "stranger").individual(STRANGER).request("condensed", NOW, NONCE), NOW
        )


def test_what_leaves_an_individual_is_of_one_length_and_holds_no_measurement(here: Site, there: Site) -> None:
    collective, individual = here.collective(), there.individual()
    collective.publish(learngene(), NOW)
    request = individual.request("condensed", NOW, NONCE)
    answer = collective.answer_request(request, NOW)
    receipt, _ = individual.inherit(*answer, NOW)
    for data, model in ((request, messages.Request), (receipt, Receipt)):
        opened = envelope.parse(data)
        assert len(opened.payload) == messages.PADDED_BYTES
        fields = set(json.loads(opened.payload)) - {
            "v",
            "run_id",
            "signer",
            "audience",
            "issued_at",
            "expires_at",
            "pad",
        }
        assert fields <= {"form", "nonce", "hpke_public", "release", "status"}
        messages.decode(model, opened.payload)
    grant = messages.decode(Grant, envelope.parse(answer.grant).payload)
    assert grant.expires_at <= NOW + LIFE
