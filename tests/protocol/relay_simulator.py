"""A repository simulator, after python-tuf's: honest parties with real endpoints, an oracle that knows what they did
and foresees every answer, and a relay that holds all bytes ever sent and delivers them as maliciously as a seed says.

The oracle reads no signature and opens no seal. It knows the honest messages by their exact bytes: whatever else comes
must be refused, and whatever is honest, asked for and in time must be accepted.
"""

import base64
import contextlib
import json
import os
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from protocol.errors import RefusedError
from protocol.exchange.audit import Crossings
from protocol.exchange.collective_endpoint import Answer, CollectiveEndpoint, Withdrawal
from protocol.exchange.collective_ledger import CollectiveLedger, StoredRelease
from protocol.exchange.content_keys import ClosedKey
from protocol.exchange.individual_endpoint import IndividualEndpoint
from protocol.exchange.individual_ledger import IndividualLedger, State
from protocol.exchange.verification import VerifiedLearngene
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.party_keys import NodeKeys
from protocol.keys.signing_key import SigningKey
from protocol.learngene.architecture import Architecture, Block, Form, InputContract
from protocol.learngene.learngene import FisherDescription, Learngene
from protocol.messages import envelope
from protocol.messages.bundle_file import BundleFile
from protocol.messages.payloads import LIFE, SKEW
from protocol.trust.trust_store import TrustStore
from tests.protocol.parties import (
    COLLECTIVE,
    COLLECTIVE_POLICY,
    ENCRYPTION,
    HYBRID_ENCRYPTION,
    INDIVIDUAL,
    INDIVIDUAL_POLICY,
    NOW,
    OTHER_ENCRYPTION,
    OTHER_INDIVIDUAL,
    OTHER_RUN,
    RUN,
    STRANGER,
    TRUST,
)
from tests.protocol.plain_ledger import (
    OPEN,
    STEPS,
    PlainCollective,
    PlainGrant,
    PlainIndividual,
    PlainRelease,
    PlainStored,
    name_of,
    observe_individual,
)

Channel = Literal["request", "receipt", "bundle", "file", "abort"]
#: ``known``: nothing new, and the answer of the first time. ``cut``: the receiver lost its power in the middle.
Outcome = Literal["accepted", "known", "refused", "cut"]
#: Before or after which step of a ledger the power fails.
Cut = tuple[str, Literal["before", "after"]]

RUNS = (RUN, OTHER_RUN)
FORMS: tuple[Form, ...] = ("paper", "paper-middle")
CONTENTS = 4

THIRD_INDIVIDUAL = SigningKey.from_seed(b"k" * 32)
PEOPLE: tuple[tuple[SigningKey, EncryptionKey], ...] = (
    (INDIVIDUAL, ENCRYPTION),
    (OTHER_INDIVIDUAL, OTHER_ENCRYPTION),
    (THIRD_INDIVIDUAL, HYBRID_ENCRYPTION),
)
#: The collective's keys, one after the other; and the trust store while each of them is the current one.
COLLECTIVE_KEYS = (COLLECTIVE, SigningKey.from_seed(b"d" * 32), SigningKey.from_seed(b"x" * 32))
_FIRST_TRUST = TRUST.with_key(THIRD_INDIVIDUAL.public_hex, "individual", "individual-3")
_SECOND_TRUST = _FIRST_TRUST.with_rotated_key("collective", "collective", COLLECTIVE_KEYS[1].public_hex)
_THIRD_TRUST = _SECOND_TRUST.with_rotated_key("collective", "collective", COLLECTIVE_KEYS[2].public_hex)
TRUSTS = (_FIRST_TRUST, _SECOND_TRUST, _THIRD_TRUST)


class ViolationError(AssertionError):
    """Something happened that must never happen."""


class PowerCut(BaseException):
    """The power fails at this moment. Not an ``Exception``: no party can catch it."""


@cache
def content(seed: int, form: Form) -> Learngene:
    """A learngene of one small block; every fourth one carries a Fisher diagonal."""
    block = Block(role="top" if form == "paper" else "middle", in_channels=1, out_channels=2, pool=False)
    architecture = Architecture(form=form, input=InputContract(height=8, width=8, channels=1), blocks=(block,))
    fisher = FisherDescription(source="collective", estimator="sampled", samples=1024, clip_micro=0)
    carried = fisher if seed % 4 == 1 else None
    rng = np.random.default_rng([seed, FORMS.index(form)])
    shapes = architecture.tensors(fisher=carried is not None)
    tensors = {name: rng.uniform(0.1, 1, shape).astype(np.float32) for name, (_, shape) in shapes.items()}
    return Learngene(architecture, tensors, carried)


@lru_cache(maxsize=512)
def read(data: bytes) -> dict[str, Any]:
    """The payload of an honest envelope, by the standard library alone."""
    payload: dict[str, Any] = json.loads(base64.b64decode(json.loads(data)["payload"]))
    return payload


class NoCrossings(Crossings):
    """The log of crossings is nobody's matter here: it would only take time."""

    def append(self, *_: object, **__: object) -> None:
        """Nothing is written."""


class Watch:
    """Stands between an endpoint and its ledger: the power fails once at ``cut``, and an individual's exchange may only
    move as its states allow."""

    def __init__(self, ledger: CollectiveLedger | IndividualLedger) -> None:
        self.cut: Cut | None = None
        self._ledger = ledger
        for step in ("add_release", "add_grant", "add_receipt", *STEPS, "acknowledged"):
            if hasattr(ledger, step):
                setattr(ledger, step, partial(self._made, step, getattr(ledger, step)))

    def _made(self, step: str, method: Callable[..., object], *values: Any, **named: object) -> object:  # noqa: ANN401
        exchange = None
        if isinstance(self._ledger, IndividualLedger) and step in STEPS:
            about = values if step == "requested" else (values[0].release.run_id, values[0].release.form)
            exchange = partial(self._ledger.state, about[0], about[1])
        before = None if exchange is None else exchange()
        if self.cut == (step, "before"):
            raise PowerCut
        answer = method(*values, **named)
        if exchange is not None and (before not in STEPS[step][0] or exchange() is not STEPS[step][1]):
            raise ViolationError(f"{step}: {before} -> {exchange()}")
        if self.cut == (step, "after"):
            raise PowerCut
        return answer


@dataclass(frozen=True)
class Parcel:
    """Bytes on their way: over which channel, in whose exchange of which run."""

    channel: Channel
    who: int
    run: str
    parts: tuple[bytes, ...]


