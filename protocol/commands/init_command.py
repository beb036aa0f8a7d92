"""The command ``init`` of both kinds of node: it makes the node's folder, with a configuration and fresh keys."""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import tomli_w
import typer
from pydantic import ValidationError

from protocol.commands.key_commands import kem_named
from protocol.errors import InputError, fault_line, first_fault
from protocol.files.atomic import write_atomically
from protocol.files.private_folders import private_folder
from protocol.files.user_files import expanded
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.kem import Kem
from protocol.keys.key_file import Unlock, make_key_file
from protocol.keys.party_keys import NodeKeys
from protocol.keys.passphrase import ask_new
from protocol.keys.signing_key import SigningKey, read_public
from protocol.node.configuration import NodeConfiguration, NodeTable, check, read
from protocol.node.launcher import imported
from protocol.output import say, warn
from protocol.transport.local_socket import MAX_PATH_BYTES, make_secret
from protocol.trust.role import Role

_Out = Annotated[Path, typer.Option(help="Folder to make, for this node alone.")]
_Data = Annotated[Path, typer.Option(help="Folder with the party's images.")]
_Root = Annotated[
    str, typer.Option(help="Public root key of the trust store: `learngene keygen` printed it to its keeper.")
]
_Party = Annotated[str, typer.Option(help="The node's own name.")]
_Run = Annotated[str, typer.Option(help="The run's 32 hexadecimal digits; a new one by default.")]
_Passphrase = Annotated[bool, typer.Option("--passphrase", help="Ask for a passphrase instead of writing a key file.")]
_KemOption = Annotated[str, typer.Option(help="Kind of the encryption key: x25519 or mlkem768-x25519.")]

#: The message for a wrong setting of a new node, by the option that set it.
_WRONG = {
    "node.party": "--party must be letters a-z, digits and hyphens, a letter first, at most 63, such as individual-1",
    "node.run_id": "--run-id has 32 hexadecimal digits (0-9, a-f); every party of a run has the same",
}

_COMMENTS = {
    "role": "Whose node this is: collective or individual.",
    "party": "This node's own name, as its partners' trust stores know it.",
    "data": "The party's images. The node only reads them, and no other process of the project does.",
    "state": "Ledger, log, checkpoints and metrics of this node.",
    "socket": f"Where the node listens for its courier; at most {MAX_PATH_BYTES} bytes as an absolute path.",
    "socket_group": "Group of a courier that is another user; socket and secret then need a folder of their own.",
    "secret": "What a courier must know to be listened to.",
    "key": "The signing key, encrypted. It never leaves this machine.",
    "encryption_key": "The key that opens what is sealed to this node, encrypted; none: nothing is.",
    "key_file": "What opens the keys; it may lie on another device. none: a passphrase is asked for.",
    "trust": "The public keys that this node believes: a file from whoever keeps the root key.",
    "root": "The public root key, with which that file must be signed.",
    "policy": "The site's own rules of what may leave, a file policy.toml; none: the default ones.",
    "run_id": "The run that this node takes part in; all its parties have the same.",
    "device": "auto, cpu, cuda or cuda:N.",
    "threads": "Threads of the computation; 0: as many as the node may use cores.",
    "seed": "Of everything random in the training.",
    "user": "Whom the node becomes where root starts it; none: it stays who started it.",
    "unconfined": "True: the operating system does not confine this node to its own folders.",
}

#: The key file of a new node; it lies beside the keys until the operator moves it.
_KEY_FILE = "key.secret"


def register(app: typer.Typer, role: Role, own_name: str, model: str) -> None:
    """Add the command to the application of one kind of node.

    Args:
        own_name: the node's name if its operator gives none.
        model: ``module:class`` of the party's own configuration.
    """

    def init_collective(
        out: _Out,
        data: _Data,
        root: _Root,
        party: _Party = own_name,
        run_id: _Run = "",
        passphrase: _Passphrase = False,
    ) -> None:
        """Write a commented configuration, a fresh key with what opens it, and a socket secret."""
        _init(out, role, data, party, root, run_id, passphrase=passphrase)
        _say_fault(out, model)

    def init_individual(
        out: _Out,
        data: _Data,
        root: _Root,
        party: _Party = own_name,
        run_id: _Run = "",
        passphrase: _Passphrase = False,
        kem: _KemOption = "x25519",
    ) -> None:
        """Write a commented configuration, fresh keys with what opens them, and a socket secret."""
        _init(out, role, data, party, root, run_id, passphrase=passphrase, kem=kem_named(kem))
        _say_fault(out, model)

    # A collective has no encryption key to choose.
    app.command("init")(init_collective if role == "collective" else init_individual)


