"""``learngene courier``: confines itself and becomes Flower's SuperNode, so that everything that Flower runs is
confined too.

The code of an app archive runs with the SuperNode's rights at a site. Because confinement comes first, the whole tree
of processes reaches the network, its own home and one node's socket, and no other file of the site.
"""

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from protocol.confinement import guards, privileges
from protocol.confinement.guards import COURIER
from protocol.confinement.printer import start as start_printer
from protocol.errors import InputError
from protocol.files.user_files import expanded
from protocol.node import confine
from protocol.node.configuration import node_table, read
from protocol.node.reachable_files import check_out_of_reach, courier_rules
from protocol.output import say
from protocol.transport.local_socket import load_couriers_secret
from protocol.visible_text import visible_line

#: Flower's program, to whose command line the options for the node are added.
_SUPERNODE = "flower-supernode"
_NODE_CONFIG = "--node-config"

#: Environment variables that the courier's programs get. No other is passed on: a shell may hold a token, or the path
#: of an agent's or a container daemon's socket.
_PASSED_ON = frozenset(
    (
        *("PATH", "LANG", "LANGUAGE", "TZ", "TERM", "NO_COLOR", "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONUTF8"),
        *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "grpc_proxy", "no_grpc_proxy"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "OMP_NUM_THREADS"),
        # These two, confinement sets: folders in the courier's home.
        *("TMPDIR", "XDG_CACHE_HOME"),
    )
)
#: Matches the colours in Flower's lines, bold and their end; nothing that hides a line.
_COLOUR = re.compile(r"(\x1b\[(?:0|1|22|39|49|[349][0-7]|10[0-7])?(?:;(?:0|1|22|39|49|[349][0-7]|10[0-7]))*m)")
_PLAIN = "\x1b[0m"
_PASSED_ON_PREFIXES = ("LC_", "FLWR_")


@dataclass(frozen=True)
class Door:
    """The paths to a node, and the folders of its site that the courier must not reach.

    Attributes:
        socket: where the node listens.
        secret: file with the secret for it.
        apart: the node's folders.
    """

    socket: Path
    secret: Path
    apart: tuple[Path, ...]


def register(app: typer.Typer) -> None:
    """Add the command ``courier``."""
    app.command(context_settings={"allow_interspersed_args": False})(courier)


