"""The two ledgers as plain Python objects in memory: what the durable ones must do, said a second time."""

import base64
import json
import os
from dataclasses import dataclass, field, replace
from hashlib import sha256

from protocol.errors import EquivocationError, InputError, RollbackError, StorageFailedError, WrongAudienceError
from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.exchange.content_keys import ClosedKey
from protocol.exchange.individual_ledger import IndividualLedger, Inherited, State
from protocol.exchange.release_chain import SeenRelease
from protocol.learngene.architecture import Form
from protocol.messages.payloads import NO_RELEASE

RunForm = tuple[str, Form]
#: Release, grant and ciphertext as they travelled.
Parts = tuple[bytes, bytes, bytes]
Observation = dict[str, object]

OPEN = (State.REQUESTED, State.RECEIVED, State.VERIFIED)
#: Every step of an exchange: from which states it may be made, and where it ends.
STEPS: dict[str, tuple[tuple[State, ...], State]] = {
    "requested": (tuple(State), State.REQUESTED),
    "received": (OPEN, State.RECEIVED),
    "refused": ((State.RECEIVED,), State.REQUESTED),
    "verified": ((State.RECEIVED,), State.VERIFIED),
    "commit": ((State.VERIFIED,), State.COMMITTED),
}


def memory_folder() -> str | None:
    """A folder in memory, where there is one: a ledger syncs after every step. None: the usual temporary folder."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None


def name_of(data: bytes) -> str:
    """SHA-256 of the bytes, in hexadecimal."""
    return sha256(data).hexdigest()


@dataclass(frozen=True)
class PlainRelease:
    """What a ledger must know of a release."""

    run_id: str
    form: Form
    key_epoch: int
    seq: int
    digest: str
    prev: str
    withdraws: tuple[str, ...] = ()


@dataclass
class PlainExchange:
    """One exchange of an individual."""

    state: State
    request: bytes
    release: str | None = None


@dataclass
class PlainIndividual:
    """The individual's ledger."""

    exchanges: dict[RunForm, PlainExchange] = field(default_factory=dict)
    seen: dict[tuple[str, int, int], SeenRelease] = field(default_factory=dict)
    inherited: dict[tuple[str, str], Inherited] = field(default_factory=dict)
    withdrawn: set[tuple[str, str]] = field(default_factory=set)
    files: dict[str, Parts] = field(default_factory=dict)

    def state(self, run_id: str, form: Form) -> State:
        exchange = self.exchanges.get((run_id, form))
        return State.IDLE if exchange is None else exchange.state

    def open_requests(self, run_id: str) -> dict[str, Form]:
        return {
            name_of(exchange.request): form
            for (run, form), exchange in self.exchanges.items()
            if run == run_id and exchange.state in OPEN
        }

    def latest(self, run_id: str, form: Form) -> Inherited | None:
        found = [one for (run, _), one in self.inherited.items() if (run, one.form) == (run_id, form)]
        return max(found, key=lambda one: (one.key_epoch, one.seq), default=None)

    def newest_seen(self, run_id: str, form: Form) -> tuple[int, int]:
        numbers = [(epoch, seq) for (run, epoch, seq), one in self.seen.items() if (run, one.form) == (run_id, form)]
        return max(numbers, default=(0, 0))

    def requested(self, run_id: str, form: Form, request: bytes) -> None:
        self.exchanges[run_id, form] = PlainExchange(State.REQUESTED, request)

    def received(self, release: PlainRelease) -> None:
        seen = SeenRelease(release.key_epoch, release.seq, release.form, release.digest, release.prev)
        known = self.seen.get((release.run_id, release.key_epoch, release.seq), seen)
        if known.digest != release.digest and self.state(release.run_id, release.form) in OPEN:
            raise EquivocationError("another one with this number was seen")
        self._step("received", release)
        self.seen[release.run_id, release.key_epoch, release.seq] = known
        self.withdrawn |= {(release.run_id, digest) for digest in release.withdraws}

    def refused(self, release: PlainRelease) -> None:
        self._step("refused", release)

    def verified(self, release: PlainRelease) -> None:
        self._step("verified", release)

    def commit(self, release: PlainRelease, parts: Parts, *, again: bool = False) -> Inherited:
        known = self.inherited.get((release.run_id, release.digest))
        grant = name_of(parts[1])
        exchange = self._exchange("commit", release)
        newest = self.latest(release.run_id, release.form)
        number = (release.key_epoch, release.seq)
        if newest is not None and (newest.key_epoch, newest.seq) > number:
            raise RollbackError("a later one is committed")
        if any(
            run == release.run_id and (one.key_epoch, one.seq) == number and one.release != release.digest
            for (run, _), one in self.inherited.items()
        ):
            raise EquivocationError("another one with this number is committed")
        # What lies there whole is left alone.
        if known is not None and not again and self.is_whole(known):
            grant = known.grant
        else:
            self.files[release.digest] = parts
        exchange.state = State.COMMITTED
        committed = (
            Inherited(*number, release.form, release.digest, grant, None)
            if known is None
            else replace(known, grant=grant)
        )
        self.inherited[release.run_id, release.digest] = committed
        return committed

    def acknowledged(self, run_id: str, release: str, receipt: bytes) -> None:
        inherited = self.inherited.get((run_id, release))
        if inherited is None:
            raise StorageFailedError("never inherited")
        exchange = self.exchanges[run_id, inherited.form]
        if (exchange.state, exchange.release) == (State.COMMITTED, release):
            exchange.state = State.ACKED
        self.inherited[run_id, release] = replace(inherited, receipt=receipt)

    def withdraw(self, run_id: str, release: str) -> None:
        self.withdrawn.add((run_id, release))

    def is_whole(self, inherited: Inherited) -> bool:
        parts = self.files.get(inherited.release)
        return parts is not None and name_of(parts[0]) == inherited.release and name_of(parts[1]) == inherited.grant

    def observe(self, runs: tuple[str, ...], forms: tuple[Form, ...], digests: tuple[str, ...]) -> Observation:
        """As :func:`observe_individual`."""
        seen: Observation = {}
        for run in runs:
            seen[f"{run} seen"] = tuple(self.seen[key] for key in sorted(self.seen) if key[0] == run)
            seen[f"{run} withdrawn"] = {digest for other, digest in self.withdrawn if other == run}
            seen[f"{run} open"] = self.open_requests(run)
            for form in forms:
                exchange = self.exchanges.get((run, form))
                asked = None if exchange is None or exchange.state not in OPEN else exchange
                seen[f"{run} {form} request"] = None if asked is None else asked.request
                seen[f"{run} {form} state"] = self.state(run, form)
                seen[f"{run} {form} latest"] = self.latest(run, form)
            for digest in digests:
                seen[f"{run} {digest}"] = self.inherited.get((run, digest))
        return seen

    def _exchange(self, step: str, release: PlainRelease) -> PlainExchange:
        exchange = self.exchanges.get((release.run_id, release.form))
        if exchange is None or exchange.state not in STEPS[step][0]:
            raise StorageFailedError(f"no {step} from here")
        # An exchange is about the release that was received last.
        if step == "received":
            exchange.release = release.digest
        elif exchange.release != release.digest:
            raise StorageFailedError(f"no {step} with another release")
        return exchange

    def _step(self, step: str, release: PlainRelease) -> PlainExchange:
        exchange = self._exchange(step, release)
        exchange.state = STEPS[step][1]
        return exchange


