"""Ways in which the program of a node that was taken over could hide its party's data in an answer."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from protocol import blob as blobs
from protocol import canonical_json, envelope, messages, sealing
from protocol.architecture import Architecture, Block, InputContract
from protocol.canonical_json import Value
from protocol.encryption_key import EncryptionKey
from protocol.envelope import Envelope
from protocol.keys import SigningKey
from protocol.learngene import FisherDescription, Learngene
from protocol.make_messages import make_abort, make_grant, make_receipt, make_release, make_request
from protocol.messages import NO_RELEASE, PAYLOAD_TYPES, Release, Request
from protocol.policy import Policy
from protocol.socket import Frame
from protocol.trust import Role

#: Whoever takes a collective over may tell everybody its content key.
KNOWN_KEY = b"\x5a" * sealing.CONTENT_KEY_BYTES
#: Bytes of a party's data that a program tries to get out.
DATA_BYTES = 64

#: Whom a node's messages are addressed to, as far as its gate is told.
PARTNER = SigningKey.from_seed(bytes(32))

_FISHER = FisherDescription(source="collective", estimator="sampled", samples=1024, clip_micro=0)


@dataclass(frozen=True)
class Honest:
    """What a node's own messages are, before anything is hidden in them.

    Attributes:
        key: the party's signing key, which a program that was taken over has.
        parts: an honest message of every kind that the role sends, by kind; and the ``blob`` of the release.
    """

    key: SigningKey
    parts: Mapping[str, bytes]


@dataclass(frozen=True)
class Leak:
    """One way.

    Attributes:
        name: short and unique.
        role: whose node it is.
        tries: a sentence for a reader.
        hide: makes the answer; ``DATA_BYTES`` bytes of data are to be hidden.
        read: what may hold the data, out of an answer that came over the socket.
        carries: bytes of data that come out.
        unstoppable: why the gate cannot stop it, where it cannot; then all that is known is how much comes out.
    """

    name: str
    role: Role
    tries: str
    hide: Callable[[Honest, bytes], Frame]
    read: Callable[[Frame], bytes]
    carries: int = DATA_BYTES
    unstoppable: str = ""

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
    return Learngene(architecture, tensors, _FISHER)


def honest_messages(role: Role, key: SigningKey, encryption: EncryptionKey, *, run_id: str, now: int) -> Honest:
    """An honest message of each kind that a role sends.

    Args:
        encryption: an individual's, which the request names; whose it is does not matter to the gate.
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
        policy=Policy.for_role("collective"),
        now=now,
        content_key=KNOWN_KEY,
    )
    grant = make_grant(
        messages.decode(Request, envelope.parse(request).payload),
        envelope.digest(request),
        messages.decode(Release, envelope.parse(release).payload),
        envelope.digest(release),
        key=key,
        now=now,
        content_key=KNOWN_KEY,
    )
    return Honest(key, {"release": release, "grant": grant, "blob": data, "abort": abort})


def fields(data: bytes) -> dict[str, Value]:
    """The payload of a message, as its JSON says it."""
    value = json.loads(envelope.parse(data).payload)
    assert isinstance(value, dict)
    return value


def altered(data: bytes, key: SigningKey, **changes: Value) -> bytes:
    """The same message with other or further fields, filled to its former size where it is padded, and signed anew."""
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
        name: {"sha256": envelope.digest(data), "size": len(data)}
        for name, data in (("plaintext", plaintext), ("ciphertext", ciphertext))
    }
    release = altered(honest.parts["release"], honest.key, **(contents | changes))
    grant = altered(honest.parts["grant"], honest.key, release=envelope.digest(release))
    return Frame("bundle", parts={"release": release, "grant": grant, "blob": ciphertext})


def with_tensor(honest: Honest, name: str, dtype: str, data: bytes) -> Frame:
    """The honest release with one tensor more, of any name and type."""
    described = fields(honest.parts["release"])["tensors"]
    assert isinstance(described, list)
    more: Value = {"name": name, "role": "weight", "dtype": dtype, "shape": [len(data)]}
    plaintext = sealing.decrypt(KNOWN_KEY, honest.parts["blob"]) + data
    return released(honest, plaintext, tensors=[*described, more])


def tensors_of(honest: Honest) -> dict[str, NDArray[np.float32]]:
    """The tensors of the honest release, to be changed."""
    plaintext = sealing.decrypt(KNOWN_KEY, honest.parts["blob"])
    return {name: array.copy() for name, array in blobs.decode(plaintext).items()}


def opened_blob(answer: Frame) -> bytes:
    """What an answer's blob holds, for who knows the content key."""
    return sealing.decrypt(KNOWN_KEY, answer.parts["blob"])


