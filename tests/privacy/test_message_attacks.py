"""Attacks on what crosses: stopped where that can be, and known where it cannot; every control succeeds."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import PolicyDeniedError
from protocol.exchange.audit import Crossings
from protocol.exchange.egress import Gate
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.signing_key import SigningKey
from protocol.node import confine
from protocol.transport.frame import Frame
from protocol.trust.policy import Policy
from sims.boundary.attempt import Attempt, make
from sims.boundary.leaks.all_leaks import LEAKS
from sims.boundary.leaks.hidden import free_bytes, fullest, read_fullest
from sims.boundary.leaks.leak import DATA_BYTES, PARTNER, Leak, honest_messages
from sims.boundary.message_attacks import message_attacks

#: What is known not to be stopped; nothing else may join it unnoticed.
UNSTOPPABLE = {
    "data as the nonce of a request",
    "data as the encryption key of a request",
    "data as the digest in a receipt",
    "data as the times of a message",
    "data in the low bits of weights",
    "data as NaN in the sealed blob",
    "written to the courier past the gate",
    "data as the time of an answer",
    "megabytes with a command that takes nothing",
}
HONEST = honest_messages(
    "individual", SigningKey.from_seed(b"i" * 32), EncryptionKey.from_raw("x25519", b"e" * 32), run_id="0" * 32, now=1
)


def individuals_gate(folder: Path) -> Gate:
    """The gate of the party whose honest messages ``HONEST`` are."""
    return Gate(
        Policy.for_role("individual"),
        Crossings(folder / "log", "individual-1", lambda: 1),
        key=HONEST.key,
        run_id="0" * 32,
        is_partner=PARTNER.keyid.__eq__,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("m")


@pytest.fixture(scope="module")
def attempts(folder: Path) -> Iterator[dict[str, Attempt]]:
    """Every attack, made once against running nodes."""
    with message_attacks(folder, unconfined=not confine.offered()) as attacks:
        made = [make(attack) for attack in attacks]
        assert len({attempt.name for attempt in made}) == len(made)
        yield {attempt.name: attempt for attempt in made}


def test_every_control_succeeds(attempts: dict[str, Attempt]) -> None:
    assert {name: made.detail for name, made in attempts.items() if made.control != "succeeded"} == {}


def test_every_attack_is_stopped_that_can_be(attempts: dict[str, Attempt]) -> None:
    others = {name: made for name, made in attempts.items() if name not in UNSTOPPABLE}
    assert {name: (made.confined, made.detail) for name, made in others.items() if made.confined != "blocked"} == {}
    assert len(others) >= 60


def test_what_cannot_be_stopped_is_said_to_be_so_with_its_reason(attempts: dict[str, Attempt]) -> None:
    found = {name: made for name, made in attempts.items() if made.confined == "not enforced"}
    assert found.keys() == UNSTOPPABLE
    assert all(made.detail for made in found.values())


def test_the_error_whose_text_did_not_leave_held_a_path(attempts: dict[str, Attempt], folder: Path) -> None:
    """Else it would not be worth anything that no path left."""
    assert attempts["the text of an error"].holds
    site = folder / "commands" / "individual-1"
    assert f"request failed: there is no trust store {site / 'trust.json'}" in (site / "state" / "node.log").read_text()


@pytest.mark.parametrize("leak", LEAKS, ids=lambda leak: leak.name)
def test_a_leak_is_read_where_it_is_and_not_where_it_is_not(leak: Leak) -> None:
    honest = honest_messages(leak.role, SigningKey.generate(), EncryptionKey.generate(), run_id="0" * 32, now=1)
    # One leak carries a single byte, so that the first bytes must differ.
    data, others = b"\x01" + secrets.token_bytes(DATA_BYTES - 1), b"\xff" + secrets.token_bytes(DATA_BYTES - 1)
    answer = leak.hide(honest, data)
    assert leak.succeeded(answer, data)
    assert not leak.succeeded(answer, others)
    kind = "receipt" if leak.role == "individual" else "bundle"
    parts = {name: part for name, part in honest.parts.items() if name in ("receipt", "release", "grant", "blob")}
    assert not leak.succeeded(Frame(kind, parts=parts), data)


@pytest.mark.parametrize(("kind", "size"), [("request", 58), ("receipt", 42), ("abort", 42)])
def test_so_many_bytes_a_message_can_be_hidden_and_its_size_stays(kind: str, size: int, tmp_path: Path) -> None:
    """The bound that is stated: measured by hiding exactly so much, past the gate, and reading it back."""
    gate = individuals_gate(tmp_path)
    assert free_bytes(kind) == size
    data = secrets.token_bytes(size)
    message = fullest(HONEST, kind, data)
    gate.let_out("collective", {kind: message})
    assert read_fullest(message, kind) == data
    assert len(message) == len(HONEST.parts[kind])


def test_a_key_id_that_is_not_the_payloads_does_not_leave(tmp_path: Path) -> None:
    """It is not signed, has no schema, and could be 40 kilobytes of anything."""
    gate = individuals_gate(tmp_path)
    leak = next(leak for leak in LEAKS if leak.name == "data as the key id of the envelope")
    for size in (32, 20_000):
        answer = leak.hide(HONEST, secrets.token_bytes(size))
        with pytest.raises(PolicyDeniedError, match="names another signer"):
            gate.let_out("collective", answer.parts)
