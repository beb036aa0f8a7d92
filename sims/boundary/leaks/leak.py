"""A way of hiding data in an answer, and the building blocks of all of them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.digest import digest_of
from protocol.encoding import blob as blobs
from protocol.encoding import canonical_json
from protocol.encoding.canonical_json import Value
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.signing_key import SigningKey
from protocol.learngene.architecture import Architecture, Block, InputContract
from protocol.learngene.learngene import FisherDescription, Learngene
from protocol.messages import envelope, payloads, sealing
from protocol.messages.builders import make_abort, make_grant, make_receipt, make_release, make_request
from protocol.messages.envelope import Envelope
from protocol.messages.payloads import NO_RELEASE, Release, Request
from protocol.transport.frame import Frame
from protocol.trust.policy import Policy
from protocol.trust.role import Role
from sims.boundary.acts.expectation import Expected, Holds, protocol

#: Steps of the gate (``protocol.exchange.egress``) that can refuse.
LET_OUT, LET_FRAME_OUT = "let_out", "let_frame_out"
#: A content key that the attacker knows: one who takes a collective over may publish its content key.
KNOWN_KEY = b"\x5a" * sealing.CONTENT_KEY_BYTES
#: Bytes of a party's data that a program tries to get out.
DATA_BYTES = 64

#: The addressee of a node's messages, as its gate knows it.
PARTNER = SigningKey.from_seed(bytes(32))

#: Description of the honest learngene's Fisher diagonal.
FISHER = FisherDescription(source="collective", estimator="sampled", samples=1024, clip_micro=0)


@dataclass(frozen=True)
class Honest:
    """A node's honest messages, before data is hidden in them.

    Attributes:
        key: the party's signing key, which a program that was taken over has.
        parts: an honest message of every kind that the role sends, by kind; and the ``blob`` of the release.
    """

    key: SigningKey
    parts: Mapping[str, bytes]


@dataclass(frozen=True)
class Leak:
    """One way of hiding data.

    Attributes:
        name: short and unique.
        role: the node's role.
        tries: a sentence for a reader.
        hide: makes an answer that hides ``DATA_BYTES`` bytes of data.
        read: extracts the bytes that may hold the data from an answer that came over the socket.
        holds: the expected refusal by the gate; or why the gate cannot stop it, in which case only the amount is known.
        carries: bytes of data that come out.
    """

    name: str
    role: Role
    tries: str
    hide: Callable[[Honest, bytes], Frame]
    read: Callable[[Frame], bytes]
    holds: Holds
    carries: int = DATA_BYTES

    def succeeded(self, answer: Frame, data: bytes) -> bool:
        """Whether an answer, out of the socket, holds the data."""
        try:
            return data[: self.carries] in self.read(answer)
        except (KeyError, ValueError, IndexError):
            return False


def small_learngene(seed: int = 0) -> Learngene:
    """A condensed learngene of two blocks, of random positive values."""
    stem = Block(role="stem", in_channels=3, out_channels=8, pool=True)
    top = Block(role="top", in_channels=8, out_channels=8, pool=True)
    architecture = Architecture(
        form="condensed", input=InputContract(height=8, width=8, channels=3), blocks=(stem, top)
    )
    rng = np.random.default_rng(seed)
    shapes = architecture.tensors(fisher=True)
    tensors = {name: rng.uniform(0.1, 1, shape).astype(np.float32) for name, (_, shape) in shapes.items()}
    return Learngene(architecture, tensors, FISHER)


def honest_messages(role: Role, key: SigningKey, encryption: EncryptionKey, *, run_id: str, now: int) -> Honest:
    """An honest message of each kind that a role sends.

    Args:
        encryption: the encryption key that an individual's request names; the gate does not check its owner.
    """
    asker = key if role == "individual" else PARTNER
    to = PARTNER.keyid
    request = make_request(
        run_id=run_id, audience=to, form="condensed", key=asker, encryption=encryption, now=now, nonce=bytes(16)
    )
    abort = make_abort(run_id=run_id, audience=to, code="stopped", subject=None, key=key, now=now)
    if role == "individual":
        receipt = make_receipt(run_id=run_id, release="0" * 64, audience=to, key=key, now=now)
        return Honest(key, {"request": request, "receipt": receipt, "abort": abort})
    release, data = make_release(
        small_learngene(),
        run_id=run_id,
        seq=1,
        prev=NO_RELEASE,
        key=key,
        key_epoch=1,
        policy_sha256=Policy.for_role("collective").sha256,
        now=now,
        content_key=KNOWN_KEY,
    )
    grant = make_grant(
        payloads.decode(Request, envelope.parse(request).payload),
        digest_of(request),
        payloads.decode(Release, envelope.parse(release).payload),
        digest_of(release),
        key=key,
        now=now,
        content_key=KNOWN_KEY,
    )
    return Honest(key, {"release": release, "grant": grant, "blob": data, "abort": abort})


def fields(data: bytes) -> dict[str, Value]:
    """The payload of a message, as JSON."""
    value = json.loads(envelope.parse(data).payload)
    assert isinstance(value, dict)
    return value


def altered(data: bytes, key: SigningKey, **changes: Value) -> bytes:
    """The same message with other or further fields, padded to its former size if it was padded, and signed again."""
    opened = envelope.parse(data)
    value = fields(data) | changes
    if "pad" in value and "pad" not in changes:
        value["pad"] = ""
        value["pad"] = "0" * max(0, len(opened.payload) - len(canonical_json.encode(value)))
    return signed(opened.payload_type, canonical_json.encode(value), key)


def signed(payload_type: str, body: bytes, key: SigningKey) -> bytes:
    """Any bytes at all under a valid signature."""
    signature = key.sign(envelope.pre_authentication_encoding(payload_type, body))
    return envelope.encode(Envelope(payload_type, body, key.keyid, signature))


def released(honest: Honest, plaintext: bytes, **changes: Value) -> Frame:
    """An answer with any content at all, sealed and released; ``changes``: other fields of the release."""
    ciphertext = sealing.encrypt(KNOWN_KEY, plaintext)
    contents: dict[str, Value] = {
        name: {"sha256": digest_of(data), "size": len(data)}
        for name, data in (("plaintext", plaintext), ("ciphertext", ciphertext))
    }
    release = altered(honest.parts["release"], honest.key, **(contents | changes))
    grant = altered(honest.parts["grant"], honest.key, release=digest_of(release))
    return Frame("bundle", parts={"release": release, "grant": grant, "blob": ciphertext})


def with_tensor(honest: Honest, name: str, dtype: str, data: bytes) -> Frame:
    """The honest release with one tensor more, of any name and type."""
    described = fields(honest.parts["release"])["tensors"]
    assert isinstance(described, list)
    more: Value = {"name": name, "role": "weight", "dtype": dtype, "shape": [len(data)]}
    plaintext = sealing.decrypt(KNOWN_KEY, honest.parts["blob"]) + data
    return released(honest, plaintext, tensors=[*described, more])


def tensors_of(honest: Honest) -> dict[str, NDArray[np.float32]]:
    """A copy of the honest release's tensors, for changes."""
    plaintext = sealing.decrypt(KNOWN_KEY, honest.parts["blob"])
    return {name: array.copy() for name, array in blobs.decode(plaintext).items()}


