"""Nodes' folders as ``init`` and ``learngene trust`` leave them, and commands that work on them, for several tests."""

import contextlib
import io
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from protocol.commands.init_command import initialise
from protocol.commands.terminal import run_app
from protocol.exchange.collective_endpoint import Answer, CollectiveEndpoint
from protocol.exchange.collective_ledger import StoredRelease
from protocol.exchange.individual_endpoint import IndividualEndpoint
from protocol.keys.kem import Kem
from protocol.learngene.architecture import Form
from protocol.learngene.learngene import Learngene
from protocol.messages import bundle_file
from protocol.messages.bundle_file import BundleFile
from protocol.node.configuration import NodeTable, node_table, read
from protocol.node.endpoints import open_endpoint
from protocol.trust.trust_file import write_trust
from protocol.trust.trust_store import TrustStore
from tests.protocol.parties import ROOT, learngene


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit code, what it printed, and what it said on standard error."""

    code: int
    out: str
    err: str


def run(app: typer.Typer, *arguments: object) -> Done:
    """Run a command in this process, as its console script does."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        run_app(app, [str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return Done(ended.value.code, out.getvalue(), err.getvalue())


def refused(done: Done, *words: str, code: int = 2) -> None:
    """Nothing but one line that says what is wrong."""
    assert (done.code, done.out) == (code, ""), done
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    for word in words:
        assert word in done.err, done.err


def succeeded(done: Done) -> str:
    """What a command printed that went well and had nothing to warn of."""
    assert (done.code, done.err) == (0, ""), done
    return done.out


def warned(done: Done, *words: str) -> str:
    """What a command printed that went well and gave one warning."""
    assert done.code == 0, done
    assert done.err.startswith("warning: ")
    assert done.err.count("\n") == 1
    for word in words:
        assert word in done.err, done.err
    return done.out


@dataclass(frozen=True)
class Folders:
    """A collective and two individuals; their configuration files, and one trust store that all of them hold.

    ``root``: the pinned root's public key.
    """

    folder: Path
    collective: Path
    individual: Path
    other: Path
    root: str = ROOT.public_hex

    @property
    def trust(self) -> Path:
        return self.individual.parent / "trust.json"

    @property
    def encryption(self) -> tuple[str, str, str, str]:
        """Options that open what was sealed to the individual."""
        home = self.individual.parent
        return "--encryption-key", str(home / "encryption.key"), "--key-file", str(home / "key.secret")

    def node(self, config: Path) -> NodeTable:
        return node_table(config, read(config), None)

    def collective_endpoint(self) -> CollectiveEndpoint:
        return open_endpoint(self.node(self.collective), CollectiveEndpoint, new=True)

    def individual_endpoint(self) -> IndividualEndpoint:
        return open_endpoint(self.node(self.individual), IndividualEndpoint, new=True)

    def publish(self, made: Learngene | None = None, *, at: int | None = None) -> StoredRelease:
        """The collective publishes a learngene, now or at a time (unix s)."""
        when = int(time.time()) if at is None else at
        return self.collective_endpoint().publish(learngene() if made is None else made, when, os.urandom(32))

    def exchange(self, out: Path, form: Form = "condensed", *, at: int | None = None) -> Path:
        """The individual requests, inherits, and packs what it inherited into the file ``out``."""
        when = int(time.time()) if at is None else at
        endpoint = self.individual_endpoint()
        answer = self.collective_endpoint().answer_request(endpoint.request(form, when, os.urandom(16)), when)
        assert isinstance(answer, Answer)
        endpoint.inherit(*answer, when)
        bundle_file.write(out, BundleFile(*answer))
        return out


def make_folders(folder: Path, *, kem: Kem = "x25519") -> Folders:
    """Three nodes of one run, none of which was ever started."""
    data = folder / "data"
    data.mkdir(parents=True)
    run_id = os.urandom(16).hex()
    store = TrustStore(root=ROOT.public_hex, expires_at=int(time.time()) + 365 * 24 * 3600)
    homes = {name: folder / name for name in ("collective", "individual-1", "individual-2")}
    for party, home in homes.items():
        keys = initialise(
            home,
            role="collective" if party == "collective" else "individual",
            data=data,
            party=party,
            root=ROOT.public_hex,
            run_id=run_id,
            kem=kem,
        )
        store = store.with_key(keys.signing.public_hex, "collective" if party == "collective" else "individual", party)
    for home in homes.values():
        write_trust(home / "trust.json", store, ROOT)
    return Folders(folder, *(home / "config.toml" for home in homes.values()))
