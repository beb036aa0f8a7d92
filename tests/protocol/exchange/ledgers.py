"""What the tests of the ledgers share."""

import contextlib
import sqlite3
from pathlib import Path

from protocol.digest import digest_of
from protocol.exchange import content_keys
from protocol.exchange.content_keys import ClosedKey
from protocol.messages.builders import make_release
from tests.protocol.parties import (
    COLLECTIVE,
    COLLECTIVE_POLICY,
    NOW,
    RUN,
    content_key,
    learngene,
)


def release(seq: int, prev: str, seed: int = 0) -> tuple[bytes, ClosedKey, bytes]:
    """Envelope, closed content key and sealed blob, as ``add_release`` takes them."""
    key = content_key(seed)
    data, sealed = make_release(
        learngene(seed),
        run_id=RUN,
        seq=seq,
        prev=prev,
        key=COLLECTIVE,
        key_epoch=1,
        policy_sha256=COLLECTIVE_POLICY.sha256,
        now=NOW,
        content_key=key,
    )
    return data, content_keys.close(COLLECTIVE, key, digest_of(data)), sealed


def alter(folder: Path, statement: str, *values: object) -> None:
    """Change the database of a ledger in a folder past the ledger, as whoever can write there might."""
    with contextlib.closing(sqlite3.connect(folder / "ledger.db")) as database, database:
        database.execute(statement, values)