def opened_blob(answer: Frame) -> bytes:
    """The plaintext of an answer's blob, decrypted with the content key."""
    return sealing.decrypt(KNOWN_KEY, answer.parts["blob"])


def message_refused(code: str) -> Expected:
    """The gate refuses a message, with that code, before it becomes part of an answer."""
    return protocol(LET_OUT, code)


#: The gate refuses the answer.
ANSWER_REFUSED = protocol(LET_FRAME_OUT, "policy_denied")


def field_of(kind: str, name: str) -> Callable[[Frame], bytes]:
    """Reads data in hexadecimal out of a field of a message."""
    return lambda answer: bytes.fromhex(str(fields(answer.parts[kind])[name]))


def part_of(kind: str) -> Callable[[Frame], bytes]:
    """Reads a part."""
    return lambda answer: answer.parts[kind]


def word_of(name: str) -> Callable[[Frame], bytes]:
    """Reads data in hexadecimal out of a word."""
    return lambda answer: bytes.fromhex(answer.fields[name].lstrip("x-"))


def alone(kind: str, make: Callable[[Honest, bytes], bytes]) -> Callable[[Honest, bytes], Frame]:
    """An individual's answer with one message."""
    return lambda honest, data: Frame(kind, parts={kind: make(honest, data)})


def with_fields(kind: str, **changes: Callable[[bytes], Value]) -> Callable[[Honest, bytes], Frame]:
    """An individual's answer with a message whose fields hold data."""
    return alone(
        kind,
        lambda honest, data: altered(
            honest.parts[kind], honest.key, **{name: change(data) for name, change in changes.items()}
        ),
    )


def with_receipt(honest: Honest, **more: bytes) -> dict[str, bytes]:
    """The parts of an answer with the honest receipt."""
    return {"receipt": honest.parts["receipt"], **more}


def with_bundle(honest: Honest, **other: bytes) -> Frame:
    """The honest bundle, with other or further parts."""
    return Frame("bundle", parts={name: honest.parts[name] for name in ("release", "grant", "blob")} | other)


def with_status(honest: Honest, role: Role, **other: str) -> Frame:
    """An honest status, with other words."""
    return Frame("status", fields={"role": role, "party": "taken-over", "state": "idle", "job": "", **other})
