"""Ways in which an individual's node that was taken over could hide its data in an answer."""

import json
from collections.abc import Callable
from dataclasses import replace

from protocol.encoding import canonical_json
from protocol.keys.encryption_key import EncryptionKey
from protocol.messages import envelope
from protocol.messages.payloads import PAYLOAD_TYPES
from protocol.transport.frame import Frame
from sims.boundary.acts.expectation import Open
from sims.boundary.leaks.leak import (
    ANSWER_REFUSED,
    Honest,
    Leak,
    alone,
    altered,
    field_of,
    fields,
    honest_messages,
    message_refused,
    opened_blob,
    part_of,
    released,
    signed,
    with_fields,
    with_receipt,
    with_status,
    word_of,
)


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

    return alone(kind, make)


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
    return replace(released(other, data), fields={})


def _numbers(data: bytes) -> dict[str, int]:
    parts = range(0, len(data), 8)
    return {f"metric{n // 8:02}": int.from_bytes(data[n : n + 8], "little", signed=True) for n in parts}


def _read_numbers(answer: Frame) -> bytes:
    return b"".join(answer.numbers[name].to_bytes(8, "little", signed=True) for name in sorted(answer.numbers))


def _in_names(honest: Honest, data: bytes) -> Frame:
    halves = {f"x{n}-{data[32 * n : 32 * n + 30].hex()}": b"" for n in range(2)}
    return Frame("receipt", parts=with_receipt(honest) | halves)


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


