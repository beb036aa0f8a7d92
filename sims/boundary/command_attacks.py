"""Attacks from outside: commands and messages of a hostile relay or a hostile collective to real nodes."""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from protocol.encoding.calendar import unix_seconds
from protocol.exchange.collective_endpoint import CollectiveEndpoint
from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.exchange.individual_ledger import IndividualLedger
from protocol.keys.signing_key import SigningKey
from protocol.learngene.architecture import Form
from protocol.messages import sealing
from protocol.node.endpoints import open_endpoint
from protocol.trust.role import Role
from protocol.trust.trust_file import write_trust
from protocol.trust.trust_store import TrustStore
from sims.boundary.attempt import Attack, Escaped
from sims.boundary.door_attacks import door_attacks
from sims.boundary.frame_attacks import frame_attacks
from sims.boundary.leaks.leak import small_learngene

# Each registers its own when it is imported.
from sims.boundary.node_commands import at_collective, at_individual  # noqa: F401
from sims.boundary.node_commands.target import COMMANDS, Command, Forger, Scene, Target
from sims.boundary.sites import Site, Sites, make_sites, started
from sims.boundary.size_attacks import size_attacks
from sims.boundary.unprotected import UnprotectedNode

_TRUST_SECONDS = 7 * 24 * 3600


def paired_sites(folder: Path, *others: tuple[str, SigningKey]) -> Sites:
    """Two sites that trust each other and no third, but for ``others``: further individuals, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    sites = make_sites(folder)
    store = TrustStore(root=sites.root.public_hex, expires_at=unix_seconds() + _TRUST_SECONDS)
    for site in (sites.collective, sites.individual):
        store = store.with_key(site.keys.signing.public_hex, site.role, site.party)
    for party, key in others:
        store = store.with_key(key.public_hex, "individual", party)
    for site in (sites.collective, sites.individual):
        write_trust(site.folder / "trust.json", store, sites.root)
    return sites


@contextlib.contextmanager
def command_attacks(folder: Path, *, unconfined: bool = False) -> Iterator[list[Attack]]:
    """Commands, messages and frames brought to the real node processes of both parties; the control is a node that
    obeys every command and believes every message.
    """
    other = SigningKey.generate()
    sites = paired_sites(folder, ("individual-2", other))
    collective, individual = sites.collective, sites.individual
    endpoint = open_endpoint(collective.node, CollectiveEndpoint, new=True)
    endpoint.publish(small_learngene(1), unix_seconds(), secrets.token_bytes(sealing.CONTENT_KEY_BYTES))
    forger, stranger = (Forger(key, sites.run_id) for key in (collective.keys.signing, SigningKey.generate()))
    scene = Scene(sites, forger, stranger, other)
    with contextlib.ExitStack() as stack:
        for site in (collective, individual):
            stack.enter_context(started(site, unconfined=unconfined))
        real: dict[Role, Target] = {"collective": _real_collective(sites), "individual": _real_individual(sites)}
        naive = {site.role: _unprotected(site) for site in (collective, individual)}
        yield [
            *(_attack(command, scene, real[command.role], naive[command.role]) for command in COMMANDS),
            *frame_attacks(individual, folder / "frames"),
            *door_attacks(individual, folder / "door"),
            *size_attacks(sites),
        ]


def _attack(command: Command, scene: Scene, real: Target, naive: Target) -> Attack:
    return Attack(
        command.name,
        "messages",
        command.tries,
        command.expected,
        lambda: isinstance(command.by(naive, scene), Escaped),
        lambda: command.by(real, scene),
    )


def _real_individual(sites: Sites) -> Target:
    site = sites.individual

    def inherited() -> object:
        ledger = IndividualLedger(site.node.state)
        try:
            return [found and found.release for found in (ledger.latest(sites.run_id, form) for form in get_args(Form))]
        finally:
            ledger.close()

    return Target(site.ask, inherited, lambda: 0, site.marker, str(site.private), site.folder)


def _real_collective(sites: Sites) -> Target:
    site = sites.collective

    def receipts() -> int:
        ledger = CollectiveLedger(site.node.state)
        try:
            return sum(len(ledger.receipts(release.digest)) for release in ledger.releases(sites.run_id))
        finally:
            ledger.close()

    return Target(site.ask, lambda: None, receipts, site.marker, str(site.private), site.folder)


def _unprotected(site: Site) -> Target:
    node = UnprotectedNode(site.role, site.node, site.keys)
    return Target(
        node.handle, lambda: node.inherited, lambda: node.receipts, site.marker, str(site.private), site.folder
    )
