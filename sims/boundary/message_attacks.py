"""Attacks on what crosses: through the gate from inside, on the node's wishes from outside, on frames, and by sizes."""

import contextlib
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np

from protocol import blob as blobs
from protocol import canonical_json, envelope, messages, sealing
from protocol.architecture import Form
from protocol.canonical_json import Value
from protocol.desks import CollectiveDesk
from protocol.encryption_key import EncryptionKey
from protocol.errors import LearngeneError, RunFailedError
from protocol.keys import SigningKey
from protocol.ledger import CollectiveLedger, IndividualLedger
from protocol.make_messages import make_abort, make_grant, make_receipt, make_request
from protocol.messages import AbortCode, Payload, Release, Request
from protocol.node_desk import open_desk, unix_seconds
from protocol.socket import (
    DisconnectedError,
    Frame,
    ask,
    encode_header,
    load_secret,
    open_handshake,
    receive_frame,
    send_frame,
)
from protocol.trust import Role, TrustStore
from protocol.trust_file import write_trust
from sims.boundary.attempt import Attack, Finding
from sims.boundary.leaking_program import DELAY, DELAY_SECONDS, PAST_THE_GATE, WITHOUT_GATE
from sims.boundary.leaks import (
    DATA_BYTES,
    KNOWN_KEY,
    LEAKS,
    Honest,
    Leak,
    altered,
    honest_messages,
    opened_blob,
    released,
    small_learngene,
    tensors_of,
    with_tensor,
)
from sims.boundary.sites import Site, Sites, make_sites, started
from sims.boundary.unprotected import UnprotectedNode, serving

#: The outcome of an attack that reached what it wanted; every other outcome is a word of the refusal.
SUCCEEDED = "succeeded"
_LEAKING = "sims.boundary.leaking_program"
_TRUST_SECONDS = 7 * 24 * 3600
# Seconds after which a control's answer is one that does not come; and for which a real node's is waited for.
_SOON, _PATIENCE = 1.0, 20.0


@contextlib.contextmanager
def message_attacks(folder: Path, *, unconfined: bool = False) -> Iterator[list[Attack]]:
    """All attacks on messages, and the node processes that they are made on, which end with the ``with``.

    Args:
        folder: new or empty, and short: sockets lie in it.
        unconfined: start the node processes unconfined, on a kernel that cannot confine them; the gate and the
            verification are in the programs.
    """
    with (
        leak_attacks(folder / "leaks", unconfined=unconfined) as leaks,
        wish_attacks(folder / "wishes", unconfined=unconfined) as wishes,
    ):
        yield [*leaks, *wishes]


# ----------------------------------------------------------------------------------------------------------------------
# From inside: a program that was taken over


@contextlib.contextmanager
def leak_attacks(folder: Path, *, unconfined: bool = False) -> Iterator[list[Attack]]:
    """Data in the answers of node processes whose programs were taken over; the control is the same program without
    its gate."""
    sites = paired_sites(folder)
    with contextlib.ExitStack() as stack:
        there = {"collective": sites.collective, "individual": sites.individual}
        for site in there.values():
            stack.enter_context(started(site, module=_LEAKING, unconfined=unconfined))
        own = [_past_the_gate(sites.individual), _times_of_answers(sites.individual)]
        yield [*(_leak_attack(leak, there[leak.role]) for leak in LEAKS), *own]


def _leak_attack(leak: Leak, site: Site) -> Attack:
    data = site.private.read_bytes().ljust(DATA_BYTES, b"\0")

    def leaks(**words: str) -> bool:
        return leak.succeeded(site.ask(Frame("leak", words={"name": leak.name, **words})), data)

    return Attack(
        leak.name,
        "messages",
        leak.tries,
        lambda: leaks(gate=WITHOUT_GATE),
        lambda: "escaped" if leaks() else "blocked",
        unstoppable=leak.unstoppable,
    )


def _past_the_gate(site: Site) -> Attack:
    data = site.private.read_bytes().ljust(DATA_BYTES, b"\0")

    def leaks(**words: str) -> bool:
        return data in site.ask(Frame(PAST_THE_GATE, words=words)).parts.get("metrics", b"")

    return Attack(
        "written to the courier past the gate",
        "messages",
        "a program that was taken over writes to its courier itself",
        lambda: leaks(gate=WITHOUT_GATE),
        lambda: "escaped" if leaks() else "blocked",
        unstoppable="the gate is code of the process that was taken over: it stops mistakes, and who has no code there",
    )


