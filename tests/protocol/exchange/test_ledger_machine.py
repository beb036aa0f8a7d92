"""The two ledgers against plain models: Hypothesis makes any step in any order, with restarts and lost files."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from protocol.errors import EquivocationError, InputError, RefusedError, RollbackError, StorageFailedError
from protocol.exchange import content_keys
from protocol.exchange.collective_ledger import CollectiveLedger, StoredRelease
from protocol.exchange.collective_ledger import stored_release as opened_release
from protocol.exchange.content_keys import ClosedKey
from protocol.exchange.expectation import Expectation
from protocol.exchange.individual_ledger import IndividualLedger
from protocol.exchange.verification import (
    VerifiedEnvelopes,
    VerifiedLearngene,
    VerifiedRequest,
    verify_content,
    verify_envelopes,
    verify_request,
)
from protocol.keys.signing_key import SigningKey
from protocol.learngene.architecture import Form
from protocol.messages import envelope, payloads
from protocol.messages.builders import make_grant, make_release, make_request
from protocol.messages.payloads import NO_RELEASE, Request
from protocol.trust.signed_trust import TrustSeen
from tests.protocol.parties import (
    COLLECTIVE,
    COLLECTIVE_POLICY,
    ENCRYPTION,
    INDIVIDUAL,
    INDIVIDUAL_POLICY,
    NOW,
    OTHER_INDIVIDUAL,
    OTHER_RUN,
    RUN,
    TRUST,
    learngene,
)
from tests.protocol.plain_ledger import (
    OPEN,
    Parts,
    PlainCollective,
    PlainGrant,
    PlainIndividual,
    PlainRelease,
    PlainStored,
    memory_folder,
    name_of,
    observe_collective,
    observe_individual,
)

RUNS = (RUN, OTHER_RUN)
FORMS: tuple[Form, ...] = ("condensed", "paper")
ABSENT = "a" * 64
MACHINES = settings(max_examples=100, stateful_step_count=30, deadline=None, derandomize=True)


@pytest.fixture(autouse=True, scope="module")
def quick_reading() -> Iterator[None]:
    """Strict reading is a pure function of bytes, tested elsewhere; the same few releases come again and again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payloads, "decode", lru_cache(payloads.decode))
        patch.setattr(envelope, "parse", lru_cache(envelope.parse))
        yield


def outcome(work: Callable[[], object]) -> object:
    """What a step answers, or the class with which it is refused."""
    try:
        return work()
    except (RefusedError, InputError, ValueError) as error:
        return type(error)


@dataclass(frozen=True)
class Link:
    """A release that a collective could make, signed and sealed."""

    data: bytes
    content_key: ClosedKey
    ciphertext: bytes
    plain: PlainRelease

    @property
    def stored(self) -> StoredRelease:
        return opened_release(self.data, self.content_key.closed)


@cache
def link(run: str, form: Form, epoch: int, seq: int, prev: str, seed: int, withdraws: tuple[str, ...] = ()) -> Link:
    """A release with these numbers, whether they fit or not."""
    content_key = sha256(repr((run, form, epoch, seq, prev, seed, withdraws)).encode()).digest()
    data, ciphertext = make_release(
        learngene(seed, form, None),
        run_id=run,
        seq=seq,
        prev=prev,
        key=COLLECTIVE,
        key_epoch=epoch,
        policy_sha256=COLLECTIVE_POLICY.sha256,
        now=NOW,
        content_key=content_key,
        withdraws=withdraws,
    )
    digest = name_of(data)
    closed = content_keys.close(COLLECTIVE, content_key, digest)
    return Link(data, closed, ciphertext, PlainRelease(run, form, epoch, seq, digest, prev, withdraws))


@cache
def links() -> tuple[Link, ...]:
    """In each run a chain of four, a second history beside it, and one that skips a number."""
    made = []
    for run in RUNS:
        prev = NO_RELEASE
        withdraws: tuple[str, ...] = ()
        for seq, form in enumerate((*FORMS, *FORMS), start=1):
            one = link(run, form, 1, seq, prev, 0, withdraws)
            made += [one, link(run, FORMS[seq % 2], 1, seq, prev, 1)]
            prev, withdraws = one.plain.digest, (*withdraws, one.plain.digest)[-1:]
        made += [link(run, "paper", 1, 6, prev, 2), link(run, "condensed", 1, 5, ABSENT, 3)]
    return tuple(made)


