"""The node that is attacked by commands, its attackers, and the registration of attacks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol.digest import digest_of
from protocol.encoding.calendar import unix_seconds
from protocol.encoding.canonical_json import Value
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.signing_key import SigningKey
from protocol.messages import envelope, payloads
from protocol.messages.builders import make_grant
from protocol.messages.payloads import Release, Request
from protocol.transport.frame import Frame
from protocol.trust.role import Role
from sims.boundary.acts.expectation import Expected, protocol
from sims.boundary.attempt import Escaped, Refusal
from sims.boundary.leaks.leak import KNOWN_KEY, Honest, altered, honest_messages
from sims.boundary.sites import Sites


@dataclass(frozen=True)
class Target:
    """A node that is attacked by commands.

    Attributes:
        ask: sends it a command.
        inherited: state of what it has inherited; if it changes, the node took something.
        receipts: receipts that it has counted.
        private: bytes in its data that must not come out.
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
        texts = [word.encode() for word in answer.fields.values()]
        return any(
            form in text
            for hidden in (self.private, *secret)
            for form in (hidden, hidden.hex().encode())
            for text in (*answer.parts.values(), *texts)
        )

    def request(self) -> bytes:
        """A request of an individual's, fresh."""
        return self.ask(Frame("request", fields={"form": "condensed"})).part("request")


class Forger:
    """A signer that acts as a collective: the hostile collective, or a stranger."""

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
        described = payloads.decode(Release, envelope.parse(self.honest.parts["release"]).payload)
        content = described.ciphertext.model_copy(update={"size": len(data), "sha256": digest_of(data)})
        run_id = (in_release or {}).get("run_id", self.run_id)
        grant = make_grant(
            payloads.decode(Request, envelope.parse(request).payload),
            digest_of(request),
            described.model_copy(update={"ciphertext": content, "run_id": run_id}),
            digest_of(release),
            key=self.key,
            now=unix_seconds(),
            content_key=KNOWN_KEY,
        )
        return {"release": release, "grant": altered(grant, self.key, **(in_grant or {})), "blob": data}


@dataclass(frozen=True)
class Scene:
    """The attackers.

    Attributes:
        sites: where.
        forger: the collective, hostile.
        stranger: a signer whose key no party has pinned.
        other: key of a further individual, whom both trust.
    """

    sites: Sites
    forger: Forger
    stranger: Forger
    other: SigningKey


#: An attack by commands; returns its outcome.
ByCommands = Callable[[Target, Scene], Refusal | Escaped]


@dataclass(frozen=True)
class Command:
    """An attack by commands on a node of this role; the fields are those of an attack."""

    role: Role
    name: str
    tries: str
    expected: Expected
    by: ByCommands


COMMANDS: list[Command] = []


def against(role: Role, name: str, tries: str, command: str, code: str) -> Callable[[ByCommands], ByCommands]:
    """Register an attack. ``command`` is the refused command, and ``code`` the answer."""

    def register(by: ByCommands) -> ByCommands:
        COMMANDS.append(Command(role, name, tries, protocol(command, code), by))
        return by

    return register


def outcome(command: str, answer: Frame, *, reached: bool) -> Refusal | Escaped:
    """The code of the answer to a command; without a code, its name."""
    return Escaped() if reached else Refusal(command, answer.fields.get("code", answer.name))


def shown_by(target: Target, *commands: Frame) -> Refusal | Escaped:
    """Succeeds if the answers to commands hold something private."""
    answers = [target.ask(command) for command in commands]
    return outcome(commands[-1].name, answers[-1], reached=any(map(target.shows, answers)))


def inheriting(target: Target, parts: Mapping[str, bytes]) -> Refusal | Escaped:
    """Succeeds if the forged bundle is inherited."""
    before = target.inherited()
    answer = target.ask(Frame("inherit", parts=parts))
    return outcome("inherit", answer, reached=target.inherited() != before)