_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND name != 'clock' ORDER BY name"


@dataclass
class _Party:
    folder: Path
    trust: TrustStore
    #: How far its clock is off, in seconds.
    offset: int = 0
    #: The latest time that it decided anything by.
    seen: int = 0
    watch: Watch | None = None
    observer: sqlite3.Connection | None = None
    _tables: tuple[str, ...] = ()
    _rows: tuple[int, tuple[object, ...]] | None = None

    def dump(self) -> tuple[object, ...]:
        """Every row of its database but for the time, and its files."""
        if self.observer is None:
            self.observer = sqlite3.connect(f"file:{self.folder / 'ledger.db'}?mode=ro", uri=True)
            names = self.observer.execute(_TABLES)
            self._tables = tuple(name for (name,) in names)
        # It counts what other connections have committed.
        (version,) = self.observer.execute("PRAGMA data_version").fetchone()
        if self._rows is None or self._rows[0] != version:
            rows = tuple(tuple(self.observer.execute(f"SELECT * FROM {name}")) for name in self._tables)
            self._rows = version, rows
        return *self._rows[1], self.files()

    def files(self) -> dict[str, int]:
        """Name and inode of what lies in the folder for files."""
        with os.scandir(self.folder / self._folder_of_files) as entries:
            return {entry.name: entry.inode() for entry in entries}

    _folder_of_files = "learngenes"


@dataclass
class Individual(_Party):
    """One individual, its ledger as it should be, and its endpoints (one for each run)."""

    key: SigningKey = INDIVIDUAL
    encryption: EncryptionKey = ENCRYPTION
    model: PlainIndividual = field(default_factory=PlainIndividual)
    ledger: IndividualLedger = field(init=False)
    endpoints: dict[str, IndividualEndpoint] = field(default_factory=dict)
    #: The folder's inode of every committed learngene.
    applied: dict[str, int | None] = field(default_factory=dict)

    @property
    def collective(self) -> str:
        """Key id of the collective that it believes."""
        return self.trust.only("collective").keyid

    def start(self) -> None:
        """Begin, or begin again after the power failed."""
        if self.watch is not None:
            self.ledger.close()
        self.ledger = IndividualLedger(self.folder)
        self.watch = Watch(self.ledger)
        crossings = NoCrossings(self.folder / "crossings.jsonl", "individual", lambda: NOW)
        for run in RUNS:
            self.endpoints[run] = IndividualEndpoint(
                keys=NodeKeys(self.key, self.encryption),
                trust=lambda: self.trust,
                ledger=self.ledger,
                policy=INDIVIDUAL_POLICY,
                run_id=run,
                crossings=crossings,
            )


@dataclass
class Collective(_Party):
    """The collective, its ledger as it should be, and its endpoints (one for each run)."""

    key: SigningKey = COLLECTIVE
    model: PlainCollective = field(default_factory=PlainCollective)
    ledger: CollectiveLedger = field(init=False)
    endpoints: dict[str, CollectiveEndpoint] = field(default_factory=dict)

    _folder_of_files = "releases"

    def start(self) -> None:
        """Begin, or begin again: after the power failed, or with a new key."""
        if self.watch is not None:
            self.ledger.close()
        self.ledger = CollectiveLedger(self.folder)
        self.watch = Watch(self.ledger)
        crossings = NoCrossings(self.folder / "crossings.jsonl", "collective", lambda: NOW)
        for run in RUNS:
            self.endpoints[run] = CollectiveEndpoint(
                keys=NodeKeys(self.key, encryption=None),
                trust=lambda: self.trust,
                ledger=self.ledger,
                policy=COLLECTIVE_POLICY,
                run_id=run,
                crossings=crossings,
            )


@dataclass(frozen=True)
class _Published:
    """What the oracle knows of a release."""

    data: bytes
    plain: PlainRelease
    signer: str
    blob: bytes
    learngene: Learngene


@dataclass
class _Plan:
    """What a delivery must do: how it ends, and the steps of the ledger, each with what it does to the model."""

    outcome: Outcome
    steps: list[tuple[str, Callable[[], object]]] = field(default_factory=list)
    #: Whatever the steps, nothing changes.
    quiet: bool = False

    @property
    def changes_nothing(self) -> bool:
        return self.quiet or not self.steps


@cache
def _published_before(folder: Path, variant: int) -> tuple[Path, tuple[tuple[str, Form, int], ...]]:
    """A collective's folder with releases in both runs, made once: schedules begin with a copy."""
    published: tuple[tuple[str, Form, int], ...] = (
        ((RUN, "paper", 0), (OTHER_RUN, "paper", 1)),
        ((RUN, "paper", 0), (RUN, "paper-middle", 0), (OTHER_RUN, "paper", 0)),
        ((RUN, "paper-middle", 1), (OTHER_RUN, "paper", 0), (RUN, "paper", 1)),
    )[variant]
    collective = Collective(folder / f"published-{variant}", TRUSTS[0])
    collective.start()
    for number, (run, form, seed) in enumerate(published):
        collective.endpoints[run].publish(content(seed, form), NOW, bytes([variant, number]) * 16)
    collective.ledger.close()
    return collective.folder, published