def _times_of_answers(site: Site) -> Attack:
    bits = f"{site.private.read_bytes()[0]:08b}"[:4]

    def leaks(**words: str) -> bool:
        def seconds(number: int) -> float:
            before = time.monotonic()
            site.ask(Frame(DELAY, words={"bit": str(number), **words}))
            return time.monotonic() - before

        # The shortest of three: a busy machine makes an answer later, never sooner.
        times = [min(seconds(number) for _ in range(3)) for number in range(len(bits))]
        return bits == "".join(str(int(taken > DELAY_SECONDS / 2)) for taken in times)

    return Attack(
        "data as the time of an answer",
        "messages",
        "a program that was taken over answers sooner or later, as a bit of its data says",
        lambda: leaks(gate=WITHOUT_GATE),
        lambda: "escaped" if leaks() else "blocked",
        unstoppable="when a node answers is not held to anything: a bit a wish here, more where clocks are better",
    )


def paired_sites(folder: Path, *others: tuple[str, SigningKey]) -> Sites:
    """Two sites that trust each other and no third, but for ``others``: further individuals, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    sites = make_sites(folder)
    store = TrustStore(root=sites.root.public_hex, expires_at=unix_seconds() + _TRUST_SECONDS)
    for site in (sites.collective, sites.individual):
        store = store.with_key(site.keys.signing.public_hex, site.role, site.party)
    for party, key in others:
        store = store.with_key(key.public_hex, "individual", party)
    for site in (sites.collective, sites.individual):
        write_trust(site.folder / "trust.json", store, sites.root)
    return sites


# ----------------------------------------------------------------------------------------------------------------------
# From outside: wishes and messages of a hostile relay, or of a hostile collective


@dataclass(frozen=True)
class Target:
    """A node that is attacked by wishes.

    Attributes:
        ask: brings it a wish.
        inherited: what it has taken; another answer than before: it took something.
        receipts: receipts that it has counted.
        private: what stands in its data and must not come out.
        image: path of the file in which that stands.
        folder: its own, whose path must not come out either.
    """

    ask: Callable[[Frame], Frame]
    inherited: Callable[[], object]
    receipts: Callable[[], int]
    private: bytes
    image: str
    folder: Path

    def shows(self, answer: Frame, *secret: bytes) -> bool:
        """Whether an answer holds what is private, or another secret, as it is or in hexadecimal."""
        texts = [word.encode() for word in answer.words.values()]
        return any(
            form in text
            for hidden in (self.private, *secret)
            for form in (hidden, hidden.hex().encode())
            for text in (*answer.parts.values(), *texts)
        )


#: An attack by wishes: its outcome is ``SUCCEEDED``, or in a word how it was refused.
ByWishes = Callable[[Target], str]


class Forger:
    """Who signs as a collective: itself hostile, or a stranger."""

    def __init__(self, key: SigningKey, run_id: str) -> None:
        self.key, self.run_id, self.seq = key, run_id, 0
        encryption = EncryptionKey.from_raw("x25519", bytes(32))
        self.honest = honest_messages("collective", key, encryption, run_id=run_id, now=unix_seconds())

    def bundle(
        self,
        request: bytes,
        make: Callable[[Honest], Frame] | None = None,
        *,
        in_release: Mapping[str, Value] | None = None,
        in_grant: Mapping[str, Value] | None = None,
    ) -> dict[str, bytes]:
        """Release, grant and blob that answer a request, properly sealed.

        Args:
            make: the release and its blob; by default an honest learngene.
            in_release, in_grant: other fields.
        """
        # Every second number: neighbours would be compared with each other.
        self.seq += 2
        frame = Frame("bundle", parts=self.honest.parts) if make is None else make(self.honest)
        chain: dict[str, Value] = {"seq": self.seq, "prev": f"{self.seq:064x}"}
        release, data = (
            altered(frame.parts["release"], self.key, **(chain | dict(in_release or {}))),
            frame.parts["blob"],
        )
        described = messages.decode(Release, envelope.parse(self.honest.parts["release"]).payload)
        content = described.ciphertext.model_copy(update={"size": len(data), "sha256": envelope.digest(data)})
        run_id = (in_release or {}).get("run_id", self.run_id)
        grant = make_grant(
            messages.decode(Request, envelope.parse(request).payload),
            envelope.digest(request),
            described.model_copy(update={"ciphertext": content, "run_id": run_id}),
            envelope.digest(release),
            key=self.key,
            now=unix_seconds(),
            content_key=KNOWN_KEY,
        )
        return {"release": release, "grant": altered(grant, self.key, **(in_grant or {})), "blob": data}


@contextlib.contextmanager
def wish_attacks(folder: Path, *, unconfined: bool = False) -> Iterator[list[Attack]]:
    """Wishes, messages and frames brought to the real node processes of both parties; the control is a node that does
    what it is wished and believes what comes."""
    other = SigningKey.generate()
    sites = paired_sites(folder, ("individual-2", other))
    collective, individual = sites.collective, sites.individual
    desk = open_desk(collective.node, CollectiveDesk, new=True)
    desk.publish(small_learngene(1), unix_seconds(), secrets.token_bytes(sealing.CONTENT_KEY_BYTES))
    with contextlib.ExitStack() as stack:
        for site in (collective, individual):
            stack.enter_context(started(site, unconfined=unconfined))
        real: dict[Role, Target] = {"collective": _real_collective(sites), "individual": _real_individual(sites)}
        naive = {site.role: _unprotected(site) for site in (collective, individual)}

        def attack(role: Role, name: str, tries: str, refused_as: str, by: ByWishes) -> Attack:
            def confined() -> Finding:
                return _found(by(real[role]), refused_as)

            return Attack(name, "messages", tries, lambda: by(naive[role]) == SUCCEEDED, confined)

        at_individual = _at_the_individual(Forger(collective.keys.signing, sites.run_id), sites.run_id, other)
        at_collective = _at_the_collective(sites)
        yield [
            *(attack("individual", *described) for described in at_individual),
            *(attack("collective", *described) for described in at_collective),
            *frame_attacks(individual, folder / "frames"),
            *size_attacks(sites),
        ]


def _real_individual(sites: Sites) -> Target:
    site = sites.individual

    def inherited() -> object:
        ledger = IndividualLedger(site.node.state)
        try:
            return [found and found.release for found in (ledger.latest(sites.run_id, form) for form in get_args(Form))]
        finally:
            ledger.close()

    return Target(site.ask, inherited, lambda: 0, site.marker, str(site.private), site.folder)


def _real_collective(sites: Sites) -> Target:
    site = sites.collective

    def receipts() -> int:
        ledger = CollectiveLedger(site.node.state)
        try:
            return sum(len(ledger.receipts(release.digest)) for release in ledger.releases(sites.run_id))
        finally:
            ledger.close()

    return Target(site.ask, lambda: None, receipts, site.marker, str(site.private), site.folder)


def _unprotected(site: Site) -> Target:
    node = UnprotectedNode(site.role, site.node, site.keys)
    return Target(
        node.handle, lambda: node.inherited, lambda: node.receipts, site.marker, str(site.private), site.folder
    )


def _found(outcome: str, refused_as: str) -> Finding:
    """What came of an attack; refused for another reason than the one that is tried, it shows nothing."""
    if outcome not in (refused_as, SUCCEEDED):
        raise RunFailedError(f"refused as {outcome!r} in place of {refused_as!r}")
    return Finding("escaped") if outcome == SUCCEEDED else Finding("blocked", outcome)


def _refused_as(answer: Frame) -> str:
    return answer.words.get("code", answer.word)


def _shown_by(*wishes: Frame) -> ByWishes:
    """Succeeds where the answers to wishes hold something private."""

    def attack(target: Target) -> str:
        answers = [target.ask(wish) for wish in wishes]
        return SUCCEEDED if any(map(target.shows, answers)) else _refused_as(answers[-1])

    return attack


def _inheriting(forge: Callable[[bytes], Mapping[str, bytes]]) -> ByWishes:
    """Succeeds where what was forged for a request is inherited."""

    def attack(target: Target) -> str:
        request = target.ask(Frame("request", words={"form": "condensed"})).part("request")
        parts, before = forge(request), target.inherited()
        answer = target.ask(Frame("inherit", parts=parts))
        return SUCCEEDED if target.inherited() != before else _refused_as(answer)

    return attack


_Described = tuple[str, str, str, ByWishes]


def _at_the_individual(forger: Forger, run_id: str, other: SigningKey) -> list[_Described]:
    """Name, sentence, the code of the refusal, and the attack."""
    stranger = Forger(SigningKey.generate(), run_id)

    def told_by_failing(target: Target) -> str:
        trust, away = target.folder / "trust.json", target.folder / "away.json"
        trust.rename(away)
        try:
            answer = target.ask(Frame("request", words={"form": "condensed"}))
        finally:
            away.rename(trust)
        return SUCCEEDED if target.shows(answer, str(target.folder).encode()) else _refused_as(answer)

    def adapting_first(target: Target) -> str:
        answer = target.ask(Frame("adapt"))
        while answer.words.get("state") == "working":
            time.sleep(0.05)
            answer = target.ask(Frame("status"))
        return SUCCEEDED if target.shows(answer) else answer.words["state"]

    def older_after_newer(target: Target) -> str:
        def ask() -> bytes:
            return target.ask(Frame("request", words={"form": "condensed"})).part("request")

        forger.seq += 2
        unused = forger.seq
        target.ask(Frame("inherit", parts=forger.bundle(ask())))
        before = target.inherited()
        older = forger.bundle(ask(), in_release={"seq": unused, "prev": f"{unused:064x}"})
        answer = target.ask(Frame("inherit", parts=older))
        return SUCCEEDED if target.inherited() != before else _refused_as(answer)

    def again(target: Target) -> str:
        request = target.ask(Frame("request", words={"form": "condensed"})).part("request")
        bundle = Frame("inherit", parts=forger.bundle(request))
        first, before = target.ask(bundle), target.inherited()
        second = target.ask(bundle)
        return SUCCEEDED if target.inherited() != before or second != first else _refused_as(second)

    def for_another(_: bytes) -> Mapping[str, bytes]:
        encryption = EncryptionKey.generate()
        request = make_request(
            run_id=run_id,
            audience=forger.key.keyid,
            form="condensed",
            key=other,
            encryption=encryption,
            now=unix_seconds(),
            nonce=secrets.token_bytes(16),
        )
        return forger.bundle(request)

    def of_another_release(request: bytes) -> Mapping[str, bytes]:
        return forger.bundle(request) | {"grant": forger.bundle(request)["grant"]}

    def flipped(part: str) -> Callable[[bytes], Mapping[str, bytes]]:
        def forge(request: bytes) -> Mapping[str, bytes]:
            bundle = forger.bundle(request)
            data = bundle[part]
            return bundle | {part: data[:-1] + bytes([data[-1] ^ 1])}

        return forge

    def badly_signed(request: bytes) -> Mapping[str, bytes]:
        bundle = forger.bundle(request)
        opened = envelope.parse(bundle["grant"])
        return bundle | {"grant": envelope.encode(replace(opened, signature=bytes(64)))}

    def made(make: Callable[[Honest], Frame]) -> ByWishes:
        return _inheriting(lambda request: forger.bundle(request, make))

    def of_nan(honest: Honest) -> Frame:
        tensors = tensors_of(honest)
        tensors["block.1.conv.weight"].reshape(-1)[:16] = np.frombuffer(b"\x41\x42\xc0\x7f" * 16, "<f4")
        return released(honest, blobs.encode(tensors))

    def with_metadata(honest: Honest) -> Frame:
        plaintext = opened_blob(Frame("bundle", parts=honest.parts))
        size = struct.unpack("<Q", plaintext[:8])[0]
        header = b'{"__metadata__":{"format":"pt"},' + plaintext[9 : 8 + size]
        return released(honest, struct.pack("<Q", len(header)) + header + plaintext[8 + size :])

    month, crossed = 30 * 24 * 3600, {"run_id": "f" * 32}
    few: Value = {"clip_micro": 0, "estimator": "sampled", "samples": 128, "source": "collective"}
    long_ago: dict[str, Value] = {"issued_at": unix_seconds() - month, "expires_at": unix_seconds() - month + 3600}
    return [
        (
            "publish to an individual",
            "the relay orders an individual to publish",
            "policy_denied",
            _shown_by(Frame("publish")),
        ),
        (
            "evolve at an individual",
            "the relay orders an individual to train a learngene and to give it away",
            "policy_denied",
            _shown_by(Frame("evolve"), Frame("publish")),
        ),
        (
            "a wish to read a file",
            "a wish that no party knows, with the path of an image",
            "policy_denied",
            lambda target: _shown_by(Frame("read", words={"path": target.image}))(target),
        ),
        (
            "adapt before anything is inherited",
            "the order comes in the wrong state; why it fails stays here",
            "failed",
            adapting_first,
        ),
        (
            "the text of an error",
            "a wish fails, and the error's text names the party's own folder",
            "failed",
            told_by_failing,
        ),
        (
            "inherit what was never requested",
            "a bundle of the collective answers a request that was never made",
            "wrong_audience",
            _inheriting(lambda request: forger.bundle(request, in_grant={"request": "0" * 64})),
        ),
        (
            "a bundle of another run",
            "release and grant belong to another run of the same parties",
            "wrong_run",
            _inheriting(lambda request: forger.bundle(request, in_release=crossed, in_grant=crossed)),
        ),
        (
            "a bundle from a stranger",
            "release and grant are signed with a key that nobody pinned",
            "unknown_key",
            _inheriting(stranger.bundle),
        ),
        (
            "a grant with a forged signature",
            "the signature does not belong to the grant",
            "bad_signature",
            _inheriting(badly_signed),
        ),
        (
            "the answer to another individual",
            "the relay swaps the bundles of two individuals",
            "wrong_audience",
            _inheriting(for_another),
        ),
        (
            "a grant of another release",
            "the relay joins the grant of one release to another one",
            "digest_mismatch",
            _inheriting(of_another_release),
        ),
        ("an older release", "an older release after a newer one", "rollback", older_after_newer),
        ("the same bundle again", "the relay brings the same bundle twice", "receipt", again),
        (
            "an expired release",
            "a release of last month",
            "expired",
            _inheriting(lambda request: forger.bundle(request, in_release=long_ago)),
        ),
        (
            "a blob with a bit turned over",
            "the relay changes one bit of the blob",
            "digest_mismatch",
            _inheriting(flipped("blob")),
        ),
        (
            "a release with a further field",
            "the collective signs a release with free text in it",
            "malformed",
            _inheriting(lambda request: forger.bundle(request, in_release={"note": "hello"})),
        ),
        (
            "a learngene with a classifier",
            "the collective signs a tensor that the architecture does not have",
            "policy_denied",
            made(lambda honest: with_tensor(honest, "classifier.2.weight", "float32", bytes(64))),
        ),
        (
            "a learngene of bytes",
            "the collective signs a tensor of another type",
            "malformed",
            made(lambda honest: with_tensor(honest, "block.9.images", "uint8", bytes(64))),
        ),
        (
            "a learngene with an oversized name",
            "the collective signs a tensor whose name has thousands of characters",
            "malformed",
            made(lambda honest: with_tensor(honest, "a" * 4000, "float32", bytes(64))),
        ),
        ("a learngene of NaN", "the collective signs weights that are NaN with a payload", "non_finite", made(of_nan)),
        (
            "a learngene with metadata",
            "the collective signs a blob whose header has a place for free text",
            "malformed",
            made(with_metadata),
        ),
        (
            "a learngene with a Fisher diagonal of few images",
            "the collective signs a diagonal from 128 images",
            "policy_denied",
            _inheriting(lambda request: forger.bundle(request, in_release={"fisher": few})),
        ),
    ]


def _at_the_collective(sites: Sites) -> list[_Described]:
    collective, individual, run_id = sites.collective.keys.signing, sites.individual.keys, sites.run_id
    encryption = individual.encryption
    assert encryption is not None

    def request(key: SigningKey = individual.signing, now: int = 0, nonce: bytes = b"", run: str = run_id) -> bytes:
        return make_request(
            run_id=run,
            audience=collective.keyid,
            form="condensed",
            key=key,
            encryption=encryption,
            now=now or unix_seconds(),
            nonce=nonce or secrets.token_bytes(16),
        )

    def receipt(release: str, key: SigningKey = individual.signing) -> Frame:
        data = make_receipt(run_id=run_id, release=release, audience=collective.keyid, key=key, now=unix_seconds())
        return Frame("receipt", parts={"receipt": data})

    def answered(make: Callable[[], bytes]) -> ByWishes:
        """Succeeds where a request is answered with a blob."""

        def attack(target: Target) -> str:
            answer = target.ask(Frame("publish", parts={"request": make()}))
            return SUCCEEDED if "blob" in answer.parts else _refused_as(answer)

        return attack

    def counted(*wishes: Callable[[Target], Frame]) -> ByWishes:
        """Succeeds where the last wish adds a receipt."""

        def attack(target: Target) -> str:
            made = [wish(target) for wish in wishes]
            for wish in made[:-1]:
                target.ask(wish)
            before = target.receipts()
            answer = target.ask(made[-1])
            return SUCCEEDED if target.receipts() != before else _refused_as(answer)

        return attack

    def granted(target: Target) -> str:
        """The digest of a release that was granted to this individual."""
        parts = target.ask(Frame("publish", parts={"request": request()})).parts
        return envelope.digest(parts.get("release", b""))

    def with_another_key() -> bytes:
        opened = envelope.parse(request())
        swapped = messages.decode(Request, opened.payload).model_copy(
            update={"hpke_public": EncryptionKey.generate().public.hex()}
        )
        return envelope.encode(replace(opened, payload=messages.encode(swapped)))

    def twice_one_nonce() -> bytes:
        sites.collective.ask(Frame("publish", parts={"request": request(nonce=b"n" * 16)}))
        return request(nonce=b"n" * 16, now=unix_seconds() - 7)

    def again(target: Target) -> str:
        wish = receipt(granted(target))
        return counted(lambda _: wish, lambda _: wish)(target)

    return [
        (
            "a receipt again",
            "the relay brings the same receipt twice",
            "accepted",
            again,
        ),
        (
            "a receipt for what was never granted",
            "an individual acknowledges a release that it never got",
            "wrong_audience",
            counted(lambda _: receipt("e" * 64)),
        ),
        (
            "a receipt from a stranger",
            "a receipt signed with a key that nobody pinned",
            "unknown_key",
            counted(lambda target: receipt(granted(target), SigningKey.generate())),
        ),
        (
            "a request for somebody else's key",
            "the relay puts its own encryption key into a request",
            "bad_signature",
            answered(with_another_key),
        ),
        (
            "a request from a stranger",
            "a request signed with a key that nobody pinned",
            "unknown_key",
            answered(lambda: request(SigningKey.generate())),
        ),
        (
            "a request of last month",
            "the relay repeats an old request",
            "expired",
            answered(lambda: request(now=unix_seconds() - 30 * 24 * 3600)),
        ),
        (
            "a request of another run",
            "the relay crosses two runs",
            "wrong_run",
            answered(lambda: request(run="f" * 32)),
        ),
        (
            "two requests with one nonce",
            "an individual says two things at once",
            "equivocation",
            answered(twice_one_nonce),
        ),
        (
            "inherit at a collective",
            "the relay orders a collective to take a bundle and show what comes of it",
            "policy_denied",
            lambda target: (
                SUCCEEDED
                if target.ask(wish := Frame("inherit", parts={"blob": b"x"})).word == "receipt"
                else _refused_as(target.ask(wish))
            ),
        ),
        (
            "a wish to read the collective's file",
            "a wish that no party knows, with the path of an image",
            "policy_denied",
            lambda target: _shown_by(Frame("read", words={"path": target.image}))(target),
        ),
    ]


# ----------------------------------------------------------------------------------------------------------------------
# Frames

#: Connected to a node, and past its handshake where there is one.
Connect = Callable[[], contextlib.AbstractContextManager[socket.socket]]
#: An attack by frames: connects, knows the folder beside which a file may turn up, and waits so long (s).
ByFrames = Callable[[Connect, Path, float], str]


def frame_attacks(site: Site, folder: Path) -> list[Attack]:
    """Frames that no courier of ours sends, to the real node of ``site``; the control is a node that reads them without
    limits. ``folder``: the control's own."""
    folder.mkdir(mode=0o700)
    node, secret = site.node, load_secret(site.node.secret)

    @contextlib.contextmanager
    def real() -> Iterator[socket.socket]:
        with _connected(node.socket) as connection:
            open_handshake(connection, secret)
            yield connection

    def attack(name: str, tries: str, refused_as: str, by: ByFrames) -> Attack:
        def control() -> bool:
            with serving(UnprotectedNode(site.role, node, site.keys), folder) as path:
                return by(lambda: _connected(path), folder, _SOON) == SUCCEEDED

        def confined() -> Finding:
            found = _found(by(real, node.state, _PATIENCE), refused_as)
            # Whatever came, the node serves on.
            return found if site.ask(Frame("status")).word == "status" else Finding("escaped", "the node is gone")

        return Attack(name, "messages", tries, control, confined)

    def named_like_a_path(connect: Connect, beside: Path, patience: float) -> str:
        escaped = beside.parent / "escaped"
        header = b'{"numbers":{},"parts":{"../escaped":4},"word":"status","words":{}}'
        with connect() as connection:
            connection.sendall(struct.pack(">I", len(header)) + header + b"data")
            answer = receive_frame(connection, seconds=_PATIENCE)
        try:
            return SUCCEEDED if escaped.exists() else _refused_as(answer)
        finally:
            escaped.unlink(missing_ok=True)

    def held(data: bytes) -> ByFrames:
        """Succeeds where the node goes on waiting for what was announced."""

        def by(connect: Connect, _: Path, patience: float) -> str:
            with connect() as connection:
                connection.sendall(data)
                try:
                    return _refused_as(receive_frame(connection, seconds=patience))
                except DisconnectedError:
                    return SUCCEEDED

        return by

    def said_twice(connect: Connect, _: Path, patience: float) -> str:
        path = str(site.private)
        header = b'{"numbers":{},"parts":{},"word":"status","word":"read","words":{"path":"%s"}}' % path.encode()
        with connect() as connection:
            connection.sendall(struct.pack(">I", len(header)) + header)
            answer = receive_frame(connection, seconds=_PATIENCE)
        return SUCCEEDED if site.marker in answer.parts.get("content", b"") else _refused_as(answer)

    def two_at_once(connect: Connect, _: Path, patience: float) -> str:
        header = encode_header(Frame("status"))
        with connect() as connection:
            connection.sendall(2 * (struct.pack(">I", len(header)) + header))
            receive_frame(connection, seconds=_PATIENCE)
            try:
                receive_frame(connection, seconds=patience)
            except DisconnectedError:
                return "closed"
            return SUCCEEDED

    huge = b'{"numbers":{},"parts":{"blob":%d},"word":"status","words":{}}' % 2**40
    many = b'{"numbers":{},"parts":{%s},"word":"status","words":{}}' % b",".join(b'"p%03d":1' % n for n in range(100))
    return [
        attack("a part named like a path", "a wish whose part is called ../escaped", "malformed", named_like_a_path),
        attack(
            "a header of four gigabytes", "a frame announces more than anybody holds", "too_large", held(b"\xff" * 4)
        ),
        attack(
            "a part of a terabyte",
            "a header announces a part that would never end",
            "too_large",
            held(struct.pack(">I", len(huge)) + huge),
        ),
        attack(
            "a hundred parts",
            "a header announces more parts than any message has",
            "malformed",
            held(struct.pack(">I", len(many)) + many),
        ),
        attack("a header that says two things", "the wish stands twice in a header", "malformed", said_twice),
        attack("two wishes at once", "a second wish behind the first, past what was counted", "closed", two_at_once),
        *_handshake_attacks(site, folder),
        _slow_attack(),
        _false_node_attack(folder),
    ]


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PATIENCE)
        connection.connect(str(path))
        yield connection