@cache
def requests() -> tuple[tuple[bytes, VerifiedRequest], ...]:
    """Of two individuals in two runs: two nonces each, and one of these in a second request."""
    made = []
    for run in RUNS:
        for key in (INDIVIDUAL, OTHER_INDIVIDUAL):
            for form, nonce in zip((*FORMS, "paper"), (b"1" * 16, b"2" * 16, b"1" * 16), strict=True):
                data = make_request(
                    run_id=run,
                    audience=COLLECTIVE.keyid,
                    form=form,
                    key=key,
                    encryption=ENCRYPTION,
                    now=NOW,
                    nonce=nonce,
                )
                verified = verify_request(
                    data, trust=TRUST, run_id=run, audience=COLLECTIVE.keyid, known=lambda *_: None, now=NOW
                )
                made.append((data, verified))
    return tuple(made)


class Ledgers(RuleBasedStateMachine):
    """What both machines share: a folder, restarts, and the memory of trust."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="learngene-ledger-", dir=memory_folder()))
        self.trust: TrustSeen | None = None
        self.ledger = self.open()

    def open(self) -> CollectiveLedger | IndividualLedger:
        raise NotImplementedError

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.folder)

    @rule()
    def restart(self) -> None:
        self.ledger.close()
        self.ledger = self.open()

    @rule(version=st.integers(1, 3), word=st.sampled_from("ab"))
    def remember_trust(self, version: int, word: str) -> None:
        seen = TrustSeen(version, word * 64, "c" * 64, "d" * 64)
        try:
            self.ledger.remember_trust(seen)
        except (RollbackError, EquivocationError):
            # Under one root, neither back nor beside.
            assert self.trust is not None
            assert seen.version < self.trust.version or (seen.version == self.trust.version and seen != self.trust)
        else:
            assert self.trust is None or seen == self.trust or seen.version > self.trust.version
            self.trust = seen

    @invariant()
    def trust_is_remembered(self) -> None:
        assert self.ledger.trust_seen() == self.trust


class CollectiveMachine(Ledgers):
    """The collective's ledger beside its model."""

    ledger: CollectiveLedger

    def __init__(self) -> None:
        super().__init__()
        self.model = PlainCollective()
        self.published: list[Link] = []
        self.blobs: set[str] = set()

    def open(self) -> CollectiveLedger:
        return CollectiveLedger(self.folder)

    @rule(number=st.integers(0, 17))
    def add_release(self, number: int) -> None:
        self.add(links()[number])

    def add(self, one: Link) -> None:
        plain = PlainStored(one.data, one.content_key, one.plain, one.ciphertext)
        answer = outcome(lambda: self.ledger.add_release(one.data, one.content_key, one.ciphertext))
        expected = outcome(lambda: self.model.add_release(plain))
        assert answer == (one.stored if expected is None else expected)
        if expected is None:
            self.published.append(one)
            self.blobs.add(one.plain.digest)

    @rule(
        run=st.sampled_from(RUNS),
        form=st.sampled_from(FORMS),
        seed=st.integers(4, 5),
        named=st.sampled_from(["the withdrawn", "the withdrawn", "all", "none"]),
    )
    def add_the_next_release(self, run: str, form: Form, seed: int, named: str) -> None:
        """It follows the last one; it may fail to say what is withdrawn."""
        chain = self.model.releases(run)
        seq, prev = (chain[-1].release.seq + 1, chain[-1].release.digest) if chain else (1, NO_RELEASE)
        withdraws = [one.release.digest for one in chain if named == "all" or (one.withdrawn and named != "none")]
        self.add(link(run, form, 1, seq, prev, seed, tuple(withdraws)))

    def any_release(self, data: st.DataObject) -> Link:
        """Mostly one that is published."""
        return data.draw(st.sampled_from(links() if not self.published else [*self.published * 9, *links()]))

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        one = self.any_release(data).plain
        answer = outcome(lambda: self.ledger.withdraw(one.run_id, one.digest) and None)
        assert answer == outcome(lambda: self.model.withdraw(one.run_id, one.digest))

    @rule(
        data=st.data(),
        number=st.integers(0, 11),
        word=st.sampled_from([b"grant", b"another"]),
        knows=st.sampled_from(["the answer", "the answer", "none", "a former one"]),
    )
    def add_grant(self, data: st.DataObject, number: int, word: bytes, knows: str) -> None:
        request, one = requests()[number][1], self.any_release(data)
        payload, answered = request.payload, self.model.grant(request.digest)
        instead_of = {"the answer": None if answered is None else answered.data, "a former one": b"former"}.get(knows)
        grant = PlainGrant(request.digest, payload.run_id, request.key.keyid, payload.nonce, one.plain.digest, word)
        answer = outcome(lambda: self.ledger.add_grant(request, one.stored, word, instead_of=instead_of))
        assert answer == outcome(lambda: self.model.add_grant(grant, instead_of))

    @rule(data=st.data(), key=st.sampled_from([INDIVIDUAL, OTHER_INDIVIDUAL]), word=st.binary(max_size=2))
    def add_receipt(self, data: st.DataObject, key: SigningKey, word: bytes) -> None:
        digest = self.any_release(data).plain.digest
        answer = outcome(lambda: self.ledger.add_receipt(key.keyid, digest, word))
        assert answer == outcome(lambda: self.model.add_receipt(key.keyid, digest, word))

    @precondition(lambda self: self.model.chain)
    @rule(data=st.data(), change=st.sampled_from(["lose", "change", "keep"]))
    def touch_a_blob(self, data: st.DataObject, change: str) -> None:
        """A file is lost or changed on disk, or stored again."""
        stored = data.draw(st.sampled_from(self.model.chain))
        digest = stored.release.digest
        path = self.folder / "releases" / f"{name_of(stored.ciphertext)}.blob"
        if change == "keep":
            self.ledger.keep_blob(self.ledger.release(digest), stored.ciphertext)
            self.blobs.add(digest)
        else:
            self.blobs.discard(digest)
            path.unlink(missing_ok=True)
            if change == "change":
                path.write_bytes(stored.ciphertext[:-1])

    @invariant()
    def both_say_the_same(self) -> None:
        names = {one.digest: (one.payload.run_id, one.key.keyid, one.payload.nonce) for _, one in requests()}
        assert observe_collective(self.ledger, RUNS, FORMS, names) == self.model.observe(RUNS, FORMS, tuple(names))
        for stored in self.model.chain:
            one = self.ledger.release(stored.release.digest)
            whole = one.digest in self.blobs
            assert outcome(partial(self.ledger.blob, one)) == (stored.ciphertext if whole else StorageFailedError)
        assert outcome(lambda: self.ledger.release(ABSENT)) is StorageFailedError

    @invariant()
    def no_number_twice_and_no_receipt_without_a_release(self) -> None:
        for run in RUNS:
            chain = self.ledger.releases(run)
            assert [one.seq for one in chain] == list(range(1, len(chain) + 1))


