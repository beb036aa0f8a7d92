"""The tables of the two ledgers; by them a ledger recognises its own kind and the other party's."""

from protocol.exchange.ledger_database import Kind

_COLLECTIVE_TABLES = """
CREATE TABLE releases (
    run_id TEXT NOT NULL, seq INTEGER NOT NULL, form TEXT NOT NULL, digest TEXT NOT NULL UNIQUE, prev TEXT NOT NULL,
    envelope BLOB NOT NULL, closed_key BLOB NOT NULL, key_name TEXT NOT NULL UNIQUE,
    withdrawn INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (run_id, seq)
) STRICT;
CREATE TABLE grants (
    request TEXT NOT NULL, run_id TEXT NOT NULL, keyid TEXT NOT NULL, nonce TEXT NOT NULL,
    release TEXT NOT NULL REFERENCES releases (digest), envelope BLOB NOT NULL, PRIMARY KEY (request, release)
) STRICT;
CREATE INDEX grants_by_nonce ON grants (run_id, keyid, nonce);
CREATE TABLE receipts (
    keyid TEXT NOT NULL, release TEXT NOT NULL REFERENCES releases (digest), envelope BLOB NOT NULL,
    PRIMARY KEY (keyid, release)
) STRICT;
"""

_INDIVIDUAL_TABLES = """
CREATE TABLE exchanges (
    run_id TEXT NOT NULL, form TEXT NOT NULL, state TEXT NOT NULL, request TEXT NOT NULL, envelope BLOB NOT NULL,
    release TEXT, PRIMARY KEY (run_id, form)
) STRICT;
CREATE TABLE seen (
    run_id TEXT NOT NULL, key_epoch INTEGER NOT NULL, seq INTEGER NOT NULL, form TEXT NOT NULL, digest TEXT NOT NULL,
    prev TEXT NOT NULL, envelope BLOB NOT NULL, PRIMARY KEY (run_id, key_epoch, seq)
) STRICT;
CREATE TABLE inherited (
    run_id TEXT NOT NULL, key_epoch INTEGER NOT NULL, seq INTEGER NOT NULL, form TEXT NOT NULL, release TEXT NOT NULL,
    grant_digest TEXT NOT NULL, receipt BLOB, PRIMARY KEY (run_id, key_epoch, seq), UNIQUE (run_id, release)
) STRICT;
CREATE TABLE withdrawn (run_id TEXT NOT NULL, release TEXT NOT NULL, PRIMARY KEY (run_id, release)) STRICT;
"""

COLLECTIVE = Kind("collective", _COLLECTIVE_TABLES, "releases", _INDIVIDUAL_TABLES)
INDIVIDUAL = Kind("individual", _INDIVIDUAL_TABLES, "learngenes", _COLLECTIVE_TABLES)
