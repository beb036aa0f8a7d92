"""What the tests of the endpoints share."""

import sys
from collections.abc import Callable

import pytest

from protocol.digest import digest_of
from protocol.exchange.audit import read_crossings
from protocol.exchange.collective_endpoint import Answer, CollectiveEndpoint
from protocol.exchange.individual_endpoint import IndividualEndpoint
from protocol.exchange.verification import VerifiedLearngene
from protocol.messages import envelope
from protocol.trust.trust_store import TrustStore
from tests.protocol.parties import (
    NOW,
    Site,
)

NONCE = b"n" * 16


OTHER_NONCE = b"o" * 16


DIGEST, PARSE = digest_of, envelope.parse


def kinds(site: Site) -> list[tuple[str, str, str]]:
    return [(line.sender, line.receiver, line.kind) for line in read_crossings(site.folder / "crossings.jsonl")]


def everywhere(monkeypatch: pytest.MonkeyPatch, digest: Callable[[bytes], str]) -> None:
    """Put ``digest`` in the place of the protocol's own, in every module that names it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("protocol.") and hasattr(module, "digest_of"):
            monkeypatch.setattr(module, "digest_of", digest)


# Withdrawal.


def inherits(
    collective: CollectiveEndpoint, individual: IndividualEndpoint, nonce: bytes, now: int = NOW
) -> VerifiedLearngene:
    """A new exchange from end to end."""
    answer = collective.answer_request(individual.request("condensed", now, nonce, fresh=True), now)
    assert isinstance(answer, Answer)
    receipt, inherited = individual.inherit(*answer, now)
    collective.accept_receipt(receipt, now)
    return inherited


# Trust that changes while an endpoint is open.


class Changing:
    """A trust store that is replaced, as the file of a running node is."""

    def __init__(self, store: TrustStore) -> None:
        self.store = store

    def __call__(self) -> TrustStore:
        return self.store