def _init(
    out: Path, role: Role, data: Path, party: str, root: str, run_id: str, *, passphrase: bool, kem: Kem = "x25519"
) -> None:
    """The command ``init``: make the node's folder, and say what its operator and the keeper of the root key must do
    next.
    """
    # Ask for the passphrase last, after all other checks.
    ask = (lambda: ask_new(party)) if passphrase else None
    made = initialise(out, role=role, data=data, party=party, root=root, run_id=run_id, kem=kem, passphrase=ask)
    key = made.signing
    say(f"configuration  {out / 'config.toml'}")
    say(f"public key     {key.public_hex}")
    say(f"fingerprint    {key.fingerprint}")
    if not passphrase:
        say(
            f"key file       {out / _KEY_FILE}: it opens this node's keys; move it to another device and set "
            "node.key_file, or begin with --passphrase instead"
        )
    # Do not print the fingerprint: one that comes with the key would prove nothing.
    say("Whoever keeps the root key types this, and compares the fingerprint with you over another channel:")
    say(
        f"learngene trust add --root-key root.key --trust trust.json --role {role} --party {party} "
        f"--public {key.public_hex}"
    )
    say(f"The trust.json that comes of it belongs at {out / 'trust.json'}")


def _say_fault(out: Path, model: str) -> None:
    """Warn of a data folder on which the party's own work would be refused, as long as this costs nothing."""
    path = out / "config.toml"
    if fault := check(path, read(path), imported(model)).data_fault():
        warn(fault)


def initialise(
    out: Path,
    *,
    role: Role,
    data: Path,
    party: str,
    root: str,
    run_id: str = "",
    kem: Kem = "x25519",
    passphrase: Callable[[], Unlock] | None = None,
) -> NodeKeys:
    """Make a node's folder (0700): ``config.toml``, ``signing.key``, an individual's ``encryption.key``,
    ``socket.secret`` and, if no passphrase is given, ``key.secret``, which opens the keys.

    Args:
        root: the public root key that the node pins, 64 hexadecimal digits.
        run_id: the run's 32 hexadecimal digits; a new one if it is empty.
        kem: of the individual's encryption key.
        passphrase: asks for the passphrase that opens the keys, in place of a key file.

    Raises:
        InputError: a value is wrong, the folder already holds a configuration, or its path is too long for a socket.
    """
    table: dict[str, str | int | bool] = {
        "role": role,
        "party": party,
        "data": os.path.abspath(expanded(data)),
        "state": "state",
        "socket": "node.sock",
        "socket_group": "none",
        "secret": "socket.secret",
        "key": "signing.key",
        "encryption_key": "encryption.key" if role == "individual" else "none",
        "key_file": "none" if passphrase else _KEY_FILE,
        "trust": "trust.json",
        "root": read_public(root, "--root"),
        "policy": "none",
        "run_id": run_id or secrets.token_hex(16),
        "device": "auto",
        "threads": 0,
        "seed": 0,
        "user": "none",
        "unconfined": False,
    }
    out = Path(os.path.abspath(expanded(out)))
    configuration = out / "config.toml"
    try:
        node = NodeConfiguration.model_validate({"node": table}, context={"folder": out}).node
    except ValidationError as error:
        raise InputError(_WRONG.get(first_fault(error)[0], fault_line(error))) from None
    if not node.data.is_dir():
        raise InputError(f"there is no folder {node.data}")
    if len(os.fsencode(node.socket)) > MAX_PATH_BYTES:
        raise InputError(f"the path {out} is too long for a socket in it; choose a shorter one")
    _check_free([configuration])
    files = (node.key_file, node.key, node.encryption_key, node.secret)
    names = [path for path in files if path is not None]
    _check_free(names)
    is_new = not out.exists()
    private_folder(out)
    try:
        unlock = None if passphrase is None else passphrase()
        with _alone_in(out):
            # Another init may have made it while the user typed.
            _check_free([configuration, *names])
            try:
                return _make(configuration, node, table, kem, unlock)
            except BaseException:
                for path in (configuration, *names):
                    with contextlib.suppress(OSError):
                        path.unlink(missing_ok=True)
                raise
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                out.rmdir()
        raise


def _check_free(names: Sequence[Path]) -> None:
    for path in names:
        if os.path.lexists(path):
            raise InputError(f"{path} exists already and is not overwritten; choose another folder")


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other init makes something in a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make(
    configuration: Path, node: NodeTable, table: Mapping[str, str | int | bool], kem: Kem, unlock: Unlock | None
) -> NodeKeys:
    if unlock is None:
        assert node.key_file is not None
        make_key_file(node.key_file)
        unlock = Unlock.key_file(node.key_file)
    keys = NodeKeys(SigningKey.generate(), None if node.encryption_key is None else EncryptionKey.generate(kem))
    keys.signing.save(node.key, unlock)
    if keys.encryption is not None and node.encryption_key is not None:
        keys.encryption.save(node.encryption_key, unlock)
    make_secret(node.secret)
    lines = [f"# {_COMMENTS[name]}\n{tomli_w.dumps({name: value})}" for name, value in table.items()]
    text = "# A node of the project learngene. Relative paths count from this file.\n\n[node]\n" + "\n".join(lines)
    write_atomically(configuration, text.encode(), mode=0o600)
    return keys
