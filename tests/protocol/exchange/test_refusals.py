"""One attack for every class of refusal, through the endpoints: nothing changes, and the honest bundle still gets
through."""

import dataclasses
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from protocol.digest import digest_of
from protocol.encoding import blob
from protocol.errors import (
    BadSignatureError,
    DigestMismatchError,
    EquivocationError,
    ExpiredError,
    MalformedError,
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
from protocol.exchange.collective_endpoint import Answer, CollectiveEndpoint
from protocol.exchange.expectation import Expectation
from protocol.exchange.individual_endpoint import IndividualEndpoint
from protocol.messages import envelope, payloads
from protocol.messages.builders import make_receipt
from protocol.messages.payloads import LIFE, SKEW
from protocol.trust.trust_store import TrustStore
from tests.protocol.parties import (
    COLLECTIVE,
    INDIVIDUAL,
    NEW_COLLECTIVE,
    NOW,
    OTHER_INDIVIDUAL,
    OTHER_RUN,
    RUN,
    STRANGER,
    TRUST,
    Exchange,
    Site,
    content_key,
    flipped,
    learngene,
    resigned,
)

REFUSALS = tuple(RefusedError.__subclasses__())


@dataclass
class Scene:
    """Two sites that have exchanged a first release and are in the middle of the second exchange.

    ``exchange``: the honest answer to the open request; nothing of it has been delivered yet.
    """

    here: Site
    there: Site
    collective: CollectiveEndpoint
    individual: IndividualEndpoint
    exchange: Exchange
    trust: TrustStore

    def ledger(self) -> dict[str, list[tuple[object, ...]]]:
        """Every row of both ledgers, and every file beside them, but for the evidence of two histories."""
        rows: dict[str, list[tuple[object, ...]]] = {}
        for site in (self.here, self.there):
            with sqlite3.connect(site.folder / "ledger.db") as database:
                tables = [str(row[0]) for row in database.execute("SELECT name FROM sqlite_master WHERE type='table'")]
                for table in tables:
                    rows[f"{site.folder.name} {table}"] = database.execute(f"SELECT * FROM {table}").fetchall()
            rows[f"{site.folder.name} files"] = [
                (str(path), path.read_bytes())
                for path in sorted(site.folder.rglob("*"))
                if path.is_file() and path.parent not in (site.folder, site.folder / "evidence")
            ]
        return rows

    def inherit(self, exchange: Exchange, now: int = NOW) -> None:
        """Deliver an answer to the individual, which accepts it or refuses."""
        self.individual.inherit(*exchange.answer, now)


@pytest.fixture
def scene(here: Site, there: Site) -> Scene:
    scene = Scene(here, there, None, None, None, TRUST)  # type: ignore[arg-type]
    scene.collective = here.collective(trust=lambda: scene.trust)
    scene.individual = there.individual(trust=lambda: scene.trust)
    for number in range(2):
        scene.collective.publish(learngene(number), NOW, content_key(number))
        request = scene.individual.request("condensed", NOW, bytes([number]) * 16)
        answer = scene.collective.answer_request(request, NOW)
        assert isinstance(answer, Answer)
        if number == 0:
            scene.collective.accept_receipt(scene.individual.inherit(*answer, NOW).receipt, NOW)
        else:
            expectation = Expectation(RUN, INDIVIDUAL.keyid, {digest_of(request): "condensed"})
            scene.exchange = Exchange(request, answer, expectation)
    return scene


def refused(
    scene: Scene, expected: type[RefusedError], attack: Callable[[], object], *, looked_at: bool = False
) -> str:
    """Make an attack: it is refused with exactly this class, in one line of two parts, and changes nothing.

    Args:
        looked_at: the envelopes were authentic, so that the individual remembers their release as seen.

    Returns:
        The refusal's text.
    """
    before = scene.ledger()
    with pytest.raises(expected) as caught:
        attack()
    assert type(caught.value) is expected
    text = str(caught.value)
    assert "\n" not in text
    # What is wrong, and what to do.
    assert all(text.partition("; "))
    after = scene.ledger()
    if looked_at:
        for rows in (before, after):
            del rows[f"{scene.there.folder.name} seen"]
            rows[f"{scene.there.folder.name} exchanges"] = [
                row[:-1] for row in rows[f"{scene.there.folder.name} exchanges"]
            ]
    assert after == before
    return text


def then_the_honest_bundle_is_accepted(scene: Scene) -> None:
    """The positive control of every attack: the endpoint was able and willing all the time."""
    receipt, inherited = scene.individual.inherit(*scene.exchange.answer, NOW)
    assert inherited.release_digest == digest_of(scene.exchange.answer.release)
    for name, array in learngene(1).tensors.items():
        np.testing.assert_array_equal(inherited.learngene.tensors[name], array, strict=True)
    assert scene.collective.accept_receipt(receipt, NOW).payload.release == inherited.release_digest


def poisoned(name: str, value: float) -> bytes:
    tensors = {key: array.copy() for key, array in learngene(1).tensors.items()}
    tensors[name].reshape(-1)[0] = value
    return blob.encode(tensors)


def test_attack_too_large(scene: Scene) -> None:
    """An envelope that would fill the memory of whoever parses it."""
    flood = b"[" * (envelope.MAX_BYTES + 1)
    refused(scene, TooLargeError, lambda: scene.inherit(scene.exchange.with_answer(release=flood)))
    refused(scene, TooLargeError, lambda: scene.inherit(scene.exchange.with_answer(grant=flood)))
    refused(scene, TooLargeError, lambda: scene.collective.answer_request(flood, NOW))
    refused(scene, TooLargeError, lambda: scene.collective.accept_receipt(flood, NOW))
    refused(scene, TooLargeError, lambda: scene.individual.accept_abort(flood, NOW))
    then_the_honest_bundle_is_accepted(scene)


def test_attack_malformed(scene: Scene) -> None:
    """Bytes that two readers could understand in two ways: a key twice, spaces, another encoding, something behind."""
    release, grant, _ = scene.exchange.answer
    for data in (
        release.replace(b'"payloadType"', b'"payload":"","payloadType"'),
        release.replace(b":", b": ", 1),
        release + b"\n",
        release[:-1],
        grant,
        b"",
        b"\x80\x04N.",
    ):
        refused(scene, MalformedError, lambda data=data: scene.inherit(scene.exchange.with_answer(release=data)))
    refused(scene, MalformedError, lambda: scene.collective.answer_request(grant[:-1], NOW))
    # What the collective signs is read as strictly.
    noncanonical = blob.encode(learngene(1).tensors).replace(b'"F32"', b'"I32"', 1)
    bad = scene.exchange.with_plaintext(noncanonical, seq=3, prev=digest_of(release))
    refused(scene, MalformedError, lambda: scene.inherit(bad), looked_at=True)
    then_what_follows_the_bad_release_is_accepted(scene, bad)


def test_the_honest_bundle_is_accepted(scene: Scene) -> None:
    """The scene itself, without any attack."""
    then_the_honest_bundle_is_accepted(scene)


def then_what_follows_the_bad_release_is_accepted(scene: Scene, bad: Exchange) -> None:
    """The positive control where the collective itself signed the fault: it cannot take its number back, and its next
    release ends the exchange that is still open."""
    prev = digest_of(bad.answer.release)
    good = scene.exchange.with_plaintext(blob.encode(learngene(1).tensors), seq=4, prev=prev)
    assert scene.individual.inherit(*good.answer, NOW).learngene.release.prev == prev


def test_attack_bad_signature(scene: Scene) -> None:
    """A stranger's bytes under the collective's key id, and the collective's signature over other bytes."""
    release, grant, _ = scene.exchange.answer
    opened = envelope.parse(release)
    signature = STRANGER.sign(envelope.pre_authentication_encoding(opened.payload_type, opened.payload))
    forged = envelope.encode(envelope.Envelope(opened.payload_type, opened.payload, COLLECTIVE.keyid, signature))
    refused(scene, BadSignatureError, lambda: scene.inherit(scene.exchange.with_answer(release=forged)))
    opened = envelope.parse(grant)
    altered = opened.payload.replace(INDIVIDUAL.keyid.encode(), OTHER_INDIVIDUAL.keyid.encode())
    forged = envelope.encode(envelope.Envelope(opened.payload_type, altered, opened.keyid, opened.signature))
    refused(scene, BadSignatureError, lambda: scene.inherit(scene.exchange.with_answer(grant=forged)))
    request = scene.exchange.request.replace(INDIVIDUAL.keyid.encode(), OTHER_INDIVIDUAL.keyid.encode())
    refused(scene, BadSignatureError, lambda: scene.collective.answer_request(request, NOW))
    then_the_honest_bundle_is_accepted(scene)


def by_stranger(scene: Scene) -> Exchange:
    release, grant, _ = scene.exchange.answer
    release = resigned(release, STRANGER, signer=STRANGER.keyid)
    grant = resigned(grant, STRANGER, signer=STRANGER.keyid, release=digest_of(release))
    return scene.exchange.with_answer(release=release, grant=grant)


def test_attack_unknown_key(scene: Scene) -> None:
    """A whole and consistent bundle of somebody whom nobody pinned, and an individual in the collective's place."""
    refused(scene, UnknownKeyError, lambda: scene.inherit(by_stranger(scene)))
    release = resigned(scene.exchange.answer.release, OTHER_INDIVIDUAL, signer=OTHER_INDIVIDUAL.keyid)
    refused(scene, UnknownKeyError, lambda: scene.inherit(scene.exchange.with_answer(release=release)))
    for key in (STRANGER, COLLECTIVE):
        request = resigned(scene.exchange.request, key, signer=key.keyid)
        refused(scene, UnknownKeyError, lambda request=request: scene.collective.answer_request(request, NOW))
    then_the_honest_bundle_is_accepted(scene)
    # It was the key alone: pinned, the stranger's is believed, and then the two histories are what is at fault.
    scene.trust = TRUST.with_rotated_key("collective", "collective", STRANGER.public_hex)
    scene.individual.request("condensed", NOW, b"x" * 16)
    refused(scene, UnknownKeyError, lambda: scene.inherit(by_stranger(scene)))


def test_attack_revoked_key(scene: Scene) -> None:
    """A genuine bundle, held back until its key had been revoked: whoever stole the key could have signed it."""
    scene.trust = TRUST.without_key(COLLECTIVE.keyid, "compromised").with_key(
        NEW_COLLECTIVE.public_hex, "collective", "collective"
    )
    text = refused(scene, RevokedKeyError, lambda: scene.inherit(scene.exchange))
    assert "compromised" in text
    scene.trust = TRUST.without_key(INDIVIDUAL.keyid, "retired")
    refused(scene, RevokedKeyError, lambda: scene.collective.answer_request(scene.exchange.request, NOW))
    scene.trust = TRUST
    then_the_honest_bundle_is_accepted(scene)


def test_attack_wrong_audience(scene: Scene, tmp_path: Path) -> None:
    """One individual's grant handed to another, an answer to a request that is not open, another party's request."""
    other = Site(tmp_path / "other").individual(OTHER_INDIVIDUAL)
    theirs = other.request("condensed", NOW, b"o" * 16)
    answer = scene.collective.answer_request(theirs, NOW)
    assert isinstance(answer, Answer)
    refused(scene, WrongAudienceError, lambda: scene.individual.inherit(*answer, NOW))
    other.inherit(*answer, NOW)
    stale = resigned(scene.exchange.answer.grant, COLLECTIVE, request="1" * 64)
    refused(scene, WrongAudienceError, lambda: scene.inherit(scene.exchange.with_answer(grant=stale)))
    request = resigned(scene.exchange.request, INDIVIDUAL, audience=STRANGER.keyid)
    refused(scene, WrongAudienceError, lambda: scene.collective.answer_request(request, NOW))
    unsent = make_receipt(run_id=RUN, release="1" * 64, audience=COLLECTIVE.keyid, key=INDIVIDUAL, now=NOW)
    refused(scene, WrongAudienceError, lambda: scene.collective.accept_receipt(unsent, NOW))
    then_the_honest_bundle_is_accepted(scene)


def test_attack_wrong_run(scene: Scene) -> None:
    """What the same parties said in another run, carried over into this one."""
    release = resigned(scene.exchange.answer.release, COLLECTIVE, run_id=OTHER_RUN)
    refused(scene, WrongRunError, lambda: scene.inherit(scene.exchange.with_release(release)))
    grant = resigned(scene.exchange.answer.grant, COLLECTIVE, run_id=OTHER_RUN)
    refused(scene, WrongRunError, lambda: scene.inherit(scene.exchange.with_answer(grant=grant)))
    request = resigned(scene.exchange.request, INDIVIDUAL, run_id=OTHER_RUN)
    refused(scene, WrongRunError, lambda: scene.collective.answer_request(request, NOW))
    then_the_honest_bundle_is_accepted(scene)


def test_attack_expired(scene: Scene) -> None:
    """A bundle that would hold for ever, and a trust store that holds no more."""
    eternal = resigned(scene.exchange.answer.grant, COLLECTIVE, expires_at=2**40)
    refused(scene, ExpiredError, lambda: scene.inherit(scene.exchange.with_answer(grant=eternal)))
    scene.trust = TRUST.with_expiry(NOW - 1)
    refused(scene, ExpiredError, lambda: scene.inherit(scene.exchange))
    scene.trust = TRUST
    then_the_honest_bundle_is_accepted(scene)


def test_what_has_expired_stays_so(scene: Scene) -> None:
    """A bundle or a request that the relay froze until it is old, wherever the clock is set to afterwards."""
    late = NOW + LIFE + SKEW + 1
    for now in (late, NOW):
        with pytest.raises(ExpiredError):
            scene.inherit(scene.exchange, now)
        with pytest.raises(ExpiredError):
            scene.collective.answer_request(scene.exchange.request, now)


def test_attack_rollback(scene: Scene, tmp_path: Path) -> None:
    """A collective that was restored from a backup, or wants to, grants an older release than was inherited."""
    scene.collective.publish(learngene(2), NOW, content_key(2))
    third = scene.collective.answer_request(scene.individual.request("condensed", NOW, b"3" * 16, fresh=True), NOW)
    assert isinstance(third, Answer)
    scene.individual.inherit(*third, NOW)
    backup = Site(tmp_path / "backup").collective()
    for number in range(2):
        backup.publish(learngene(number), NOW, content_key(number))
    request = scene.individual.request("condensed", NOW, b"4" * 16)
    second = backup.answer_request(request, NOW)
    assert isinstance(second, Answer)
    assert second.release == scene.exchange.answer.release
    refused(scene, RollbackError, lambda: scene.individual.inherit(*second, NOW))
    scene.collective.publish(learngene(1), NOW, content_key(4))
    fourth = scene.collective.answer_request(request, NOW)
    assert isinstance(fourth, Answer)
    scene.exchange = Exchange(request, fourth, scene.exchange.expectation)
    then_the_honest_bundle_is_accepted(scene)


def test_attack_equivocation(scene: Scene) -> None:
    """Two histories: another release under a number that was seen, or one that follows another one than was seen."""
    release = scene.exchange.answer.release
    for changes in (
        {"seq": 1, "prev": payloads.NO_RELEASE},
        {"prev": "1" * 64},
    ):
        other = resigned(release, COLLECTIVE, **changes)
        refused(scene, EquivocationError, lambda other=other: scene.inherit(scene.exchange.with_release(other)))
    again = resigned(scene.exchange.request, INDIVIDUAL, form="paper")
    refused(scene, EquivocationError, lambda: scene.collective.answer_request(again, NOW))
    then_the_honest_bundle_is_accepted(scene)


def test_attack_digest_mismatch(scene: Scene) -> None:
    """A blob that was altered, cut or exchanged, and the grant of another release."""
    release, _, data = scene.exchange.answer
    for other in (flipped(data, 9), data[:-1], data + b"\0", b"", blob.encode(learngene(1).tensors)):
        refused(
            scene,
            DigestMismatchError,
            lambda other=other: scene.inherit(scene.exchange.with_answer(blob=other)),
            looked_at=True,
        )
    another = resigned(release, COLLECTIVE, issued_at=NOW + 1)
    refused(scene, DigestMismatchError, lambda: scene.inherit(scene.exchange.with_answer(release=another)))
    wrong_key = scene.exchange.granted(release, content_key=b"x" * 32)
    refused(
        scene,
        DigestMismatchError,
        lambda: scene.inherit(scene.exchange.with_answer(grant=wrong_key)),
        looked_at=True,
    )
    then_the_honest_bundle_is_accepted(scene)


def test_attack_policy_denied(scene: Scene) -> None:
    """A Fisher diagonal that follows single images, and a classifier on board; in and out."""
    few = learngene(samples=128)
    release = resigned(scene.exchange.answer.release, COLLECTIVE, fisher=few.fisher)
    refused(scene, PolicyDeniedError, lambda: scene.inherit(scene.exchange.with_release(release)))
    described = payloads.decode(payloads.Release, envelope.parse(scene.exchange.answer.release).payload).tensors
    extra = payloads.TensorDescription(name="classifier.weight", role="weight", dtype="float32", shape=(5, 6))
    release = resigned(scene.exchange.answer.release, COLLECTIVE, tensors=(*described, extra))
    refused(scene, PolicyDeniedError, lambda: scene.inherit(scene.exchange.with_release(release)))
    refused(scene, PolicyDeniedError, lambda: scene.collective.publish(few, NOW, content_key(9)))
    request = resigned(scene.exchange.request, INDIVIDUAL, form="paper", nonce="f" * 32)
    refused(scene, PolicyDeniedError, lambda: scene.collective.answer_request(request, NOW))
    then_the_honest_bundle_is_accepted(scene)


@pytest.mark.parametrize(
    ("name", "value"),
    [("block.0.conv.weight", np.nan), ("block.1.norm.bias", np.inf), ("fisher.block.0.conv.weight", -1.0)],
)
def test_attack_non_finite(scene: Scene, name: str, value: float) -> None:
    """A learngene that would poison every network it goes into, properly signed by the collective."""
    prev = digest_of(scene.exchange.answer.release)
    bad = scene.exchange.with_plaintext(poisoned(name, value), seq=3, prev=prev)
    refused(scene, NonFiniteError, lambda: scene.inherit(bad), looked_at=True)
    diverged = dataclasses.replace(learngene(2), tensors=blob.decode(poisoned(name, value)))
    refused(scene, NonFiniteError, lambda: scene.collective.publish(diverged, NOW, content_key(2)))
    then_what_follows_the_bad_release_is_accepted(scene, bad)


def test_attack_storage_failed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full: what cannot be stored is neither inherited nor acknowledged, and nothing is sent."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        before = scene.ledger()
        with pytest.raises(StorageFailedError, match="No space left"):
            scene.inherit(scene.exchange)
        refused(scene, StorageFailedError, lambda: scene.collective.publish(learngene(2), NOW, content_key(2)))
    after = scene.ledger()
    changed = {name for name in before if before[name] != after[name]}
    # The bundle was good, and that is remembered: its delivery again ends the exchange.
    assert changed == {f"{scene.there.folder.name} exchanges", f"{scene.there.folder.name} seen"}
    then_the_honest_bundle_is_accepted(scene)


def test_there_is_an_attack_for_every_class_of_refusal() -> None:
    attacks = {name.removeprefix("test_attack_") for name in globals() if name.startswith("test_attack_")}
    assert attacks == {error.code for error in REFUSALS}
