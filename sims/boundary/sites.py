"""Two parties' sites on this machine: folders, keys, trust, images; and node processes started in them."""

import contextlib
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from protocol.commands.init_command import initialise
from protocol.errors import RunFailedError
from protocol.keys.party_keys import NodeKeys
from protocol.keys.signing_key import SigningKey
from protocol.node.configuration import NodeTable, node_table, read
from protocol.transport.frame import Frame
from protocol.transport.local_socket import DisconnectedError, ask, load_secret
from protocol.trust.role import Role
from protocol.trust.trust_file import write_trust
from protocol.trust.trust_store import TrustStore
from sims.run.processes import NodeProcess, NodeProcesses

#: Program of a node process that does what its courier asks for, however hostile (``sims.boundary.hostile_program``).
HOSTILE = "sims.boundary.hostile_program"
_TRUST_SECONDS = 7 * 24 * 3600
#: Bytes of a marker that a party's images hold and nothing else does.
MARKER_BYTES = 32


@dataclass(frozen=True)
class Site:
    """One party's site, as ``init`` and ``learngene trust`` leave it.

    Attributes:
        folder: ``config.toml``, keys, ``trust.json``, ``node.sock``, ``socket.secret`` and ``state/``.
        keys: the party's private keys, opened.
        marker: bytes that stand in ``data/private.bin`` and nowhere else.
    """

    role: Role
    party: str
    folder: Path
    data: Path
    keys: NodeKeys
    marker: bytes

    @property
    def config(self) -> Path:
        """The node's configuration file."""
        return self.folder / "config.toml"

    @property
    def node(self) -> NodeTable:
        """Its table ``[node]``."""
        return node_table(self.config, read(self.config), self.role)

    @property
    def private(self) -> Path:
        """The file in the data folder that holds the marker."""
        return self.data / "private.bin"

    def ask(self, command: Frame, *, patience: float = 60.0) -> Frame:
        """Send a command to the node process of this site as its courier does.

        Raises:
            DisconnectedError: none answers within ``patience`` (s).
        """
        node = self.node
        return ask(node.socket, load_secret(node.secret), command, patience=patience)


@dataclass(frozen=True)
class Sites:
    """The sites of one run, whose trust stores one root key has signed.

    Attributes:
        unprotected: a second collective, for the controls: the same in everything, and never confined.
    """

    folder: Path
    run_id: str
    root: SigningKey
    collective: Site
    individual: Site
    unprotected: Site

    @property
    def all(self) -> tuple[Site, Site, Site]:
        """Every site."""
        return self.collective, self.individual, self.unprotected


def make_sites(
    folder: Path,
    *,
    data: Mapping[Role, Path] | None = None,
    tables: Mapping[Role, Mapping[str, object]] | None = None,
) -> Sites:
    """Make the sites in a folder, without starting anything.

    Args:
        folder: new or empty; short, as the sockets lie in it.
        data: each party's images, which are copied; a folder of a few random files if none is given.
        tables: what the tables ``[collective]`` and ``[individual]`` of the configurations hold.
    """
    root, run_id = SigningKey.generate(), secrets.token_hex(16)
    sites: list[Site] = []
    parties: tuple[tuple[Role, str], ...] = (
        ("collective", "collective"),
        ("individual", "individual-1"),
        ("collective", "unprotected"),
    )
    for role, party in parties:
        images, marker = folder / f"{party}-data", secrets.token_bytes(MARKER_BYTES)
        if data is not None and role in data:
            shutil.copytree(data[role], images)
        images.mkdir(mode=0o700, parents=True, exist_ok=True)
        (images / "private.bin").write_bytes(marker)
        home = folder / party
        keys = initialise(home, role=role, data=images, party=party, root=root.public_hex, run_id=run_id)
        config = home / "config.toml"
        text = config.read_text().replace("threads = 0", "threads = 1")
        table = (tables or {}).get(role)
        config.write_text(text + ("\n" + tomli_w.dumps({role: table}) if table else ""))
        sites.append(Site(role, party, home, images, keys, marker))
    found = Sites(folder, run_id, root, *sites)
    empty = TrustStore(root=root.public_hex, expires_at=int(time.time()) + _TRUST_SECONDS)
    # A party believes one collective; the individual's is the real one.
    for pair in ((found.unprotected, found.individual), (found.collective, found.individual)):
        store = empty
        for site in pair:
            store = store.with_key(site.keys.signing.public_hex, site.role, site.party)
        for site in pair:
            write_trust(site.folder / "trust.json", store, root)
    return found


@contextlib.contextmanager
def started(
    site: Site,
    *,
    unconfined: bool = False,
    module: str | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    inherited: Sequence[int] = (),
) -> Iterator[NodeProcess]:
    """The node process of a site, by the real launcher: confined, unless ``unconfined``. It answers when this returns,
    and has ended after the ``with``.

    Args:
        module: run as ``python -m MODULE --config FILE``; None: the party's own program. ``HOSTILE``: our attacker.
        environment: variables beside those of this process.
        stdin: descriptor of its standard input.
        inherited: descriptors that stay open in it.

    Raises:
        RunFailedError: it does not start; for a confined one, because this kernel cannot confine it, say.
    """
    node = site.node
    with NodeProcesses() as processes:
        process = processes.start(
            site.role,
            site.party,
            site.config,
            socket=node.socket,
            state=node.state,
            module=module,
            options=("--unconfined",) if unconfined else (),
            environment={"OMP_NUM_THREADS": "1", **(environment or {})},
            stdin=stdin,
            inherited=inherited,
        )
        processes.wait_until_listening()
        try:
            site.ask(Frame("status"))
        except DisconnectedError as error:
            # One that gives up says why when it has ended, which a busy machine makes late.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.process.wait(20.0)
            processes.check_alive()
            raise RunFailedError(f"the node process of the {site.party} does not answer; see {process.log}") from error
        yield process