def courier(
    command: Annotated[
        list[str], typer.Argument(help="Behind `--`: flower-supernode or flower-superexec, and its options.")
    ],
    home: Annotated[Path, typer.Option(help="Folder of the courier's own (0700); made if there is none.")],
    config: Annotated[
        Path | None, typer.Option(help="The node's configuration file, in place of --socket and --secret.")
    ] = None,
    socket: Annotated[Path | None, typer.Option(help="Where the node listens.")] = None,
    secret: Annotated[Path | None, typer.Option(help="File with the secret for that socket.")] = None,
    apart: Annotated[
        list[Path] | None, typer.Option(help="A further folder that the courier must not reach; may be repeated.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="Whom the courier becomes where root starts it.")] = None,
    unconfined: Annotated[
        bool, typer.Option("--unconfined", help="Run without confinement, where the kernel has none.")
    ] = False,
) -> None:
    """Run Flower's SuperNode confined: it reaches the network, its home and the node's socket, and no other file.

    \b
    Example:
      learngene courier --home courier --config collective/config.toml -- \\
        flower-supernode --superlink relay.example.org:9443 --root-certificates ca.pem \\
        --auth-supernode-private-key collective-supernode
    """
    door = _door(config, socket, secret, tuple(apart or ()))
    program, arguments = _program(command), with_door(command, door)
    owner = privileges.chosen_user(user)
    load_couriers_secret(door.secret, door.socket)
    home = _absolute(home)
    check_home(home, door)
    privileges.own_folder(home, owner)
    # The files that this process can read after confinement, those of its command line included.
    rules = courier_rules(home, [door.secret, *_files(command)])
    check_out_of_reach(rules, door.apart)
    privileges.give_up(owner, capabilities=not unconfined)
    os.umask(0o077)
    privileges.close_inherited()
    if not unconfined:
        confine.check_offered(COURIER)
        _leave_the_streams()
    _check_readable([program, door.secret, *_files(command)])
    found = guards.not_confined(COURIER) if unconfined else confine.confine(rules, home, COURIER, apart=door.apart)
    say(f"courier of {door.socket}, process {os.getpid()} of user {os.getuid()}: {found.line}", error=True)
    os.execve(program, arguments, environment(home, os.environ))


def _leave_the_streams() -> None:
    """Leave standard input empty; what is printed goes out through a process that keeps its colours and shows every
    other control as text: a terminal can be read, and made to answer, by any process that holds it."""
    start_printer(None, _coloured).take_streams()


def _coloured(line: str) -> str:
    parts = _COLOUR.split(line)
    shown = "".join(part if _COLOUR.fullmatch(part) else visible_line(part) for part in parts)
    return shown if len(parts) == 1 else shown + _PLAIN


def with_door(command: Sequence[str], door: Door) -> list[str]:
    """The command line, with the options for the node if it is a SuperNode's.

    Raises:
        InputError: it already names another node, or the paths cannot be written in an option.
    """
    if Path(command[0]).name != _SUPERNODE:
        return list(command)
    if any(word.partition("=")[0] == _NODE_CONFIG for word in command):
        raise InputError(
            f"leave {_NODE_CONFIG} out: the courier writes it, from --config or from --socket and --secret"
        )
    for path in (door.socket, door.secret):
        if not str(path).isprintable() or set(str(path)) & set("\"'\\"):
            raise InputError(f"Flower takes no path with quotes, backslashes or invisible characters: {str(path)!r}")
    return [*command, _NODE_CONFIG, f'socket="{door.socket}" secret="{door.secret}"']


def check_home(home: Path, door: Door) -> None:
    """Refuse a courier's home in a node's folder.

    Raises:
        InputError: it is.
    """
    for folder in door.apart:
        if home.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"--home {home} lies in the node's folder {folder}; give the courier a folder elsewhere")


def environment(home: Path, given: Mapping[str, str]) -> dict[str, str]:
    """The environment of the courier's programs: their folders, and few variables of the given one. Flower sends no
    usage reports unless the operator says so."""
    own = {"HOME": str(home), "FLWR_HOME": str(home / "flwr"), "PYTHONDONTWRITEBYTECODE": "1"}
    # Flower starts its own programs by name, so PATH must find them.
    own["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), given.get("PATH", os.defpath)))
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    kept = {name: value for name, value in given.items() if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)}
    return {**quiet, **kept, **own}


def _door(config: Path | None, socket: Path | None, secret: Path | None, apart: tuple[Path, ...]) -> Door:
    further = tuple(map(_absolute, apart))
    if config is not None and socket is None and secret is None:
        node = node_table(config, read(config), None)
        keys = (node.key, node.encryption_key, node.key_file)
        folders = (_absolute(config).parent, node.data, node.state, *(key.parent for key in keys if key is not None))
        return Door(node.socket, node.secret, tuple(dict.fromkeys((*folders, node.socket.parent, *further))))
    if config is None and socket is not None and secret is not None:
        socket = _absolute(socket)
        return Door(socket, _absolute(secret), tuple(dict.fromkeys((socket.parent, *further))))
    raise InputError("give the way to the node: either --config, or --socket and --secret")


def _program(command: Sequence[str]) -> Path:
    """The path of a program: that of this installation, if it has one of that name."""
    beside = Path(sys.executable).parent / command[0]
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(command[0])
    if found is None:
        raise InputError(f"there is no program {command[0]}; install Flower beside this program: pip install flwr")
    return Path(found)


def _files(command: Sequence[str]) -> list[Path]:
    """Files that a command line names, also behind an equals sign: certificates, and the SuperNode's own key."""
    words = [part for word in command[1:] for part in (word, word.partition("=")[2])]
    return [Path(path) for path in map(os.path.expanduser, words) if os.path.isfile(path)]


def _check_readable(files: Sequence[Path]) -> None:
    for file in files:
        if not os.access(file, os.R_OK):
            raise InputError(f"the courier's user {os.getuid()} cannot read {file}; give it to that user")


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(expanded(path)))