class World:
    """A collective and two individuals, what they said, and what of it is true.

    Args:
        folder: an empty folder of this world's own; templates are kept beside it.
        rng: all chance comes from it, but for the randomness inside HPKE.
    """

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.rng = rng
        self.now = NOW + SKEW
        self.releases: dict[bytes, _Published] = {}
        self.grants: set[bytes] = set()
        self.requests: set[bytes] = set()
        self.receipts: set[bytes] = set()
        self.aborts: set[bytes] = set()
        self.heard: list[Parcel] = []
        self.waiting: list[Parcel] = []
        #: Words of the refusals that were foreseen.
        self.codes: Counter[str] = Counter()
        self.epoch = 0
        template, published = _published_before(folder.parent, rng.randrange(3))
        shutil.copytree(template, folder / "collective")
        self.collective = Collective(folder / "collective", TRUSTS[0], rng.randint(-100, 100), seen=NOW)
        self.collective.start()
        for run in RUNS:
            seeds = [(form, seed) for one, form, seed in published if one == run]
            for stored, (form, seed) in zip(self.collective.ledger.releases(run), seeds, strict=True):
                self._learn_release(stored, content(seed, form))
        self.individuals = [
            Individual(folder / f"individual-{number}", TRUSTS[0], rng.randint(-100, 100), key=key, encryption=opens)
            for number, (key, opens) in enumerate(rng.sample(PEOPLE, 2))
        ]
        for individual in self.individuals:
            individual.start()
        self._dumps = [party.dump() for party in self.parties]

    def close(self) -> None:
        """End it."""
        for party in self.parties:
            party.ledger.close()
            if party.observer is not None:
                party.observer.close()

    # What honest parties do of their own accord.

    def publish(self, run: str, form: Form, seed: int, cut: Cut | None = None) -> None:
        """The collective publishes a content; the same one twice is one release."""
        clock, now = self._decides(self.collective)
        learngene, key = content(seed, form), self.collective.key
        last = self.latest(run, form)
        withdrawn = any(
            one.learngene is learngene and one.plain.run_id == run and self._is_withdrawn(one)
            for one in self.releases.values()
        )
        again = (
            last is not None
            and last.learngene is learngene
            and last.signer == key.keyid
            and self._may_be_sent(read(last.data), now)
            and self._tells(last)
        )
        with self._cut(self.collective, cut) as fate:
            try:
                self.collective.endpoints[run].publish(learngene, clock, self.rng.randbytes(32))
                self.expect(not withdrawn, "a withdrawn learngene was published again")
            except RefusedError as error:
                self.expect(withdrawn, f"an honest learngene was not published: {error}")
        if not (withdrawn or again) and fate.stored:
            stored = self.collective.ledger.latest(run)
            assert stored is not None
            self._learn_release(stored, learngene)
        self._check(self.collective, unchanged=withdrawn or again or not fate.stored)

    def withdraw(self, run: str, digest: str) -> None:
        """The collective withdraws a release."""
        self.collective.endpoints[run].withdraw(digest)
        self.collective.model.withdraw(run, digest)
        self._check(self.collective)

    def rotate(self) -> None:
        """The collective gets its next key; the individuals learn of it when they get the new trust store."""
        if self.epoch + 1 == len(COLLECTIVE_KEYS):
            return
        self.epoch += 1
        self.collective.key, self.collective.trust = COLLECTIVE_KEYS[self.epoch], TRUSTS[self.epoch]
        self.collective.start()
        self._check(self.collective, unchanged=True)

    def learn_trust(self, who: int) -> None:
        """An individual gets the newest trust store."""
        self.individuals[who].trust = TRUSTS[self.epoch]

    def restart(self, who: int | None) -> None:
        """The power fails at a party (None: the collective) while it waits."""
        party = self.collective if who is None else self.individuals[who]
        party.start()
        self._check(party, unchanged=True)

    def request(self, who: int, run: str, form: Form, *, fresh: bool = False, cut: Cut | None = None) -> Parcel | None:
        """An individual asks for a form. None: the power failed."""
        individual = self.individuals[who]
        clock, now = self._decides(individual)
        exchange = individual.model.exchanges.get((run, form))
        again = (
            exchange is not None
            and not fresh
            and exchange.state in OPEN
            and self._may_be_sent(read(exchange.request), now)
            and read(exchange.request)["audience"] == individual.collective
        )
        with self._cut(individual, cut) as fate:
            data = individual.endpoints[run].request(form, clock, self.rng.randbytes(16), fresh=fresh)
        if fate.cut is not None:
            stored = individual.ledger.open_request(run, form)
            if not fate.stored or stored is None:
                self._check(individual, unchanged=True)
                return None
            data = stored.envelope
        if exchange is not None and again:
            self.expect(data == exchange.request, "a request that is still good was not sent again")
        else:
            self.expect(data not in self.requests, "an old request was sent as a new one")
            fields = read(data)
            self.expect(
                (fields["run_id"], fields["form"], fields["signer"], fields["audience"], fields["issued_at"])
                == (run, form, individual.key.keyid, individual.collective, now),
                "a request says something else than it was made for",
            )
            individual.model.requested(run, form, data)
        self.requests.add(data)
        self._check(individual)
        return None if fate.cut is not None else self._send(Parcel("request", who, run, (data,)))

    def mend(self, run: str, form: Form) -> None:
        """What the collective's operator does where nothing that is published can be used: publish anew."""
        last, now = self.latest(run, form), self._time(self.collective)
        usable = (
            last is not None
            and not self._is_withdrawn(last)
            and last.signer == self.collective.key.keyid
            and self._may_be_sent(read(last.data), now)
        )
        if not usable:
            self.publish(run, form, CONTENTS + len(self.releases))

    # What arrives.

    def deliver(self, parcel: Parcel, cut: Cut | None = None) -> Outcome:
        """Hand a parcel to its receiver, and compare all that comes of it with what must come of it."""
        if parcel in self.waiting:
            self.waiting.remove(parcel)
        if parcel.channel in ("request", "receipt"):
            return self._deliver_to_collective(parcel, cut)
        return self._deliver_to_individual(parcel, cut)

    def _deliver_to_collective(self, parcel: Parcel, cut: Cut | None) -> Outcome:
        collective, run, (data,) = self.collective, parcel.run, parcel.parts
        clock, now = self._decides(collective)
        foresee = self._foresee_request if parcel.channel == "request" else self._foresee_receipt
        plan = foresee(run, data, now)
        outcome: Outcome = plan.outcome
        answer: Answer | Withdrawal | None = None
        with self._cut(collective, cut) as fate:
            try:
                if parcel.channel == "request":
                    answer = collective.endpoints[run].answer_request(data, clock)
                else:
                    collective.endpoints[run].accept_receipt(data, clock)
                self.expect(plan.outcome != "refused", f"a {parcel.channel} was accepted that must be refused")
            except RefusedError as error:
                self.expect(plan.outcome == "refused", f"an honest {parcel.channel} was refused: {error!r}")
                self.codes[error.code] += 1
        if fate.cut is not None:
            outcome = "cut"
        self._apply(plan, fate)
        if isinstance(answer, Answer):
            release, grant, blob = answer
            given = collective.model.grant(name_of(data))
            self.expect(
                given is not None and (name_of(release), grant) == (given.release, given.data),
                "another answer than the one that is stored",
            )
            self.expect(release in self.releases and blob == self.releases[release].blob, "another release was sent")
            self._send(Parcel("bundle", self._number_of(read(data)["signer"]), run, (release, grant, blob)))
        elif answer is not None:
            abort = answer.abort
            last = self.latest(run, read(data)["form"])
            self.expect(
                last is not None and self._is_withdrawn(last) and read(abort)["subject"] == last.plain.digest,
                "a learngene that is not withdrawn was said to be",
            )
            self.aborts.add(abort)
            self._send(Parcel("abort", self._number_of(read(data)["signer"]), run, (abort,)))
        self._check(collective, unchanged=plan.changes_nothing)
        return outcome

    def _foresee_request(self, run: str, data: bytes, now: int) -> _Plan:
        if data not in self.requests or not self._is_for_collective(run, data, now):
            return _Plan("refused")
        model, fields, name = self.collective.model, read(data), name_of(data)
        answered = model.grant(name)
        if answered is not None:
            granted = self._published(answered.release)
            timely = all(self._may_be_sent(read(one), now) for one in (granted.data, answered.data))
            tells = self._tells(granted) or granted == self.latest(run, fields["form"])
            if timely and tells and not self._is_withdrawn(granted):
                return _Plan("known")
        last = self.latest(run, fields["form"])
        if last is None:
            return _Plan("refused")
        if self._is_withdrawn(last):
            return _Plan("accepted")
        if not self._may_be_sent(read(last.data), now) or last.signer != self.collective.key.keyid:
            return _Plan("refused")
        return _Plan("accepted", [("add_grant", lambda: self._learn_grant(name, fields))])

    def _foresee_receipt(self, run: str, data: bytes, now: int) -> _Plan:
        if data not in self.receipts or not self._is_for_collective(run, data, now):
            return _Plan("refused")
        model, signer, release = self.collective.model, read(data)["signer"], read(data)["release"]
        nothing: list[tuple[str, Callable[[], object]]] = [("add_receipt", lambda: None)]
        if not model.is_granted(signer, release):
            return _Plan("refused", nothing, quiet=True)
        if (signer, release) in model.receipts:
            return _Plan("known", nothing, quiet=True)
        return _Plan("accepted", [("add_receipt", lambda: model.add_receipt(signer, release, data))])

    def _deliver_to_individual(self, parcel: Parcel, cut: Cut | None) -> Outcome:
        who, run = self.individuals[parcel.who], parcel.run
        (clock, _), endpoint, arrived = self._decides(who), who.endpoints[run], None
        foresee = {"bundle": self._foresee_bundle, "file": self._foresee_file, "abort": self._foresee_abort}
        plan = foresee[parcel.channel](who, run, parcel.parts)
        outcome: Outcome = plan.outcome
        committed = set(who.model.inherited)
        with self._cut(who, cut) as fate:
            try:
                if parcel.channel == "bundle":
                    release, grant, blob = parcel.parts
                    arrived = endpoint.inherit(release, grant, blob, clock)
                elif parcel.channel == "file":
                    self._compare(endpoint.verify_file(BundleFile(*parcel.parts), clock))
                else:
                    endpoint.accept_abort(parcel.parts[0], clock)
                self.expect(plan.outcome != "refused", f"a {parcel.channel} was accepted that must be refused")
            except RefusedError as error:
                self.expect(plan.outcome == "refused", f"an honest {parcel.channel} was refused: {error!r}")
                self.codes[error.code] += 1
        if fate.cut is not None:
            outcome = "cut"
        if parcel.channel == "bundle" and (arrived is not None or fate == _Fate(("acknowledged", "after"), True)):
            name = name_of(parcel.parts[0])
            self._apply(plan, fate)
            self._learn_receipt(who, run, name, None if arrived is None else arrived.receipt)
        else:
            self._apply(plan, fate)
        if arrived is not None:
            newest = who.model.latest(run, self.releases[parcel.parts[0]].plain.form)
            self.expect(newest is not None and newest.release == arrived.learngene.release_digest, "not the newest")
            self._compare(arrived.learngene)
            self._send(Parcel("receipt", parcel.who, run, (arrived.receipt,)))
        if outcome == "refused":
            self.expect(set(who.model.inherited) == committed, "the oracle itself applied what was refused")
        self._check(who, unchanged=plan.changes_nothing)
        return outcome

    def _foresee_bundle(self, who: Individual, run: str, parts: tuple[bytes, ...]) -> _Plan:
        release, grant, blob = parts
        if max(len(release), len(grant)) > envelope.MAX_BYTES:
            return _Plan("refused")
        known = who.model.inherited.get((run, name_of(release)))
        steps: list[tuple[str, Callable[[], object]]] = []
        # The receipt's bytes are learned from the endpoint, so that this step is made by whoever applies the plan.
        end: list[tuple[str, Callable[[], object]]] = [("acknowledged", lambda: None)]
        if known is not None and known.grant == name_of(grant):
            return _Plan("known", end)
        if self._is_for(who, run, release, grant):
            published, asked = self.releases[release], who.model.open_requests(run)
            number = (published.plain.key_epoch, published.plain.seq)
            fresh = asked.get(read(grant)["request"]) == published.plain.form
            newest = who.model.newest_seen(run, published.plain.form)
            if fresh and number >= newest and (run, published.plain.digest) not in who.model.withdrawn:
                steps.append(("received", lambda: who.model.received(published.plain)))
                if blob == published.blob:
                    steps.append(("verified", lambda: who.model.verified(published.plain)))
                    steps.append(("commit", lambda: who.model.commit(published.plain, (release, grant, blob))))
                    return _Plan("accepted" if known is None else "known", steps + end)
                steps.append(("refused", lambda: who.model.refused(published.plain)))
        return _Plan("refused", steps) if known is None else _Plan("known", steps + end)

    def _foresee_file(self, who: Individual, run: str, parts: tuple[bytes, ...]) -> _Plan:
        release, grant, blob = parts
        if release not in self.releases or blob != self.releases[release].blob:
            return _Plan("refused")
        published = self.releases[release]
        known = (run, published.plain.digest) in who.model.inherited
        if not self._is_for(who, run, release, grant, timeless=known):
            return _Plan("refused")
        number = (published.plain.key_epoch, published.plain.seq)
        stale = number < who.model.newest_seen(run, published.plain.form)
        if not known and (stale or (run, published.plain.digest) in who.model.withdrawn):
            return _Plan("refused")
        digests = published.plain.withdraws
        return _Plan("accepted", [("withdraw", partial(who.model.withdraw, run, digest)) for digest in digests])

    def _foresee_abort(self, who: Individual, run: str, parts: tuple[bytes, ...]) -> _Plan:
        (data,) = parts
        if data not in self.aborts:
            return _Plan("refused")
        fields = read(data)
        fits = (fields["run_id"], fields["audience"], fields["signer"]) == (run, who.key.keyid, who.collective)
        if not (fits and self._is_timely(fields, self._time(who)) and self._believes(who)):
            return _Plan("refused")
        known = (run, fields["subject"]) in who.model.withdrawn
        if known:
            return _Plan("known")
        return _Plan("accepted", [("withdraw", partial(who.model.withdraw, run, fields["subject"]))])

    # What is true.

    def _is_for(self, who: Individual, run: str, release: bytes, grant: bytes, *, timeless: bool = False) -> bool:
        """Both are honest, belong together and to this individual in this run, from its collective's key, in time."""
        if release not in self.releases or grant not in self.grants:
            return False
        published, fields = self.releases[release], read(grant)
        return (
            fields["release"] == published.plain.digest
            and fields["audience"] == who.key.keyid
            and fields["run_id"] == published.plain.run_id == run
            and fields["signer"] == published.signer == who.collective
            and self._believes(who)
            and (timeless or all(self._is_timely(one, self._time(who)) for one in (fields, read(release))))
        )

    def _is_for_collective(self, run: str, data: bytes, now: int) -> bool:
        fields = read(data)
        fits = (fields["run_id"], fields["audience"]) == (run, self.collective.key.keyid)
        return fits and self._is_timely(fields, now) and self._believes(self.collective)

    def _believes(self, party: Individual | Collective) -> bool:
        return self._time(party) <= party.trust.expires_at

    @staticmethod
    def _is_timely(fields: dict[str, Any], now: int) -> bool:
        return bool(fields["issued_at"] - SKEW <= now <= fields["expires_at"] + SKEW)

    @staticmethod
    def _may_be_sent(fields: dict[str, Any], now: int) -> bool:
        """Whether who made it once would send it again: not what others must refuse."""
        return bool(fields["issued_at"] - SKEW <= now < fields["expires_at"])

    def _time(self, party: Individual | Collective) -> int:
        """What it would decide by now: never earlier than before."""
        return max(self.now + party.offset, party.seen)

    def _decides(self, party: Individual | Collective) -> tuple[int, int]:
        """What its clock says, and what it decides by and remembers."""
        party.seen = self._time(party)
        return self.now + party.offset, party.seen

    def forget_time(self, party: Individual | Collective) -> None:
        """What its operator does where its clock was ahead and is right now."""
        party.seen = self.now + party.offset
        party.ledger.set_time(party.seen)

    def _published(self, digest: str) -> _Published:
        return next(one for one in self.releases.values() if one.plain.digest == digest)

    def latest(self, run: str, form: Form) -> _Published | None:
        """The newest release of a form, as the oracle knows it."""
        found = [one for one in self.releases.values() if (one.plain.run_id, one.plain.form) == (run, form)]
        return found[-1] if found else None

    def _is_withdrawn(self, published: _Published | None) -> bool:
        stored = None if published is None else self.collective.model.release(published.plain.digest)
        return stored is not None and stored.withdrawn

    def _tells(self, published: _Published) -> bool:
        """Whether a release names all that is withdrawn in its run."""
        withdrawn = {
            one.release.digest for one in self.collective.model.releases(published.plain.run_id) if one.withdrawn
        }
        return withdrawn <= set(published.plain.withdraws)

    def _learn_release(self, stored: StoredRelease, learngene: Learngene) -> None:
        """The collective made a release: what it says is compared with what it was made for."""
        fields, model = read(stored.envelope), self.collective.model
        withdrawn = sorted(one.release.digest for one in model.releases(fields["run_id"]) if one.withdrawn)
        self.expect(fields["withdraws"] == withdrawn, "a release does not withdraw what is withdrawn")
        self.expect(fields["signer"] == self.collective.key.keyid, "a release is signed by another key")
        self.expect(fields["key_epoch"] == self.epoch + 1, "a release names another epoch")
        digest = name_of(stored.envelope)
        plain = PlainRelease(
            fields["run_id"],
            learngene.architecture.form,
            fields["key_epoch"],
            fields["seq"],
            digest,
            fields["prev"],
            tuple(fields["withdraws"]),
        )
        blob = self.collective.ledger.blob(stored)
        model.add_release(PlainStored(stored.envelope, ClosedKey(stored.closed_key, digest), plain, blob))
        self.releases[stored.envelope] = _Published(stored.envelope, plain, fields["signer"], blob, learngene)

    def _learn_grant(self, request: str, fields: dict[str, Any]) -> None:
        """The collective made a grant: it stands in the ledger, and is for what was asked."""
        granted = self.collective.ledger.grant(request)
        last = self.latest(fields["run_id"], fields["form"])
        self.expect(granted is not None, "a grant is not in the ledger")
        assert granted is not None
        assert last is not None
        said = read(granted[0])
        self.expect(
            (said["release"], said["request"], said["audience"], said["run_id"])
            == (last.plain.digest, request, fields["signer"], fields["run_id"]),
            "a grant for something else than was asked",
        )
        model = self.collective.model
        former = model.grant(request)
        grant = PlainGrant(request, fields["run_id"], fields["signer"], fields["nonce"], last.plain.digest, granted[0])
        model.add_grant(grant, None if former is None else former.data)
        self.grants.add(granted[0])

    def _learn_receipt(self, who: Individual, run: str, release: str, said: bytes | None) -> None:
        """A receipt was made: it is for this release, and it stays the one as long as it is of any use."""
        inherited = who.ledger.inherited(run, release)
        self.expect(inherited is not None and inherited.receipt is not None, "a receipt without a learngene")
        assert inherited is not None
        assert inherited.receipt is not None
        kept, former, now = inherited.receipt, who.model.inherited[run, release].receipt, self._time(who)
        self.expect(said in (None, kept), "another receipt was sent than is stored")
        if former is not None and self._may_be_sent(read(former), now) and read(former)["audience"] == who.collective:
            self.expect(kept == former, "another receipt than the first one")
        else:
            fields = read(kept)
            self.expect(
                (fields["release"], fields["run_id"], fields["audience"], fields["issued_at"])
                == (release, run, who.collective, now),
                "a receipt says something else than it was made for",
            )
        who.model.acknowledged(run, release, kept)
        if said is not None:
            self.receipts.add(kept)

    def _compare(self, arrived: VerifiedLearngene) -> None:
        """The tensors are those that the collective published under this name."""
        expected = self._published(arrived.release_digest).learngene
        same = arrived.learngene.tensors.keys() == expected.tensors.keys() and all(
            np.array_equal(arrived.learngene.tensors[name], array) for name, array in expected.tensors.items()
        )
        self.expect(same, "other tensors than were published")

    # Machinery.

    @property
    def parties(self) -> tuple[Individual | Collective, ...]:
        """Everybody, the collective first."""
        return (self.collective, *self.individuals)

    def _number_of(self, keyid: str) -> int:
        return next(number for number, one in enumerate(self.individuals) if one.key.keyid == keyid)

    def _send(self, parcel: Parcel) -> Parcel:
        self.heard.append(parcel)
        self.waiting.append(parcel)
        return parcel

    @staticmethod
    def expect(holds: bool, otherwise: str) -> None:
        """Nothing else may happen.

        Raises:
            ViolationError: it did.
        """
        if not holds:
            raise ViolationError(otherwise)

    @contextlib.contextmanager
    def _cut(self, party: Individual | Collective, cut: Cut | None) -> Iterator["_Fate"]:
        """Let the power fail at ``cut``, if it comes to that; then begin again."""
        fate = _Fate(None, True)
        assert party.watch is not None
        party.watch.cut = cut
        try:
            yield fate
        except PowerCut:
            fate.cut, fate.stored = cut, cut is not None and cut[1] == "after"
            party.start()
        party.watch.cut = None

    @staticmethod
    def _apply(plan: _Plan, fate: "_Fate") -> None:
        steps = plan.steps
        if fate.cut is not None:
            names = [name for name, _ in steps]
            if fate.cut[0] not in names:
                raise ViolationError(f"the step {fate.cut[0]} was made where it must not be")
            steps = steps[: names.index(fate.cut[0]) + fate.stored]
        for _, step in steps:
            step()

    def _check(self, party: Individual | Collective, *, unchanged: bool = False) -> None:
        """Whoever was not concerned is as it was, byte for byte; whoever was is as the oracle says."""
        for number, one in enumerate(self.parties):
            dump = one.dump()
            self.expect(one.seen == (one.ledger.latest_time() or 0), "another time is remembered than was decided by")
            if one is not party or unchanged:
                self.expect(dump == self._dumps[number], "a database changed that must not have changed")
                continue
            if isinstance(one, Individual):
                self._check_individual(one)
            else:
                self._check_collective()
            self._dumps[number] = dump

    def _check_individual(self, who: Individual) -> None:
        for run in RUNS:
            digests = tuple(one.plain.digest for one in self.releases.values() if one.plain.run_id == run)
            observed = observe_individual(who.ledger, (run,), FORMS, digests)
            expected = who.model.observe((run,), FORMS, digests)
            if observed != expected:
                wrong = next(name for name in expected if observed.get(name) != expected[name])
                raise ViolationError(f"{wrong}: {observed.get(wrong)} instead of {expected[wrong]}")
        # Once more, without the model's help: only what was published in that run and granted to it.
        for (run, digest), inherited in who.model.inherited.items():
            published = self._published(digest)
            self.expect((published.plain.run_id, published.plain.form) == (run, inherited.form), "of another run")
            granted = {(read(grant)["release"], read(grant)["audience"]) for grant in self.grants}
            self.expect((digest, who.key.keyid) in granted, "it was never granted to this individual")
            # The folder of a committed learngene is never replaced: it was applied once.
            folder = who.files().get(digest)
            self.expect(folder is not None, "a committed learngene is gone")
            self.expect(who.applied.setdefault(digest, folder) == folder, "a bundle was applied twice")

    def _check_collective(self) -> None:
        model, ledger = self.collective.model, self.collective
        assert ledger.observer is not None
        query = ledger.observer.execute
        releases = [(one.release.digest, int(one.withdrawn)) for run in sorted(RUNS) for one in model.releases(run)]
        self.expect(
            list(query("SELECT digest, withdrawn FROM releases ORDER BY run_id, seq")) == releases, "another chain"
        )
        grants = [(grant.request, grant.keyid, grant.release, grant.data) for grant in model.grants]
        rows = query("SELECT request, keyid, release, envelope FROM grants ORDER BY rowid")
        self.expect(list(rows) == grants, "other grants than were asked for")
        receipts = {(row[0], row[1]): row[2] for row in query("SELECT keyid, release, envelope FROM receipts")}
        self.expect(receipts == model.receipts, "other receipts than were sent")
        self.expect(set(receipts.values()) <= self.receipts, "a receipt that nobody sent")


