"""The egress gate: what it lets out, what it refuses, and that both are recorded; frames hold nothing else."""

import dataclasses
import hashlib
from pathlib import Path

import pytest

from protocol.encoding import blob
from protocol.errors import DigestMismatchError, MalformedError, PolicyDeniedError, RefusedError
from protocol.exchange.audit import Crossings, read_crossings
from protocol.exchange.collective_endpoint import Answer
from protocol.exchange.egress import Gate
from protocol.keys.signing_key import SigningKey, check_signature
from protocol.messages import envelope
from protocol.messages.builders import make_receipt, make_request
from protocol.transport.frame import Frame
from protocol.trust.role import Role
from tests.protocol.parties import (
    COLLECTIVE,
    COLLECTIVE_POLICY,
    ENCRYPTION,
    INDIVIDUAL,
    INDIVIDUAL_POLICY,
    NOW,
    OTHER_INDIVIDUAL,
    RUN,
    Exchange,
    flipped,
    learngene,
    resigned,
)


def gate(folder: Path, role: Role) -> Gate:
    policy = COLLECTIVE_POLICY if role == "collective" else INDIVIDUAL_POLICY
    return Gate(
        policy,
        Crossings(folder / "log", role, lambda: NOW),
        key=COLLECTIVE if role == "collective" else INDIVIDUAL,
        run_id=RUN,
        is_partner={INDIVIDUAL.keyid}.__contains__ if role == "collective" else {COLLECTIVE.keyid}.__contains__,
    )


def decisions(folder: Path) -> list[tuple[str, str, str]]:
    return [(line.direction, line.kind, line.decision) for line in read_crossings(folder / "log")]


REQUEST = make_request(
    run_id=RUN,
    audience=COLLECTIVE.keyid,
    form="condensed",
    key=INDIVIDUAL,
    encryption=ENCRYPTION,
    now=NOW,
    nonce=b"n" * 16,
)
RECEIPT = make_receipt(run_id=RUN, release="0" * 64, audience=COLLECTIVE.keyid, key=INDIVIDUAL, now=NOW)


def test_an_individuals_messages_leave_and_are_recorded(tmp_path: Path) -> None:
    there = gate(tmp_path, "individual")
    there.let_out("collective", {"request": REQUEST})
    there.let_out("collective", {"receipt": RECEIPT})
    assert there.let_frame_out(Frame("request", parts={"request": REQUEST}), "individual-1").parts["request"] == REQUEST
    assert decisions(tmp_path) == [("out", "request", "allowed"), ("out", "receipt", "allowed")]


def test_an_individual_sends_nothing_of_a_collective(tmp_path: Path, exchange: Exchange) -> None:
    there = gate(tmp_path, "individual")
    release, grant, blob = exchange.answer
    for parts in ({"release": release}, {"grant": grant}, {"release": release, "blob": blob}):
        with pytest.raises(PolicyDeniedError):
            there.let_out("collective", parts)
    assert {decision for _, _, decision in decisions(tmp_path)} == {"policy_denied"}


def test_a_message_under_the_name_of_another_kind_does_not_leave(tmp_path: Path) -> None:
    with pytest.raises(PolicyDeniedError):
        gate(tmp_path, "individual").let_out("collective", {"receipt": REQUEST})


def test_where_one_part_is_refused_none_is_let_out(tmp_path: Path, exchange: Exchange) -> None:
    here = gate(tmp_path, "collective")
    release, grant, blob = exchange.answer
    with pytest.raises(DigestMismatchError):
        here.let_out("individual-1", {"release": release, "grant": grant, "blob": blob[:-1] + b"x"})
    assert decisions(tmp_path) == [("out", "blob", "digest_mismatch")]
    with pytest.raises(PolicyDeniedError, match="not let out by this gate"):
        here.let_frame_out(Frame("bundle", parts=exchange.answer._asdict()), "collective")


def test_a_blob_leaves_only_with_its_release(tmp_path: Path, exchange: Exchange) -> None:
    here = gate(tmp_path, "collective")
    release, grant, blob = exchange.answer
    for parts in ({"blob": blob}, {"grant": grant, "blob": blob}):
        with pytest.raises(PolicyDeniedError, match="only with the release"):
            here.let_out("individual-1", parts)
        assert decisions(tmp_path)[-1] == ("out", "blob", "policy_denied")
    here.let_out("individual-1", {"blob": blob, "release": release})


def with_signature(data: bytes, signature: bytes) -> bytes:
    return envelope.encode(dataclasses.replace(envelope.parse(data), signature=signature))


def another_valid_signature(message: bytes, seed: bytes) -> bytes:
    """Ed25519 (RFC 8032, 5.1.6) with a random part of the signer's choice, which can be anything that fits in it."""
    order = 2**252 + 27742317777372353535851937790883648493
    expanded = hashlib.sha512(seed).digest()
    secret = int.from_bytes(expanded[:32], "little") & ((1 << 254) - 8) | (1 << 254)
    # The chosen random part r is another key's secret scalar, so that its public key is r times the base point.
    other = hashlib.sha512(b"o" * 32).digest()
    r = int.from_bytes(other[:32], "little") & ((1 << 254) - 8) | (1 << 254)
    point = bytes.fromhex(SigningKey.from_seed(b"o" * 32).public_hex)
    public = bytes.fromhex(SigningKey.from_seed(seed).public_hex)
    k = int.from_bytes(hashlib.sha512(point + public + message).digest(), "little")
    return point + ((r + k * secret) % order).to_bytes(32, "little")


