"""Attacks by the sizes of an individual's messages; the control is the same message without its padding."""

from collections.abc import Callable
from typing import get_args

from protocol.encoding import canonical_json
from protocol.encoding.calendar import unix_seconds
from protocol.learngene.architecture import Form
from protocol.messages import envelope, payloads
from protocol.messages.builders import make_abort, make_receipt
from protocol.messages.payloads import AbortCode, Payload
from protocol.transport.frame import Frame
from sims.boundary.acts.expectation import protocol
from sims.boundary.attempt import Attack, Escaped, Found, Refusal
from sims.boundary.sites import Sites

#: Nothing is refused: all messages have one size.
_PADDED = protocol("measure", "one size")


def size_attacks(sites: Sites) -> list[Attack]:
    """The attacks, one for each kind of message of an individual."""
    key = sites.individual.keys.signing
    there, now = sites.collective.keys.signing.keyid, unix_seconds()

    def requests() -> list[bytes]:
        commands = [Frame("request", fields={"form": form}) for form in get_args(Form)]
        return [sites.individual.ask(command).part("request") for command in commands]

    def aborts() -> list[bytes]:
        codes, subjects = get_args(AbortCode), (None, "0" * 64)
        return [
            make_abort(run_id=sites.run_id, audience=there, code=code, subject=subject, key=key, now=now)
            for code in codes
            for subject in subjects
        ]

    def receipts() -> list[bytes]:
        # From the first second of the epoch to the last that the format has.
        times = (0, now, 2**40 - payloads.LIFE)
        return [
            make_receipt(run_id=sites.run_id, release="0" * 64, audience=there, key=key, now=moment) for moment in times
        ]

    return [
        _attack("the size of a request", "its length tells which form is asked for", requests),
        _attack("the size of a receipt", "its length tells what is in it", receipts),
        _attack("the size of an abort", "its length tells why it stops", aborts),
    ]


def _attack(name: str, tries: str, make: Callable[[], list[bytes]]) -> Attack:
    def confined() -> Found:
        sizes = {len(message) for message in make()}
        return Escaped(f"sizes of {sorted(sizes)} bytes") if len(sizes) > 1 else Refusal("measure", "one size")

    return Attack(
        name, "messages", tries, _PADDED, lambda: len({len(_unpadded(message)) for message in make()}) > 1, confined
    )


def _unpadded(message: bytes) -> bytes:
    opened = envelope.parse(message)
    model: type[Payload] = payloads.MODELS[opened.payload_type]
    return canonical_json.encode(payloads.decode(model, opened.payload).model_dump(mode="json") | {"pad": ""})