def observe_individual(
    ledger: IndividualLedger, runs: tuple[str, ...], forms: tuple[Form, ...], digests: tuple[str, ...]
) -> Observation:
    """All that the ledger's public methods say about these runs, forms and releases."""
    seen: Observation = {}
    for run in runs:
        seen[f"{run} seen"] = ledger.seen(run)
        seen[f"{run} withdrawn"] = set(ledger.withdrawn(run))
        seen[f"{run} open"] = ledger.open_requests(run)
        for form in forms:
            request = ledger.open_request(run, form)
            seen[f"{run} {form} request"] = None if request is None else request.envelope
            seen[f"{run} {form} state"] = ledger.state(run, form)
            seen[f"{run} {form} latest"] = ledger.latest(run, form)
        for digest in digests:
            seen[f"{run} {digest}"] = ledger.inherited(run, digest)
    return seen


@dataclass
class PlainStored:
    """A release as the collective keeps it."""

    data: bytes
    content_key: ClosedKey
    release: PlainRelease
    ciphertext: bytes
    withdrawn: bool = False

    @property
    def content(self) -> object:
        """What the envelope says of its plaintext."""
        return json.loads(base64.b64decode(json.loads(self.data)["payload"]))["plaintext"]


@dataclass(frozen=True)
class PlainGrant:
    """A grant as the collective keeps it."""

    request: str
    run_id: str
    keyid: str
    nonce: str
    release: str
    data: bytes