INDIVIDUAL: tuple[Leak, ...] = (
    Leak(
        "a metric as a word",
        "individual",
        "a receipt comes with a word besides: accuracy",
        lambda honest, data: Frame("receipt", fields={"accuracy": data.hex()}, parts=with_receipt(honest)),
        word_of("accuracy"),
        ANSWER_REFUSED,
    ),
    Leak(
        "metrics as numbers",
        "individual",
        "a receipt comes with 64-bit numbers besides",
        lambda honest, data: Frame("receipt", numbers=_numbers(data), parts=with_receipt(honest)),
        _read_numbers,
        ANSWER_REFUSED,
    ),
    Leak(
        "a part beside the receipt",
        "individual",
        "a receipt comes with a part besides: a gradient",
        lambda honest, data: Frame("receipt", parts=with_receipt(honest, gradient=data)),
        part_of("gradient"),
        message_refused("malformed"),
    ),
    Leak(
        "data in the names of parts",
        "individual",
        "a receipt comes with empty parts whose names are the data",
        _in_names,
        _read_names,
        message_refused("malformed"),
        carries=30,
    ),
    Leak(
        "an image in place of the receipt",
        "individual",
        "what is called a receipt is data as it stands in the file",
        lambda honest, data: Frame("receipt", parts={"receipt": data}),
        part_of("receipt"),
        message_refused("malformed"),
    ),
    Leak(
        "an answer of a new kind",
        "individual",
        "an answer that the protocol does not know",
        lambda honest, data: Frame("metrics", parts={"metrics": data}),
        part_of("metrics"),
        message_refused("malformed"),
    ),
    Leak(
        "data as the party's name",
        "individual",
        "a status in which the party calls itself by its data",
        lambda honest, data: with_status(honest, "individual", party=f"x{data.hex()}"),
        word_of("party"),
        ANSWER_REFUSED,
    ),
    Leak(
        "data as the state of its work",
        "individual",
        "a status whose state is on no list",
        lambda honest, data: with_status(honest, "individual", state=data.hex()),
        word_of("state"),
        ANSWER_REFUSED,
    ),
    Leak(
        "data as the name of its work",
        "individual",
        "a status whose work is on no list",
        lambda honest, data: with_status(honest, "individual", job=data.hex()),
        word_of("job"),
        ANSWER_REFUSED,
    ),
    Leak(
        "data as the code of a refusal",
        "individual",
        "a refusal whose code is on no list",
        lambda honest, data: Frame("refused", fields={"code": data.hex()}),
        word_of("code"),
        ANSWER_REFUSED,
    ),
    Leak(
        "a release by an individual",
        "individual",
        "the individual answers with a bundle that it signed itself, its data in the blob",
        _own_release,
        opened_blob,
        message_refused("policy_denied"),
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
        field_of("receipt", "policy_sha256"),
        message_refused("policy_denied"),
        carries=32,
    ),
    Leak(
        "a further field in the receipt",
        "individual",
        "a signed receipt with a field that the format does not have",
        with_fields("receipt", note=bytes.hex),
        field_of("receipt", "note"),
        message_refused("malformed"),
    ),
    Leak(
        "a status on no list in the receipt",
        "individual",
        "a signed receipt whose status is the data",
        with_fields("receipt", status=bytes.hex),
        field_of("receipt", "status"),
        message_refused("malformed"),
    ),
    Leak(
        "data in place of the padding",
        "individual",
        "a signed receipt of the right size, filled with data in place of zeros",
        alone("receipt", _in_place_of_padding),
        _read_padding,
        message_refused("malformed"),
        carries=8,
    ),
    Leak(
        "a longer receipt",
        "individual",
        "a signed receipt whose length is the data",
        alone("receipt", _longer),
        _read_longer,
        message_refused("malformed"),
        carries=1,
    ),
    Leak(
        "data behind the receipt",
        "individual",
        "bytes behind the end of the message",
        alone("receipt", _behind),
        part_of("receipt"),
        message_refused("malformed"),
    ),
    Leak(
        "a key twice in the envelope",
        "individual",
        "the envelope names the payload twice, of which a reader sees one",
        alone("receipt", _key_twice),
        _read_key_twice,
        message_refused("malformed"),
    ),
    Leak(
        "a second signature",
        "individual",
        "an envelope with a second signature, which is data",
        alone("receipt", _second_signature),
        _read_second_signature,
        message_refused("malformed"),
    ),
    Leak(
        "data as the key id of the envelope",
        "individual",
        "the envelope's key id, which is not signed, is data of any length",
        _with_envelope("receipt", keyid=bytes.hex),
        lambda answer: bytes.fromhex(envelope.parse(answer.parts["receipt"]).keyid),
        message_refused("policy_denied"),
    ),
    Leak(
        "data as the nonce of a request",
        "individual",
        "the nonce of a request is data",
        with_fields("request", nonce=lambda data: data[:16].hex()),
        field_of("request", "nonce"),
        Open("a nonce is random, and so are encrypted data: 128 bits a request"),
        carries=16,
    ),
    Leak(
        "data as the encryption key of a request",
        "individual",
        "the public key of a request is data",
        with_fields("request", hpke_public=lambda data: data[:32].hex()),
        field_of("request", "hpke_public"),
        Open("a public key looks random: 256 bits a request (hybrid: 9728)"),
        carries=32,
    ),
    Leak(
        "data as the digest in a receipt",
        "individual",
        "the release that a receipt names is data",
        with_fields("receipt", release=lambda data: data[:32].hex()),
        field_of("receipt", "release"),
        Open("a digest looks random, and the gate keeps no list of what was inherited: 256 bits a receipt"),
        carries=32,
    ),
    Leak(
        "data as a signature",
        "individual",
        "the signature of a message is data",
        _with_envelope("receipt", signature=lambda data: data[:64]),
        lambda answer: envelope.parse(answer.parts["receipt"]).signature,
        message_refused("policy_denied"),
        carries=64,
    ),
    Leak(
        "data as the times of a message",
        "individual",
        "issued_at and expires_at are data",
        alone("receipt", _times),
        _read_times,
        Open("times are checked by the receiver, behind the relay: 80 bits a message"),
        carries=10,
    ),
    Leak(
        "data as run and address of a receipt",
        "individual",
        "run_id and audience are data",
        alone("receipt", _addresses),
        _read_addresses,
        message_refused("policy_denied"),
        carries=48,
    ),
)
