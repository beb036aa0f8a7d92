"""Attacks by commands on a collective: requests that it must not answer, receipts that it must not count."""

import secrets
from collections.abc import Sequence
from dataclasses import replace

from protocol.digest import digest_of
from protocol.encoding.calendar import unix_seconds
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.signing_key import SigningKey
from protocol.messages import envelope, payloads
from protocol.messages.builders import make_receipt, make_request
from protocol.messages.payloads import Request
from protocol.transport.frame import Frame
from sims.boundary.attempt import Escaped, Refusal
from sims.boundary.node_commands.target import Scene, Target, against, outcome, shown_by

_MONTH = 30 * 24 * 3600


def _request(scene: Scene, key: SigningKey | None = None, now: int = 0, nonce: bytes = b"", run: str = "") -> bytes:
    encryption = scene.sites.individual.keys.encryption
    assert encryption is not None
    return make_request(
        run_id=run or scene.sites.run_id,
        audience=scene.sites.collective.keys.signing.keyid,
        form="condensed",
        key=key or scene.sites.individual.keys.signing,
        encryption=encryption,
        now=now or unix_seconds(),
        nonce=nonce or secrets.token_bytes(16),
    )


def _receipt(scene: Scene, release: str, key: SigningKey | None = None) -> Frame:
    data = make_receipt(
        run_id=scene.sites.run_id,
        release=release,
        audience=scene.sites.collective.keys.signing.keyid,
        key=key or scene.sites.individual.keys.signing,
        now=unix_seconds(),
    )
    return Frame("receipt", parts={"receipt": data})


def _answered(target: Target, request: bytes) -> Refusal | Escaped:
    """Succeeds if a request is answered with a blob."""
    answer = target.ask(Frame("publish", parts={"request": request}))
    return outcome("publish", answer, reached="blob" in answer.parts)


def _counted(target: Target, commands: Sequence[Frame]) -> Refusal | Escaped:
    """Succeeds if the last command adds a receipt."""
    for command in commands[:-1]:
        target.ask(command)
    before = target.receipts()
    answer = target.ask(commands[-1])
    return outcome("receipt", answer, reached=target.receipts() != before)


def _granted(target: Target, scene: Scene) -> str:
    """The digest of a release that was granted to the individual."""
    parts = target.ask(Frame("publish", parts={"request": _request(scene)})).parts
    return digest_of(parts.get("release", b""))


# It is accepted, and counted once.
@against("collective", "a receipt again", "the relay brings the same receipt twice", "receipt", "accepted")
def receipt_again(target: Target, scene: Scene) -> Refusal | Escaped:
    command = _receipt(scene, _granted(target, scene))
    return _counted(target, [command, command])


@against(
    "collective",
    "a receipt for what was never granted",
    "an individual acknowledges a release that it never got",
    "receipt",
    "wrong_audience",
)
def never_granted(target: Target, scene: Scene) -> Refusal | Escaped:
    return _counted(target, [_receipt(scene, "e" * 64)])


@against(
    "collective",
    "a receipt from a stranger",
    "a receipt signed with a key that nobody pinned",
    "receipt",
    "unknown_key",
)
def receipt_of_a_stranger(target: Target, scene: Scene) -> Refusal | Escaped:
    return _counted(target, [_receipt(scene, _granted(target, scene), SigningKey.generate())])


@against(
    "collective",
    "a receipt by the collective itself",
    "the relay brings a receipt that the collective's own key has signed: it is no individual's",
    "receipt",
    "unknown_key",
)
def receipt_of_its_own(target: Target, scene: Scene) -> Refusal | Escaped:
    return _counted(target, [_receipt(scene, _granted(target, scene), scene.forger.key)])


@against(
    "collective",
    "a request for somebody else's key",
    "the relay puts its own encryption key into a request",
    "publish",
    "bad_signature",
)
def with_another_key(target: Target, scene: Scene) -> Refusal | Escaped:
    opened = envelope.parse(_request(scene))
    swapped = payloads.decode(Request, opened.payload).model_copy(
        update={"hpke_public": EncryptionKey.generate().public.hex()}
    )
    return _answered(target, envelope.encode(replace(opened, payload=payloads.encode(swapped))))


@against(
    "collective",
    "a request from a stranger",
    "a request signed with a key that nobody pinned",
    "publish",
    "unknown_key",
)
def request_of_a_stranger(target: Target, scene: Scene) -> Refusal | Escaped:
    return _answered(target, _request(scene, SigningKey.generate()))


@against("collective", "a request of last month", "the relay repeats an old request", "publish", "expired")
def old_request(target: Target, scene: Scene) -> Refusal | Escaped:
    return _answered(target, _request(scene, now=unix_seconds() - _MONTH))


@against("collective", "a request of another run", "the relay crosses two runs", "publish", "wrong_run")
def request_of_another_run(target: Target, scene: Scene) -> Refusal | Escaped:
    return _answered(target, _request(scene, run="f" * 32))


@against(
    "collective",
    "two requests with one nonce",
    "an individual says two things at once",
    "publish",
    "equivocation",
)
def twice_one_nonce(target: Target, scene: Scene) -> Refusal | Escaped:
    nonce = secrets.token_bytes(16)
    target.ask(Frame("publish", parts={"request": _request(scene, nonce=nonce)}))
    return _answered(target, _request(scene, nonce=nonce, now=unix_seconds() - 7))


@against(
    "collective",
    "a receipt in place of a request",
    "the relay brings a message of another kind, rightly signed",
    "publish",
    "malformed",
)
def receipt_for_request(target: Target, scene: Scene) -> Refusal | Escaped:
    return _answered(target, _receipt(scene, "e" * 64).parts["receipt"])


@against(
    "collective",
    "inherit at a collective",
    "the relay orders a collective to take a bundle and show what comes of it",
    "inherit",
    "policy_denied",
)
def inherit(target: Target, scene: Scene) -> Refusal | Escaped:
    answer = target.ask(Frame("inherit", parts={"blob": b"x"}))
    return outcome("inherit", answer, reached=answer.name == "receipt")


@against(
    "collective",
    "a command to read the collective's file",
    "a command that no party knows, with the path of an image",
    "read",
    "policy_denied",
)
def read(target: Target, scene: Scene) -> Refusal | Escaped:
    return shown_by(target, Frame("read", fields={"path": target.image}))