@dataclass
class PlainCollective:
    """The collective's ledger."""

    chain: list[PlainStored] = field(default_factory=list)
    #: One for each request and release; the last one of a request answers it.
    grants: list[PlainGrant] = field(default_factory=list)
    receipts: dict[tuple[str, str], bytes] = field(default_factory=dict)

    def releases(self, run_id: str) -> list[PlainStored]:
        return [stored for stored in self.chain if stored.release.run_id == run_id]

    def latest(self, run_id: str, form: Form | None = None) -> PlainStored | None:
        found = [stored for stored in self.releases(run_id) if form in (None, stored.release.form)]
        return found[-1] if found else None

    def release(self, digest: str) -> PlainStored | None:
        return next((stored for stored in self.chain if stored.release.digest == digest), None)

    def add_release(self, stored: PlainStored) -> None:
        if any(one.content_key.name == stored.content_key.name for one in self.chain):
            raise ValueError("a content key used twice")
        last = self.latest(stored.release.run_id)
        follows = (0, NO_RELEASE) if last is None else (last.release.seq, last.release.digest)
        if (stored.release.seq - 1, stored.release.prev) != follows:
            raise EquivocationError("not the next link")
        gone = {one.release.digest for one in self.releases(stored.release.run_id) if one.withdrawn}
        if not gone <= set(stored.release.withdraws):
            raise StorageFailedError("it does not say what is withdrawn")
        self.chain.append(stored)

    def withdraw(self, run_id: str, digest: str) -> None:
        contents = [one.content for one in self.releases(run_id) if one.release.digest == digest]
        if not contents:
            raise InputError("no such release")
        for one in self.releases(run_id):
            one.withdrawn = one.withdrawn or one.content in contents

    def grant(self, request: str) -> PlainGrant | None:
        return next((grant for grant in reversed(self.grants) if grant.request == request), None)

    def add_grant(self, grant: PlainGrant, instead_of: bytes | None) -> None:
        for other in self.grants:
            same_nonce = (other.run_id, other.keyid, other.nonce) == (grant.run_id, grant.keyid, grant.nonce)
            if other.request != grant.request and same_nonce:
                raise EquivocationError("the nonce was used")
        answered = self.grant(grant.request)
        if (None if answered is None else answered.data) != instead_of:
            raise StorageFailedError("answered meanwhile")
        if self.release(grant.release) is None:
            raise StorageFailedError("no such release")
        place = (grant.request, grant.release)
        self.grants = [other for other in self.grants if (other.request, other.release) != place] + [grant]

    def is_granted(self, keyid: str, release: str) -> bool:
        return any((grant.keyid, grant.release) == (keyid, release) for grant in self.grants)

    def add_receipt(self, keyid: str, release: str, data: bytes) -> None:
        if not self.is_granted(keyid, release):
            raise WrongAudienceError("never granted")
        self.receipts.setdefault((keyid, release), data)

    def observe(self, runs: tuple[str, ...], forms: tuple[Form, ...], requests: tuple[str, ...]) -> Observation:
        """As :func:`observe_collective`."""
        seen: Observation = {}
        for run in runs:
            seen[f"{run} chain"] = [(one.data, one.content_key.closed, one.withdrawn) for one in self.releases(run)]
            seen[f"{run} withdrawn"] = [one.data for one in self.releases(run) if one.withdrawn]
            for form in (None, *forms):
                last = self.latest(run, form)
                seen[f"{run} {form} latest"] = None if last is None else last.data
        for stored in self.chain:
            digest = stored.release.digest
            seen[f"{digest} release"] = (stored.data, stored.withdrawn)
            seen[f"{digest} granted"] = tuple(sorted({grant.keyid for grant in self.grants if grant.release == digest}))
            seen[f"{digest} receipts"] = {key: data for (key, name), data in self.receipts.items() if name == digest}
        for request in requests:
            grant = self.grant(request)
            seen[f"{request} grant"] = None if grant is None else (grant.data, grant.release)
            if grant is not None:
                seen[f"{request} nonce"] = request
        return seen


def observe_collective(
    ledger: CollectiveLedger, runs: tuple[str, ...], forms: tuple[Form, ...], requests: dict[str, tuple[str, str, str]]
) -> Observation:
    """All that the ledger's public methods say about these runs, forms and requests (run, key id, nonce by digest)."""
    seen: Observation = {}
    for run in runs:
        chain = ledger.releases(run)
        seen[f"{run} chain"] = [(one.envelope, one.closed_key, one.withdrawn) for one in chain]
        seen[f"{run} withdrawn"] = [one.envelope for one in ledger.withdrawn(run)]
        for form in (None, *forms):
            last = ledger.latest(run, form)
            seen[f"{run} {form} latest"] = None if last is None else last.envelope
        for one in chain:
            stored = ledger.release(one.digest)
            seen[f"{one.digest} release"] = (stored.envelope, stored.withdrawn)
            seen[f"{one.digest} granted"] = ledger.granted(one.digest)
            seen[f"{one.digest} receipts"] = ledger.receipts(one.digest)
    for request, (run, keyid, nonce) in requests.items():
        grant = ledger.grant(request)
        seen[f"{request} grant"] = None if grant is None else (grant[0], grant[1].digest)
        if grant is not None:
            seen[f"{request} nonce"] = ledger.request_with_nonce(run, keyid, nonce)
    return seen