@dataclass
class _Fate:
    """Whether the power failed, and whether the step at which it did had become durable."""

    cut: Cut | None
    stored: bool


class Relay:
    """The relay between them: it has every byte that was ever sent, and all the time in the world.

    ``tally`` counts what came of each kind of action.
    """

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world, self.rng = world, rng
        self.tally: Counter[tuple[str, str]] = Counter()
        self.last: Parcel | None = None
        self.doing = "nothing"
        self.steps = 0

    def act(self) -> None:
        """One step of the schedule."""
        name = self.rng.choices(list(_ACTIONS), list(_ACTIONS.values()))[0]
        self.doing = name
        self.steps += 1
        getattr(self, f"_{name}")()

    def deliver_honestly_at_last(self) -> None:
        """The malice is over: clocks are right, everybody has the newest trust store. One exchange must succeed."""
        world = self.world
        self.doing = "the last delivery"
        for who, individual in enumerate(world.individuals):
            individual.offset = 0
            world.learn_trust(who)
        world.collective.offset = 0
        for party in world.parties:
            world.forget_time(party)
        who, run, form = self._anybody(), self.rng.choice(RUNS), self.rng.choice(FORMS)
        world.mend(run, form)
        individual, last = world.individuals[who], world.latest(run, form)
        assert last is not None

        def has_come() -> bool:
            inherited = individual.model.latest(run, form)
            acknowledged = individual.model.state(run, form) is State.ACKED
            return acknowledged and inherited is not None and inherited.release == last.plain.digest

        outcome, release = self._exchange(who, run, form, fresh=False)
        if not has_come():
            # The open request was answered before, with an earlier release that is still good.
            world.expect(release != last.data, "the newest release was sent, and did not come")
            self.tally["the last delivery", "asked anew"] += 1
            outcome, _ = self._exchange(who, run, form, fresh=True)
        world.expect(outcome in ("accepted", "known"), "an honest exchange fails in the end")
        world.expect(has_come(), "the newest release has not come in the end")
        self.tally["the last delivery", outcome] += 1

    def _exchange(self, who: int, run: str, form: Form, *, fresh: bool) -> tuple[Outcome, bytes]:
        """Request, answer and receipt, each delivered at once: what came of the answer, and the release in it."""
        world = self.world
        world.waiting.clear()
        request = world.request(who, run, form, fresh=fresh)
        assert request is not None
        world.expect(world.deliver(request) != "refused", "an honest request is refused in the end")
        (bundle,) = world.waiting
        outcome = world.deliver(bundle)
        if outcome == "accepted":
            (receipt,) = world.waiting
            world.expect(world.deliver(receipt) == "accepted", "an honest receipt is refused in the end")
        return outcome, bundle.parts[0]

    # What honest parties do, when the relay lets them.

    def _publish(self) -> None:
        cut: Cut | None = ("add_release", self.rng.choice(["before", "after"])) if self.rng.random() < 0.1 else None
        self.world.publish(self.rng.choice(RUNS), self.rng.choice(FORMS), self.rng.randrange(CONTENTS), cut)
        self.tally["publish", "accepted"] += 1

    def _withdraw(self) -> None:
        published = self.rng.choice(list(self.world.releases.values())).plain
        self.world.withdraw(published.run_id, published.digest)
        self.tally["withdraw", "accepted"] += 1

    def _rotate(self) -> None:
        self.world.rotate()
        if self.rng.random() < 0.6:
            self._learn_trust()
        self.tally["rotate", "accepted"] += 1

    def _learn_trust(self) -> None:
        for who in range(len(self.world.individuals)):
            self.world.learn_trust(who)

    def _clock(self) -> None:
        if self.rng.random() < 0.5:
            self.world.now += self.rng.choice([60, 3600, 2 * 86400])
        else:
            party = self.rng.choice(self.world.parties)
            party.offset = self.rng.choice([self.rng.randint(-100, 100), -5 * 3600, 3 * 86400])
            if self.rng.random() < 0.5:
                self.world.forget_time(party)
        self.tally["clock", "accepted"] += 1

    def _restart(self) -> None:
        self.world.restart(self.rng.choice([None, 0, 1]))
        self.tally["restart", "accepted"] += 1

    def _request(self) -> None:
        cut: Cut | None = ("requested", self.rng.choice(["before", "after"])) if self.rng.random() < 0.1 else None
        fresh = self.rng.random() < 0.4
        self.world.request(self._anybody(), self.rng.choice(RUNS), self.rng.choice(FORMS), fresh=fresh, cut=cut)
        self.tally["request", "accepted"] += 1

    def _carry(self) -> None:
        """An honest delivery of what waits longest."""
        if self.world.waiting:
            self._hand_over("carry", self.rng.choice(self.world.waiting[:2]))
        else:
            self._hand_over("carry", self._fresh_bundle())

    def _cut(self) -> None:
        """The receiver's power fails in the middle; then the same comes again."""
        parcel = self.rng.choice(self.world.waiting) if self.world.waiting else self._fresh_bundle()
        steps = {"request": ["add_grant"], "receipt": ["add_receipt"]}.get(
            parcel.channel, ["received", "verified", "commit", "acknowledged"]
        )
        cut: Cut = (self.rng.choice(steps), self.rng.choice(["before", "after"]))
        outcome = self.world.deliver(parcel, cut)
        self.tally["cut", outcome] += 1
        if outcome == "cut":
            self._hand_over("carry", parcel)

    # What only a malicious one does.

    def _drop(self) -> None:
        if self.world.waiting:
            self.world.waiting.remove(self.rng.choice(self.world.waiting))
            self.tally["drop", "dropped"] += 1

    def _withhold(self) -> None:
        parcel = self._something()
        self.world.now += self.rng.choice([LIFE + 2 * SKEW + 400, 2 * LIFE])
        self._hand_over("withhold", parcel)

    def _duplicate(self) -> None:
        if self.last is not None:
            self._hand_over("duplicate", self.last)

    def _replay(self) -> None:
        """Something that was sent at any time, after a new request where it was an answer."""
        parcel = self.rng.choice(self.world.heard) if self.world.heard else self._fresh_bundle()
        if parcel.channel == "bundle":
            form = read(parcel.parts[0])["form"]
            self.world.request(parcel.who, parcel.run, form, fresh=self.rng.random() < 0.7)
        self._hand_over("replay", parcel)

    def _reorder(self) -> None:
        """The answer to a later request first, then the earlier one."""
        earlier = self._fresh_bundle()
        if earlier.channel != "bundle":
            return
        form: Form = read(earlier.parts[0])["form"]
        self.world.publish(earlier.run, form, self.rng.randrange(CONTENTS))
        later = self._bundle_for(earlier.who, earlier.run, form)
        if later is not None:
            self._hand_over("carry", later)
        self._hand_over("reorder", earlier)

    def _swap(self) -> None:
        """The parts of several answers in one."""
        first = self._fresh_bundle()
        others = [parcel for parcel in self.world.heard if len(parcel.parts) == 3 and parcel != first]
        if len(first.parts) != 3 or not others:
            return
        parts = [self.rng.choice([first, self.rng.choice(others)]).parts[place] for place in range(3)]
        place = self.rng.randrange(3)
        parts[place] = self.rng.choice(others).parts[place]
        self._hand_over("swap", replace(first, parts=tuple(parts)))

    def _truncate(self) -> None:
        parcel = self._something()
        self._hand_over("truncate", self._with_part(parcel, lambda part: part[: self.rng.randrange(len(part))]))

    def _extend(self) -> None:
        extra = self.rng.choice([b"\0", b" ", b"\n", b"}", self.rng.randbytes(32), b" " * envelope.MAX_BYTES])
        self._hand_over("extend", self._with_part(self._something(), lambda part: part + extra))

    def _flip(self) -> None:
        self._hand_over("flip", self._with_part(self._something(), self._flipped))

    def _cross_runs(self) -> None:
        parcel = self._something()
        run = RUNS[1 - RUNS.index(parcel.run)]
        # The other run waits for the same form, so that only the run tells them apart.
        if parcel.channel in ("bundle", "file"):
            self.world.request(parcel.who, run, read(parcel.parts[0])["form"])
        self._hand_over("cross_runs", replace(parcel, run=run))

    def _cross_parties(self) -> None:
        parcel = self._fresh_bundle()
        who = 1 - parcel.who
        if len(parcel.parts) == 3:
            self.world.request(who, parcel.run, read(parcel.parts[0])["form"])
        self._hand_over("cross_parties", replace(parcel, who=who))

    def _cross_kinds(self) -> None:
        """A message in the place of another kind of message."""
        parcel = self._something()
        if len(parcel.parts) == 3:
            parts = list(parcel.parts)
            first, second = self.rng.sample(range(3), 2)
            parts[first] = parts[second]
            self._hand_over("cross_kinds", replace(parcel, parts=tuple(parts)))
        else:
            channels: list[Channel] = ["request", "receipt", "abort"]
            channels.remove(parcel.channel)
            self._hand_over("cross_kinds", replace(parcel, channel=self.rng.choice(channels)))

    def _forge(self) -> None:
        """Words of the relay's own, under a key that is not the collective's, or not any more."""
        parcel = self._something()
        # A thief's old key is worth nothing only to whom the new trust store has come.
        believed = self.world.individuals[parcel.who].collective
        stolen = [key for key in COLLECTIVE_KEYS[: self.world.epoch] if key.keyid != believed]
        parts = list(parcel.parts)
        insiders = [key for key, _ in PEOPLE if key.keyid != read(parts[0])["signer"]]
        key = self.rng.choice((STRANGER, insiders[0], *stolen, *stolen, *stolen))
        if len(parts) == 3 and self.rng.random() < 0.7:
            parts[0] = self._signed(parts[0], key, {})
            # The grant is for the forged release, as a forger would make it.
            parts[1] = self._signed(parts[1], key, {"release": name_of(parts[0])})
        else:
            place = self.rng.randrange(min(2, len(parts)))
            parts[place] = self._signed(parts[place], key, {})
        self._hand_over("forge", replace(parcel, parts=tuple(parts)))

    def _signed(self, data: bytes, key: SigningKey, changes: dict[str, object]) -> bytes:
        opened = envelope.parse(data)
        payload = json.loads(opened.payload)
        later = {"issued_at": payload["issued_at"] + 1} if self.rng.random() < 0.3 else {}
        # An insider may ask and answer under its own name; that is no forgery.
        insider = key not in (STRANGER, *COLLECTIVE_KEYS) and "pad" in payload
        honest_name = insider or self.rng.random() < 0.5
        payload |= changes | later | ({} if honest_name else {"signer": key.keyid})
        body = json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()
        signature = key.sign(envelope.pre_authentication_encoding(opened.payload_type, body))
        keyid = opened.keyid if honest_name else key.keyid
        return envelope.encode(envelope.Envelope(opened.payload_type, body, keyid, signature))

    # Where it gets its material.

    def _anybody(self) -> int:
        return self.rng.randrange(len(self.world.individuals))

    def _hand_over(self, action: str, parcel: Parcel) -> None:
        if len(parcel.parts) == 3 and action != "carry" and self.rng.random() < 0.15:
            parcel = replace(parcel, channel="file")
        outcome = self.world.deliver(parcel)
        self.tally[action, outcome] += 1
        self.last = parcel

    def _something(self) -> Parcel:
        """What has not arrived yet, if there is anything; mostly an answer."""
        waiting = [parcel for parcel in self.world.waiting if parcel.channel == "bundle"]
        if waiting and self.rng.random() < 0.5:
            return self.rng.choice(waiting)
        if self.world.waiting and self.rng.random() < 0.5:
            return self.rng.choice(self.world.waiting)
        return self._fresh_bundle()

    def _fresh_bundle(self) -> Parcel:
        """An exchange that the relay lets begin, so that it has an answer in its hands."""
        who, run, form = self._anybody(), self.rng.choice(RUNS), self.rng.choice(FORMS)
        if self.rng.random() < 0.7:
            self.world.mend(run, form)
        return self._bundle_for(who, run, form) or self.world.heard[-1]

    def _bundle_for(self, who: int, run: str, form: Form) -> Parcel | None:
        request = self.world.request(who, run, form, fresh=True)
        assert request is not None
        self.tally["carry", self.world.deliver(request)] += 1
        answer = self.world.heard[-1]
        return answer if answer.channel == "bundle" else None

    def _with_part(self, parcel: Parcel, change: Callable[[bytes], bytes]) -> Parcel:
        place = self.rng.randrange(len(parcel.parts))
        parts = [change(part) if place == number else part for number, part in enumerate(parcel.parts)]
        return replace(parcel, parts=tuple(parts))

    def _flipped(self, part: bytes) -> bytes:
        changed = bytearray(part)
        changed[self.rng.randrange(len(part))] ^= 1 << self.rng.randrange(8)
        return bytes(changed)


