"""The individual's endpoint: requesting and inheriting, after a crash at every point, and against forged answers."""

import json
from pathlib import Path

import pytest

from protocol.digest import digest_of
from protocol.errors import (
    DigestMismatchError,
    EquivocationError,
    ExpiredError,
    RevokedKeyError,
    RollbackError,
    StorageFailedError,
    UnknownKeyError,
    WrongAudienceError,
    WrongRunError,
)
from protocol.exchange.audit import read_crossings
from protocol.exchange.collective_endpoint import Answer, Withdrawal
from protocol.exchange.individual_ledger import IndividualLedger, State
from protocol.keys.signing_key import SigningKey
from protocol.messages import envelope, payloads
from protocol.messages.builders import make_abort
from protocol.messages.bundle_file import BundleFile
from protocol.messages.payloads import LIFE, SKEW, Grant, Receipt
from tests.protocol.exchange.two_sites import DIGEST, NONCE, OTHER_NONCE, Changing, inherits, kinds
from tests.protocol.parties import (
    COLLECTIVE,
    INDIVIDUAL,
    NEW_COLLECTIVE,
    NOW,
    OTHER_ENCRYPTION,
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


def test_a_restarted_individual_sends_its_open_request_again(there: Site) -> None:
    request = there.individual().request("condensed", NOW, NONCE)
    assert there.individual().request("condensed", NOW + LIFE - 1, OTHER_NONCE) == request
    assert there.individual().request("condensed", NOW + LIFE, OTHER_NONCE) != request


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
