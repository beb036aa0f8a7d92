"""The commands that both kinds of node have: ``start`` and ``init``."""

import os
import secrets
from pathlib import Path
from typing import Annotated

import tomli_w
import typer

from protocol.errors import InputError
from protocol.keys import SigningKey
from protocol.launcher import launch
from protocol.node import Role
from protocol.node_configuration import NodeTable, check
from protocol.socket import MAX_PATH_BYTES, make_secret, private_folder
from protocol.storage import write_atomically
from protocol.terminal import make_app
from protocol.trust import TrustStore

_COMMENTS = {
    "party": "This node's own name, as its partners' trust stores know it.",
    "data": "The party's images. The node only reads them, and no other process of the project does.",
    "state": "Ledger, log, checkpoints and metrics of this node.",
    "socket": f"Where the node listens for its courier; at most {MAX_PATH_BYTES} bytes as an absolute path.",
    "secret": "What a courier must know to be listened to.",
    "key": "The signing key. It never leaves this machine.",
    "trust": "The public keys that this node believes: learngene trust add.",
    "run_id": "The run that this node takes part in; all its parties have the same.",
    "device": "auto, cpu, cuda or cuda:N.",
    "threads": "Processor threads; 0: as many as there are.",
    "seed": "Of everything random in the training.",
    "unconfined": "This version does not confine a node to its own folders; true accepts that.",
}


def node_app(role: Role, model: str, program: str) -> typer.Typer:
    """The command line of one kind of node; ``model`` and ``program`` as in :func:`protocol.launcher.launch`."""
    name = f"{role}-node"
    app = make_app(
        f"The {role}'s node process: it holds the data, the model and the keys, and its one door is a socket.\n\n"
        "\b\nExamples:\n"
        f"  {name} init --out ~/{role} --data ~/images --party {_example(role)}\n"
        f"  {name} start --config ~/{role}/config.toml --unconfined"
    )

    @app.command()
    def start(
        config: Annotated[Path, typer.Option(help="Configuration file; `init` writes one.")],
        unconfined: Annotated[
            bool, typer.Option("--unconfined", help="Accept that this version does not confine the process.")
        ] = False,
        lifeline: Annotated[
            int | None, typer.Option(help="Inherited file descriptor; the node ends when its other end closes.", min=0)
        ] = None,
    ) -> None:
        """Run the node until it is told to end (Ctrl-C, SIGTERM)."""
        launch(config, model, program, lifeline=lifeline, unconfined=unconfined)

    @app.command()
    def init(
        out: Annotated[Path, typer.Option(help="Folder to make, for this node alone.")],
        data: Annotated[Path, typer.Option(help="Folder with the party's images.")],
        party: Annotated[str, typer.Option(help="The node's own name.")] = _example(role),
        run_id: Annotated[str, typer.Option(help="The run's 32 hexadecimal digits; a new one by default.")] = "",
    ) -> None:
        """Write a commented configuration, a fresh key, a socket secret, and a trust store with the own key."""
        key = initialise(out, role=role, data=data, party=party, run_id=run_id)
        typer.echo(f"configuration  {out / 'config.toml'}")
        typer.echo(f"public key     {key.public_hex}")
        typer.echo(f"fingerprint    {key.keyid}")
        typer.echo("The other parties pin this key, and this node theirs, after comparing fingerprints:")
        typer.echo(f"learngene trust add --trust TRUST.json --role {role} --party {party} --public {key.public_hex}")

    return app


def initialise(out: Path, *, role: Role, data: Path, party: str, run_id: str = "") -> SigningKey:
    """Make a node's folder (0700): ``config.toml``, ``signing.key``, ``socket.secret``, ``trust.json``.

    Raises:
        InputError: a value is wrong, the folder holds a configuration already, or its path is too long for a socket.
    """
    table: dict[str, str | int | bool] = {
        "party": party,
        "data": os.path.abspath(data.expanduser()),
        "state": "state",
        "socket": "node.sock",
        "secret": "socket.secret",
        "key": "signing.key",
        "trust": "trust.json",
        "run_id": run_id or secrets.token_hex(16),
        "device": "auto",
        "threads": 0,
        "seed": 0,
        "unconfined": False,
    }
    out = Path(os.path.abspath(out.expanduser()))
    configuration = out / "config.toml"
    node = check(configuration, table, NodeTable)
    if not node.data.is_dir():
        raise InputError(f"there is no folder {node.data}")
    if len(os.fsencode(node.socket)) > MAX_PATH_BYTES:
        raise InputError(f"the path {out} is too long for a socket in it; choose a shorter one")
    if configuration.exists():
        raise InputError(f"{configuration} exists already and is not overwritten; choose another folder")
    private_folder(out)
    key = SigningKey.generate()
    key.save(node.key)
    make_secret(node.secret)
    TrustStore().with_key(key.public_hex, role, party).save(node.trust)
    lines = [f"# {_COMMENTS[name]}\n{tomli_w.dumps({name: value})}" for name, value in table.items()]
    text = "# A node of the project learngene. Relative paths count from this file.\n\n[node]\n" + "\n".join(lines)
    write_atomically(configuration, text.encode(), mode=0o600)
    return key


def _example(role: Role) -> str:
    return "collective" if role == "collective" else "individual-1"