#: How often each action is taken, in proportion.
_ACTIONS = {
    "publish": 3,
    "withdraw": 2,
    "rotate": 2,
    "learn_trust": 3,
    "clock": 3,
    "restart": 3,
    "request": 4,
    "carry": 14,
    "cut": 5,
    "drop": 3,
    "withhold": 2,
    "duplicate": 6,
    "replay": 5,
    "reorder": 3,
    "swap": 5,
    "truncate": 4,
    "extend": 4,
    "flip": 5,
    "cross_runs": 5,
    "cross_parties": 4,
    "cross_kinds": 4,
    "forge": 6,
}


def run_schedule(folder: Path, seed: int) -> Counter[tuple[str, str]]:
    """One schedule: 6 to 12 actions (some 10 to 25 messages), then one honest exchange.

    Returns:
        How often each action had which outcome, and how often which code was given for a refusal.

    Raises:
        ViolationError: with the seed and the step in its message.
    """
    rng = random.Random(seed)
    place = folder / f"schedule-{seed}"
    world = World(place, rng)
    relay = Relay(world, rng)
    try:
        for _ in range(rng.randint(6, 12)):
            relay.act()
        relay.deliver_honestly_at_last()
    except Exception as error:
        raise ViolationError(f"seed {seed}, step {relay.steps} ({relay.doing}): {error!r}") from error
    finally:
        world.close()
        shutil.rmtree(place)
    return relay.tally + Counter({("refused", code): number for code, number in world.codes.items()})