@dataclass(frozen=True)
class Answered:
    """A release, granted to a request: verified as an individual would."""

    plain: PlainRelease
    envelopes: VerifiedEnvelopes
    learngene: VerifiedLearngene

    @property
    def parts(self) -> Parts:
        sealed = self.learngene.sealed
        return sealed.release_bytes, sealed.grant_bytes, sealed.ciphertext


@cache
def answers() -> tuple[Answered, ...]:
    """Every release of ``links`` under two grants each."""
    return tuple(_answered(one, number) for one in links() for number in (0, 1))


def _answered(one: Link, number: int) -> Answered:
    run, form = one.plain.run_id, one.plain.form
    request = make_request(
        run_id=run,
        audience=COLLECTIVE.keyid,
        form=form,
        key=INDIVIDUAL,
        encryption=ENCRYPTION,
        now=NOW,
        nonce=bytes([number]) * 16,
    )
    grant = make_grant(
        payloads.decode(Request, envelope.parse(request).payload),
        name_of(request),
        one.stored.payload,
        one.plain.digest,
        key=COLLECTIVE,
        now=NOW,
        content_key=content_keys.reopen(COLLECTIVE, one.content_key.closed, one.plain.digest),
    )
    envelopes = verify_envelopes(
        one.data,
        grant,
        expectation=Expectation(run, INDIVIDUAL.keyid, {name_of(request): form}),
        seen=(),
        trust=TRUST,
        policy=INDIVIDUAL_POLICY,
        now=NOW,
    )
    return Answered(one.plain, envelopes, verify_content(envelopes, one.ciphertext, ENCRYPTION))