def _spoken(path: Path, proof: bytes | None) -> bool:
    """Whether a node answers who shows this proof, or none, to its greeting."""
    header = encode_header(Frame("status"))
    frame = struct.pack(">I", len(header)) + header
    with _connected(path) as connection:
        connection.settimeout(_SOON)
        received = b""
        # Closed or silent: then what was received counts.
        with contextlib.suppress(OSError):
            if proof is not None:
                received = connection.recv(1000)
            connection.sendall((proof or b"") + frame.ljust(100))
            while piece := connection.recv(1000):
                received += piece
    return b'"word":"status"' in received


def _overheard(path: Path, secret: bytes) -> bytes:
    """What an honest courier sends in its handshake."""
    sent = bytearray()

    class Ear(socket.socket):
        def send(self, data: bytes | memoryview, *_: int) -> int:  # type: ignore[override]
            sent.extend(data)
            return super().send(data)

    with Ear(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PATIENCE)
        connection.connect(str(path))
        open_handshake(connection, secret)
        proof = bytes(sent)
        send_frame(connection, Frame("status"))
        receive_frame(connection, seconds=_PATIENCE)
    return proof


def _handshake_attacks(site: Site, folder: Path) -> list[Attack]:
    """Wishes from who does not know the socket's secret; the controls are a door without a handshake, and one whose
    greeting is always the same."""
    path, secret = site.node.socket, load_secret(site.node.secret)

    def unprotected(*, handshake: bool) -> bool:
        with serving(UnprotectedNode(site.role, site.node, site.keys), folder, handshake=handshake) as naive:
            return _spoken(naive, _overheard(naive, bytes(32)) if handshake else None)

    return [
        Attack(
            "no handshake",
            "messages",
            "a wish without the proof that its sender knows the socket's secret",
            lambda: unprotected(handshake=False),
            lambda: "escaped" if _spoken(path, None) else "blocked",
        ),
        Attack(
            "a handshake again",
            "messages",
            "the proof of an earlier courier, which was overheard",
            lambda: unprotected(handshake=True),
            lambda: "escaped" if _spoken(path, _overheard(path, secret)) else "blocked",
        ),
    ]