def _bits_of_a_weight(honest: Honest, data: bytes) -> Frame:
    # The lowest byte of a float32 is far below what any training settles.
    tensors = tensors_of(honest)
    weights = tensors["block.1.conv.weight"].view(np.uint8).reshape(-1)
    weights[: 4 * len(data) : 4] = np.frombuffer(data, np.uint8)
    return released(honest, blobs.encode(tensors))


def _read_bits_of_a_weight(answer: Frame) -> bytes:
    array = blobs.decode(opened_blob(answer))["block.1.conv.weight"]
    return array.reshape(-1).view(np.uint8)[::4].tobytes()


def _payloads_of_nan(honest: Honest, data: bytes) -> Frame:
    # 22 bits of a NaN say nothing to arithmetic (IEEE 754); two bytes of them are used here.
    tensors = tensors_of(honest)
    values = np.frombuffer(data, "<u2").astype(np.uint32) | np.uint32(0x7FC0_0000)
    tensors["block.1.conv.weight"].reshape(-1)[: len(values)] = values.view(np.float32)
    return released(honest, blobs.encode(tensors))


def _read_payloads_of_nan(answer: Frame) -> bytes:
    array = blobs.decode(opened_blob(answer))["block.1.conv.weight"].reshape(-1)
    values = array[np.isnan(array)].view(np.uint32) & np.uint32(0xFFFF)
    return values.astype("<u2").tobytes()


def _few_samples(honest: Honest, data: bytes) -> Frame:
    tensors = tensors_of(honest)
    fisher = tensors["fisher.block.1.conv.weight"].view(np.uint8).reshape(-1)
    fisher[: 4 * len(data) : 4] = np.frombuffer(data, np.uint8)
    described: Value = _FISHER.model_dump(mode="json") | {"samples": 128}
    return released(honest, blobs.encode(tensors), fisher=described)


def _read_few_samples(answer: Frame) -> bytes:
    array = blobs.decode(opened_blob(answer))["fisher.block.1.conv.weight"]
    return array.reshape(-1).view(np.uint8)[::4].tobytes()


def _field(kind: str, name: str) -> Callable[[Frame], bytes]:
    """Reads data in hexadecimal out of a field of a message."""
    return lambda answer: bytes.fromhex(str(fields(answer.parts[kind])[name]))


def _part(kind: str) -> Callable[[Frame], bytes]:
    return lambda answer: answer.parts[kind]


def _word(name: str) -> Callable[[Frame], bytes]:
    return lambda answer: bytes.fromhex(answer.words[name].lstrip("x-"))


def _alone(kind: str, make: Callable[[Honest, bytes], bytes]) -> Callable[[Honest, bytes], Frame]:
    """An individual's answer with one message."""
    return lambda honest, data: Frame(kind, parts={kind: make(honest, data)})


def _changed(kind: str, **changes: Callable[[bytes], Value]) -> Callable[[Honest, bytes], Frame]:
    """An individual's answer with a message whose fields hold data."""
    return _alone(
        kind,
        lambda honest, data: altered(
            honest.parts[kind], honest.key, **{name: change(data) for name, change in changes.items()}
        ),
    )


def _receipt(honest: Honest, **more: bytes) -> dict[str, bytes]:
    return {"receipt": honest.parts["receipt"], **more}


def _bundle(honest: Honest, **other: bytes) -> Frame:
    return Frame("bundle", parts={name: honest.parts[name] for name in ("release", "grant", "blob")} | other)


def _status(honest: Honest, role: Role, **other: str) -> Frame:
    return Frame("status", words={"role": role, "party": "taken-over", "state": "idle", "job": "", **other})


def _in_place_of_padding(honest: Honest, data: bytes) -> bytes:
    size = len(str(fields(honest.parts["receipt"])["pad"]))
    return altered(honest.parts["receipt"], honest.key, pad=data.hex()[:size].ljust(size, "0"))