class IndividualMachine(Ledgers):
    """The individual's ledger beside its model."""

    ledger: IndividualLedger

    def __init__(self) -> None:
        super().__init__()
        self.model = PlainIndividual()

    def open(self) -> IndividualLedger:
        return IndividualLedger(self.folder)

    @rule(run=st.sampled_from(RUNS), form=st.sampled_from(FORMS), request=st.sampled_from([b"1", b"2", b"3"]))
    def requested(self, run: str, form: Form, request: bytes) -> None:
        data = request + run.encode() + form.encode()
        self.ledger.requested(run, form, data)
        self.model.requested(run, form, data)

    @rule(number=st.integers(0, 35))
    def received(self, number: int) -> None:
        one = answers()[number]
        answer = outcome(lambda: self.ledger.received(one.envelopes))
        assert answer == outcome(lambda: self.model.received(one.plain))

    @rule(number=st.integers(0, 35))
    def refused(self, number: int) -> None:
        one = answers()[number]
        answer = outcome(lambda: self.ledger.refused(one.envelopes))
        assert answer == outcome(lambda: self.model.refused(one.plain))

    @rule(number=st.integers(0, 35))
    def verified(self, number: int) -> None:
        one = answers()[number]
        answer = outcome(lambda: self.ledger.verified(one.learngene))
        assert answer == outcome(lambda: self.model.verified(one.plain))

    @rule(number=st.integers(0, 35), again=st.booleans())
    def commit(self, number: int, again: bool = False) -> None:
        one = answers()[number]
        answer = outcome(lambda: self.ledger.commit(one.learngene, again=again))
        assert answer == outcome(lambda: self.model.commit(one.plain, one.parts, again=again))

    @precondition(lambda self: any(exchange.state in OPEN for exchange in self.model.exchanges.values()))
    @rule(data=st.data())
    def a_whole_exchange(self, data: st.DataObject) -> None:
        """So that what happens to committed learngenes is seen often."""
        waiting = [name for name, exchange in self.model.exchanges.items() if exchange.state in OPEN]
        run, form = data.draw(st.sampled_from(waiting))
        fitting = [n for n, one in enumerate(answers()) if (one.plain.run_id, one.plain.form) == (run, form)]
        number = data.draw(st.sampled_from(fitting))
        for step in (self.received, self.verified, self.commit):
            step(number)

    @precondition(lambda self: self.model.inherited)
    @rule(data=st.data())
    def the_same_release_again(self, data: st.DataObject) -> None:
        """A committed one answers another request, under either grant."""
        run, digest = data.draw(st.sampled_from(sorted(self.model.inherited)))
        self.requested(run, self.model.inherited[run, digest].form, b"4")
        number = data.draw(st.sampled_from([n for n, one in enumerate(answers()) if one.plain.digest == digest]))
        for step in (self.received, self.verified, self.commit):
            step(number)

    @precondition(lambda self: self.model.inherited)
    @rule(data=st.data(), receipt=st.sampled_from([b"first", b"second"]))
    def acknowledged(self, data: st.DataObject, receipt: bytes) -> None:
        run, digest = data.draw(st.sampled_from(sorted(self.model.inherited)))
        inherited = self.ledger.inherited(run, digest)
        assert inherited is not None
        self.ledger.acknowledged(run, inherited, receipt)
        self.model.acknowledged(run, digest, receipt)
        # In the other run it was never inherited.
        other = OTHER_RUN if run == RUN else RUN
        assert outcome(lambda: self.ledger.acknowledged(other, inherited, receipt)) is StorageFailedError

    @rule(run=st.sampled_from(RUNS), number=st.integers(0, 35))
    def withdraw(self, run: str, number: int) -> None:
        digest = answers()[number].plain.digest
        self.ledger.withdraw(run, digest)
        self.model.withdraw(run, digest)

    @precondition(lambda self: self.model.inherited)
    @rule(data=st.data(), name=st.sampled_from(["release.json", "grant.json", "blob.sealed"]), lost=st.booleans())
    def damage(self, data: st.DataObject, name: str, lost: bool) -> None:
        """A file is lost or changed on disk."""
        _, digest = data.draw(st.sampled_from(sorted(self.model.inherited)))
        path = self.folder / "learngenes" / digest / name
        path.unlink(missing_ok=True)
        if not lost:
            path.write_bytes(b"{}")
        self.model.files.pop(digest, None)

    @invariant()
    def both_say_the_same(self) -> None:
        digests = tuple(one.plain.digest for one in links())
        observed = observe_individual(self.ledger, RUNS, FORMS, digests)
        assert observed == self.model.observe(RUNS, FORMS, digests)

    @invariant()
    def what_is_committed_is_read_back_whole_or_not_at_all(self) -> None:
        for (run, digest), expected in self.model.inherited.items():
            inherited = self.ledger.inherited(run, digest)
            assert inherited == expected
            if self.model.is_whole(expected):
                sealed = self.ledger.load(expected)
                assert (sealed.release_bytes, sealed.grant_bytes, sealed.ciphertext) == self.model.files[digest]
            else:
                assert outcome(partial(self.ledger.load, expected)) is StorageFailedError


TestCollectiveLedger = CollectiveMachine.TestCase
TestCollectiveLedger.settings = MACHINES
TestIndividualLedger = IndividualMachine.TestCase
TestIndividualLedger.settings = MACHINES


@pytest.mark.parametrize(
    ("machine", "place", "name", "replacement"),
    [
        (CollectiveMachine, CollectiveLedger, "withdraw", lambda *_: None),
        (CollectiveMachine, PlainCollective, "is_granted", lambda *_: True),
        (CollectiveMachine, CollectiveLedger, "blob", lambda *_: b"blob"),
        (IndividualMachine, IndividualLedger, "_advance", lambda *_: None),
        (IndividualMachine, IndividualLedger, "_is_whole", lambda *_: False),
    ],
)
def test_the_machines_can_fail(
    monkeypatch: pytest.MonkeyPatch, machine: type[Ledgers], place: object, name: str, replacement: object
) -> None:
    monkeypatch.setattr(place, name, replacement)
    # Found, and not made small.
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=settings(MACHINES, phases=[Phase.generate]))