def _slow_attack() -> Attack:
    """Over a pair of sockets, with a short deadline in place of the node's 60 s."""
    seconds = 0.3

    def held(read: Callable[[socket.socket], object]) -> bool:
        """Whether a reader is still reading after four times its deadline, while a byte comes now and then."""
        here, there = socket.socketpair()
        ended = threading.Event()

        def reading() -> None:
            with contextlib.suppress(OSError, LearngeneError):
                read(there)
            ended.set()

        with here, there:
            threading.Thread(target=reading, daemon=True).start()
            here.sendall(struct.pack(">I", 1000))
            deadline = time.monotonic() + 4 * seconds
            while time.monotonic() < deadline and not ended.is_set():
                with contextlib.suppress(OSError):
                    here.sendall(b"x")
                time.sleep(seconds / 5)
            return not ended.is_set()

    def patient(connection: socket.socket) -> None:
        # A deadline for each piece, and none for the whole: what a plain timeout of a socket is.
        connection.settimeout(seconds)
        while connection.recv(1):
            pass

    return Attack(
        "half a frame, slowly",
        "messages",
        "a frame comes a byte at a time, so that the node waits for ever",
        lambda: held(patient),
        lambda: "escaped" if held(lambda connection: receive_frame(connection, seconds=seconds)) else "blocked",
    )