def _read_padding(answer: Frame) -> bytes:
    found = str(fields(answer.parts["receipt"])["pad"])
    return bytes.fromhex(found[: len(found) // 2 * 2])


def _longer(honest: Honest, data: bytes) -> bytes:
    value = fields(honest.parts["receipt"]) | {"pad": "0" * (1024 + data[0])}
    return signed(PAYLOAD_TYPES["receipt"], canonical_json.encode(value), honest.key)


def _read_longer(answer: Frame) -> bytes:
    return bytes([len(str(fields(answer.parts["receipt"])["pad"])) - 1024])


def _with_envelope(kind: str, **changes: Callable[[bytes], str | bytes]) -> Callable[[Honest, bytes], Frame]:
    """An individual's answer whose envelope, outside what is signed, holds data."""

    def make(honest: Honest, data: bytes) -> bytes:
        opened = envelope.parse(honest.parts[kind])
        return envelope.encode(replace(opened, **{name: change(data) for name, change in changes.items()}))  # type: ignore[arg-type]

    return _alone(kind, make)


def _second_signature(honest: Honest, data: bytes) -> bytes:
    value = json.loads(honest.parts["receipt"])
    value["signatures"].append({"keyid": honest.key.keyid, "sig": data.hex()})
    return canonical_json.encode(value)


def _read_second_signature(answer: Frame) -> bytes:
    return bytes.fromhex(json.loads(answer.parts["receipt"])["signatures"][1]["sig"])


def _key_twice(honest: Honest, data: bytes) -> bytes:
    return b'{"payload":"' + data.hex().encode() + b'",' + honest.parts["receipt"][1:]


def _read_key_twice(answer: Frame) -> bytes:
    return bytes.fromhex(answer.parts["receipt"].split(b'"')[3].decode())


def _behind(honest: Honest, data: bytes) -> bytes:
    return honest.parts["receipt"] + b" " + data


def _own_release(honest: Honest, data: bytes) -> Frame:
    other = honest_messages(
        "collective", honest.key, EncryptionKey.from_raw("x25519", bytes(32)), run_id="0" * 32, now=0
    )
    return replace(released(other, data), words={})


def _numbers(data: bytes) -> dict[str, int]:
    parts = range(0, len(data), 8)
    return {f"metric{n // 8:02}": int.from_bytes(data[n : n + 8], "little", signed=True) for n in parts}


def _read_numbers(answer: Frame) -> bytes:
    return b"".join(answer.numbers[name].to_bytes(8, "little", signed=True) for name in sorted(answer.numbers))


def _in_names(honest: Honest, data: bytes) -> Frame:
    halves = {f"x{n}-{data[32 * n : 32 * n + 30].hex()}": b"" for n in range(2)}
    return Frame("receipt", parts=_receipt(honest) | halves)


def _read_names(answer: Frame) -> bytes:
    return b"".join(bytes.fromhex(name[3:]) for name in sorted(answer.parts) if name.startswith("x"))


def _times(honest: Honest, data: bytes) -> bytes:
    number = int.from_bytes(data[:10], "big")
    return altered(honest.parts["receipt"], honest.key, issued_at=number >> 40, expires_at=number & (2**40 - 1))


def _read_times(answer: Frame) -> bytes:
    found = fields(answer.parts["receipt"])
    return (int(str(found["issued_at"])) << 40 | int(str(found["expires_at"]))).to_bytes(10, "big")


def _addresses(honest: Honest, data: bytes) -> bytes:
    text = data.hex()
    return altered(honest.parts["receipt"], honest.key, run_id=text[:32], audience=text[32:96])


def _read_addresses(answer: Frame) -> bytes:
    found = fields(answer.parts["receipt"])
    return bytes.fromhex(f"{found['run_id']}{found['audience']}")


_CLASSIFIER = "classifier.2.weight"

LEAKS: tuple[Leak, ...] = (
    Leak(
        "a metric as a word",
        "individual",
        "a receipt comes with a word besides: accuracy",
        lambda honest, data: Frame("receipt", words={"accuracy": data.hex()}, parts=_receipt(honest)),
        _word("accuracy"),
    ),
    Leak(
        "metrics as numbers",
        "individual",
        "a receipt comes with 64-bit numbers besides",
        lambda honest, data: Frame("receipt", numbers=_numbers(data), parts=_receipt(honest)),
        _read_numbers,
    ),
    Leak(
        "a part beside the receipt",
        "individual",
        "a receipt comes with a part besides: a gradient",
        lambda honest, data: Frame("receipt", parts=_receipt(honest, gradient=data)),
        _part("gradient"),
    ),
    Leak(
        "data in the names of parts",
        "individual",
        "a receipt comes with empty parts whose names are the data",
        _in_names,
        _read_names,
        carries=30,
    ),
    Leak(
        "an image in place of the receipt",
        "individual",
        "what is called a receipt is data as it stands in the file",
        lambda honest, data: Frame("receipt", parts={"receipt": data}),
        _part("receipt"),
    ),
    Leak(
        "an answer of a new kind",
        "individual",
        "an answer that the protocol does not know",
        lambda honest, data: Frame("metrics", parts={"metrics": data}),
        _part("metrics"),
    ),
    Leak(
        "data as the party's name",
        "individual",
        "a status in which the party calls itself by its data",
        lambda honest, data: _status(honest, "individual", party=f"x{data.hex()}"),
        _word("party"),
    ),
    Leak(
        "data as the state of its work",
        "individual",
        "a status whose state is on no list",
        lambda honest, data: _status(honest, "individual", state=data.hex()),
        _word("state"),
    ),
    Leak(
        "data as the name of its work",
        "individual",
        "a status whose work is on no list",
        lambda honest, data: _status(honest, "individual", job=data.hex()),
        _word("job"),
    ),
    Leak(
        "data as the code of a refusal",
        "individual",
        "a refusal whose code is on no list",
        lambda honest, data: Frame("refused", words={"code": data.hex()}),
        _word("code"),
    ),
    Leak(
        "a release by an individual",
        "individual",
        "the individual answers with a bundle that it signed itself, its data in the blob",
        _own_release,
        opened_blob,
    ),
    Leak(
        "a release called a receipt",
        "individual",
        "a release by the individual under the name of a receipt, data in the digest of its policy",
        lambda honest, data: Frame(
            "receipt",
            parts={
                "receipt": altered(
                    _own_release(honest, data).parts["release"], honest.key, policy_sha256=data[:32].hex()
                )
            },
        ),
        _field("receipt", "policy_sha256"),
        carries=32,
    ),
    Leak(
        "a further field in the receipt",
        "individual",
        "a signed receipt with a field that the format does not have",
        _changed("receipt", note=bytes.hex),
        _field("receipt", "note"),
    ),
    Leak(
        "a status on no list in the receipt",
        "individual",
        "a signed receipt whose status is the data",
        _changed("receipt", status=bytes.hex),
        _field("receipt", "status"),
    ),
    Leak(
        "data in place of the padding",
        "individual",
        "a signed receipt of the right size, filled with data in place of zeros",
        _alone("receipt", _in_place_of_padding),
        _read_padding,
        carries=8,
    ),
    Leak(
        "a longer receipt",
        "individual",
        "a signed receipt whose length is the data",
        _alone("receipt", _longer),
        _read_longer,
        carries=1,
    ),
    Leak(
        "data behind the receipt",
        "individual",
        "bytes behind the end of the message",
        _alone("receipt", _behind),
        _part("receipt"),
    ),
    Leak(
        "a key twice in the envelope",
        "individual",
        "the envelope names the payload twice, of which a reader sees one",
        _alone("receipt", _key_twice),
        _read_key_twice,
    ),
    Leak(
        "a second signature",
        "individual",
        "an envelope with a second signature, which is data",
        _alone("receipt", _second_signature),
        _read_second_signature,
    ),
    Leak(
        "data as the key id of the envelope",
        "individual",
        "the envelope's key id, which is not signed, is data of any length",
        _with_envelope("receipt", keyid=bytes.hex),
        lambda answer: bytes.fromhex(envelope.parse(answer.parts["receipt"]).keyid),
    ),
    Leak(
        "a metric beside the bundle",
        "collective",
        "a bundle comes with a part besides",
        lambda honest, data: _bundle(honest, metrics=data),
        _part("metrics"),
    ),
    Leak(
        "a blob that is not the release's",
        "collective",
        "a release and a grant as they should be, and in place of the blob the data",
        lambda honest, data: _bundle(honest, blob=data),
        _part("blob"),
    ),
    Leak(
        "a blob without a release",
        "collective",
        "a bundle of nothing but data",
        lambda honest, data: Frame("bundle", parts={"blob": data}),
        _part("blob"),
    ),
    Leak(
        "a classifier's weights",
        "collective",
        "a signed release that holds a tensor of the classifier",
        lambda honest, data: with_tensor(honest, _CLASSIFIER, "float32", data),
        opened_blob,
    ),
    Leak(
        "a Fisher diagonal from 128 images",
        "collective",
        "a signed release with a Fisher diagonal that follows single images",
        _few_samples,
        _read_few_samples,
    ),
    Leak(
        "a tensor of another type",
        "collective",
        "a signed release that holds bytes: images are bytes",
        lambda honest, data: with_tensor(honest, "block.9.images", "uint8", data),
        opened_blob,
    ),
    Leak(
        "data as a tensor's name",
        "collective",
        "a signed release with a tensor whose name is the data",
        lambda honest, data: with_tensor(honest, data[:32].hex(), "float32", bytes(4)),
        lambda answer: bytes.fromhex(str(fields(answer.parts["release"])["tensors"][-1]["name"])),  # type: ignore[index,call-overload]
        carries=32,
    ),
    Leak(
        "an oversized tensor name",
        "collective",
        "a signed release with a tensor whose name has thousands of characters",
        lambda honest, data: with_tensor(honest, data.hex() * 40, "float32", bytes(4)),
        lambda answer: bytes.fromhex(str(fields(answer.parts["release"])["tensors"][-1]["name"])),  # type: ignore[index,call-overload]
    ),
    Leak(
        "free text in the release",
        "collective",
        "a signed release with a field that the format does not have",
        lambda honest, data: released(honest, opened_blob(_bundle(honest)), note=data.hex()),
        _field("release", "note"),
    ),
    Leak(
        "a metric in the grant",
        "collective",
        "a signed grant with a field that the format does not have",
        lambda honest, data: _bundle(honest, grant=altered(honest.parts["grant"], honest.key, accuracy=data.hex())),
        _field("grant", "accuracy"),
    ),
    # What no rule can tell from what belongs there: stated as it is, with its amount.
    Leak(
        "data as the nonce of a request",
        "individual",
        "the nonce of a request is data",
        _changed("request", nonce=lambda data: data[:16].hex()),
        _field("request", "nonce"),
        carries=16,
        unstoppable="a nonce is random, and so are encrypted data: 128 bits a request",
    ),
    Leak(
        "data as the encryption key of a request",
        "individual",
        "the public key of a request is data",
        _changed("request", hpke_public=lambda data: data[:32].hex()),
        _field("request", "hpke_public"),
        carries=32,
        unstoppable="a public key looks random: 256 bits a request (hybrid: 9728)",
    ),
    Leak(
        "data as the digest in a receipt",
        "individual",
        "the release that a receipt names is data",
        _changed("receipt", release=lambda data: data[:32].hex()),
        _field("receipt", "release"),
        carries=32,
        unstoppable="a digest looks random, and the gate keeps no list of what was inherited: 256 bits a receipt",
    ),
    Leak(
        "data as a signature",
        "individual",
        "the signature of a message is data",
        _with_envelope("receipt", signature=lambda data: data[:64]),
        lambda answer: envelope.parse(answer.parts["receipt"]).signature,
        carries=64,
    ),
    Leak(
        "data as the times of a message",
        "individual",
        "issued_at and expires_at are data",
        _alone("receipt", _times),
        _read_times,
        carries=10,
        unstoppable="times are checked by the receiver, behind the relay: 80 bits a message",
    ),
    Leak(
        "data as run and address of a receipt",
        "individual",
        "run_id and audience are data",
        _alone("receipt", _addresses),
        _read_addresses,
        carries=48,
    ),
    Leak(
        "data in the low bits of weights",
        "collective",
        "the lowest byte of each weight of a release that is as it should be",
        _bits_of_a_weight,
        _read_bits_of_a_weight,
        unstoppable="no schema sees data in weights: 8 bits a weight and more",
    ),
    Leak(
        "data as NaN in the sealed blob",
        "collective",
        "weights that are NaN with data in them",
        _payloads_of_nan,
        _read_payloads_of_nan,
        unstoppable="the gate sees the sealed blob; an honest desk and the receiver refuse what is in it",
    ),
)


#: Fields of an individual's messages that only the receiver can judge, and the bytes that each can carry.
_FREE: Mapping[str, Mapping[str, int]] = {
    "request": {"nonce": 16, "hpke_public": 32},
    "receipt": {"release": 32},
    "abort": {"subject": 32},
}
_TIMES_BYTES = 10


def free_bytes(kind: str) -> int:
    """Bytes that one message of an individual can carry through the gate where its program was taken over: the bound of
    the hidden channel, less what the order of messages and the time between them say."""
    return sum(_FREE[kind].values()) + _TIMES_BYTES


def fullest(honest: Honest, kind: str, data: bytes) -> bytes:
    """The message that carries ``free_bytes(kind)`` bytes of data in all free fields at once."""
    rest = data
    changes: dict[str, Value] = {}
    for name, size in _FREE[kind].items():
        changes[name], rest = rest[:size].hex(), rest[size:]
    number = int.from_bytes(rest[:_TIMES_BYTES], "big")
    changes |= {"issued_at": number >> 40, "expires_at": number & (2**40 - 1)}
    return altered(honest.parts[kind], honest.key, **changes)


def read_fullest(message: bytes, kind: str) -> bytes:
    """The data in a message that :func:`fullest` made."""
    found = fields(message)
    words = bytes.fromhex("".join(str(found[name]) for name in _FREE[kind]))
    times = int(str(found["issued_at"])) << 40 | int(str(found["expires_at"]))
    return words + times.to_bytes(_TIMES_BYTES, "big")