def test_only_the_site_itself_speaks_in_its_run_and_to_its_partner(tmp_path: Path) -> None:
    there = gate(tmp_path, "individual")
    sealed = envelope.parse(RECEIPT)
    message = envelope.pre_authentication_encoding(sealed.payload_type, sealed.payload)
    valid = another_valid_signature(message, b"i" * 32)
    check_signature(bytes.fromhex(INDIVIDUAL.public_hex), valid, message)
    foreign = resigned(RECEIPT, OTHER_INDIVIDUAL, signer=OTHER_INDIVIDUAL.keyid)
    for data, words in (
        (resigned(RECEIPT, INDIVIDUAL, run_id="f" * 32), "another run"),
        (foreign, "not signed by this site"),
        (resigned(RECEIPT, INDIVIDUAL, audience="1" * 64), "no partner"),
        (resigned(RECEIPT, INDIVIDUAL, audience=INDIVIDUAL.keyid), "no partner"),
        (with_signature(RECEIPT, bytes(64)), "signature"),
        (with_signature(RECEIPT, envelope.parse(foreign).signature), "signature"),
        # Valid, and not the one that the key makes: it could hold 32 bytes for whoever has the key.
        (with_signature(RECEIPT, valid), "signature"),
    ):
        with pytest.raises(PolicyDeniedError, match=words):
            there.let_out("collective", {"receipt": data})
        assert decisions(tmp_path)[-1] == ("out", "receipt", "policy_denied")
    there.let_out("collective", {"receipt": RECEIPT})


def test_a_grant_leaves_for_a_partner_only(tmp_path: Path, exchange: Exchange) -> None:
    here = gate(tmp_path, "collective")
    release, grant, blob = exchange.answer
    other = resigned(grant, COLLECTIVE, audience=OTHER_INDIVIDUAL.keyid)
    with pytest.raises(PolicyDeniedError, match="no partner"):
        here.let_out("individual-2", {"release": release, "grant": other, "blob": blob})
    here.let_out("individual-1", exchange.answer._asdict())


@pytest.mark.parametrize("data", [b"", b"raw picture", b"{}", REQUEST + b" ", b" " + REQUEST])
def test_what_is_no_message_does_not_leave(tmp_path: Path, data: bytes) -> None:
    with pytest.raises((MalformedError, PolicyDeniedError)):
        gate(tmp_path, "individual").let_out("collective", {"request": data})


def honest(answer: Answer) -> dict[str, Frame]:
    return {
        "status": Frame("status", fields={"role": "collective", "party": "collective", "state": "idle", "job": ""}),
        "bundle": Frame("bundle", parts=answer._asdict()),
        "accepted": Frame("accepted"),
        "refused": Frame("refused", fields={"code": "expired"}),
    }


def test_every_honest_answer_passes_and_every_addition_is_refused(tmp_path: Path, exchange: Exchange) -> None:
    here = gate(tmp_path, "collective")
    here.let_out("individual-1", exchange.answer._asdict())
    for frame in honest(exchange.answer).values():
        assert here.let_frame_out(frame, "collective") == frame
        hostile = {
            "another part": dataclasses.replace(frame, parts={**frame.parts, "metric": b"0.93"}),
            "a number": dataclasses.replace(frame, numbers={"accuracy": 93}),
            "another word": dataclasses.replace(frame, fields={**frame.fields, "note": "hello"}),
            "another name": dataclasses.replace(frame, name="metrics"),
        }
        for name in frame.fields:
            hostile[f"another {name}"] = dataclasses.replace(frame, fields={**frame.fields, name: "picture-of-anna"})
            hostile[f"no {name}"] = dataclasses.replace(
                frame, fields={n: v for n, v in frame.fields.items() if n != name}
            )
        for name in frame.parts:
            hostile[f"another {name}"] = dataclasses.replace(frame, parts={**frame.parts, name: b"raw picture"})
            hostile[f"no {name}"] = dataclasses.replace(
                frame, parts={n: p for n, p in frame.parts.items() if n != name}
            )
        for name, bad in hostile.items():
            try:
                here.let_frame_out(bad, "collective")
            except RefusedError:
                continue
            pytest.fail(f"{frame.name} with {name} passed")


def test_parts_do_not_change_places(tmp_path: Path, exchange: Exchange) -> None:
    here = gate(tmp_path, "collective")
    here.let_out("individual-1", exchange.answer._asdict())
    release, grant, blob = exchange.answer
    with pytest.raises(PolicyDeniedError):
        here.let_frame_out(Frame("bundle", parts={"release": grant, "grant": release, "blob": blob}), "collective")


def test_a_blob_leaves_only_with_the_release_that_describes_it(tmp_path: Path, exchange: Exchange) -> None:
    here, (release, grant, sealed) = gate(tmp_path, "collective"), exchange.answer
    here.let_out("individual-1", {"release": release, "grant": grant, "blob": sealed})
    # The learngene itself, unsealed, is the last thing that may leave in the blob's place.
    for other in (sealed + b"\0", flipped(sealed, 7), b"", blob.encode(learngene().tensors)):
        with pytest.raises(DigestMismatchError):
            here.let_out("individual-1", {"release": release, "blob": other})
    with pytest.raises(PolicyDeniedError):
        here.let_out("individual-1", {"grant": grant, "blob": sealed})