def _false_node_attack(folder: Path) -> Attack:
    """Somebody else listens where the courier expects its node."""

    def overhears(bring: Callable[[Path], object]) -> bool:
        path = folder / "false.sock"
        path.unlink(missing_ok=True)
        received = bytearray()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(_PATIENCE)

            def pretend() -> None:
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(_SOON)
                        # Who brings a wish at once may be gone already.
                        with contextlib.suppress(OSError):
                            connection.sendall(b"learngene socket 1\n" + bytes(32))
                            received.extend(connection.recv(64))
                            connection.sendall(bytes(32))
                        while piece := connection.recv(1000):
                            received.extend(piece)

            thread = threading.Thread(target=pretend, daemon=True)
            thread.start()
            with contextlib.suppress(LearngeneError, OSError):
                bring(path)
            thread.join(_PATIENCE)
        return b"a learngene" in received

    wish = Frame("inherit", parts={"blob": b"a learngene"})

    def believing(path: Path) -> None:
        with _connected(path) as connection:
            send_frame(connection, wish)

    return Attack(
        "a false node",
        "messages",
        "somebody without the secret listens at the node's socket, to be brought what is the node's",
        lambda: overhears(believing),
        lambda: "escaped" if overhears(lambda path: ask(path, b"s" * 32, wish, patience=5.0)) else "blocked",
    )


# ----------------------------------------------------------------------------------------------------------------------
# Sizes


def size_attacks(sites: Sites) -> list[Attack]:
    """What the sizes of an individual's messages say; the control is the same message without its padding."""
    key = sites.individual.keys.signing
    there, now = sites.collective.keys.signing.keyid, unix_seconds()

    def requests() -> list[bytes]:
        wishes = [Frame("request", words={"form": form}) for form in get_args(Form)]
        return [sites.individual.ask(wish).part("request") for wish in wishes]

    def aborts() -> list[bytes]:
        codes, subjects = get_args(AbortCode), (None, "0" * 64)
        return [
            make_abort(run_id=sites.run_id, audience=there, code=code, subject=subject, key=key, now=now)
            for code in codes
            for subject in subjects
        ]

    def receipts() -> list[bytes]:
        # From the first second of the epoch to the last that the format has.
        times = (0, now, 2**40 - messages.LIFE)
        return [
            make_receipt(run_id=sites.run_id, release="0" * 64, audience=there, key=key, now=moment) for moment in times
        ]

    def attack(name: str, tries: str, make: Callable[[], list[bytes]]) -> Attack:
        return Attack(
            name,
            "messages",
            tries,
            lambda: len({len(_unpadded(message)) for message in make()}) > 1,
            lambda: "blocked" if len({len(message) for message in make()}) == 1 else "escaped",
        )

    return [
        attack("the size of a request", "its length tells which form is asked for", requests),
        attack("the size of a receipt", "its length tells what is in it", receipts),
        attack("the size of an abort", "its length tells why it stops", aborts),
    ]


def _unpadded(message: bytes) -> bytes:
    opened = envelope.parse(message)
    model: type[Payload] = messages.MODELS[opened.payload_type]
    return canonical_json.encode(messages.decode(model, opened.payload).model_dump(mode="json") | {"pad": ""})
