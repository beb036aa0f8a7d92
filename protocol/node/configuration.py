"""The configuration file of a node: a TOML file whose table ``[node]`` is the same for both parties."""

import os
from pathlib import Path
from types import NoneType
from typing import Annotated, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from protocol.encoding import bounded_toml
from protocol.encoding.earlier_words import in_todays_words
from protocol.errors import InputError, fault_line
from protocol.files.user_files import expanded, read_given
from protocol.keys.signing_key import PublicKey
from protocol.trust.role import A_PARTY, Role
from protocol.visible_text import visible_name


def _local_path(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise ValueError("must be a path")
    folder = (info.context or {}).get("folder", Path.cwd())
    try:
        return Path(os.path.abspath(Path(folder) / expanded(Path(value))))
    except InputError as error:
        raise ValueError(str(error)) from None


#: A path relative to the folder of the configuration file.
LocalPath = Annotated[Path, BeforeValidator(_local_path)]

#: Devices of a node; ``auto`` takes CUDA if the machine has it.
DEVICE_PATTERN = r"^(auto|cpu|cuda(:[0-9]{1,2})?)$"

#: Name or number of a user or a group.
_ACCOUNT = r"^([a-z_][a-z0-9_-]{0,31}|[0-9]{1,10})$"


#: pydantic's settings for every table of a configuration file.
STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


class OtherRoleError(InputError):
    """The configuration is for a node of the other role."""


class NodeTable(BaseModel):
    """The table ``[node]``.

    Attributes:
        role: role of the node; the commands of the other role refuse the file.
        party: the node's own name, as its partners' trust stores know it.
        data: folder with the party's images; the node only reads it.
        state: folder of the node's own (0700): ledger, log, checkpoints, metrics.
        socket: path on which the node listens for its courier, at most 107 bytes, in a folder of this user's own
            (0700).
        socket_group: group of a courier that runs as another user; it may enter the socket's folder, connect, and read
            the secret. Socket and secret then lie in a folder of their own. None: the courier runs as the node's user.
        secret: file with the secret that the node and its courier share.
        key: file with the node's signing key (0600, encrypted).
        encryption_key: file with an individual's encryption key; None at a collective, which receives no learngene.
        key_file: opens both keys; None: a passphrase is asked for when the node starts.
        trust: file with the public keys that this node believes, signed with the root key.
        root: the public key of that root, 64 hexadecimal digits.
        policy: the site's own rules of what may leave; None: the default ones.
        run_id: the run that this node takes part in, 128 random bits in hexadecimal, the same for all its parties.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        threads: threads of an operation, and pieces of work that run at once; 0: as many as it may use cores.
        seed: of everything random in the node's training.
        user: user that the node becomes for good if root starts it; None: it remains the user that started it.
        unconfined: the operator accepts that the operating system does not confine this node.
    """

    model_config = STRICT

    role: Role
    party: str = Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")
    data: LocalPath
    state: LocalPath
    socket: LocalPath
    socket_group: str | None = Field(default=None, pattern=_ACCOUNT)
    secret: LocalPath
    key: LocalPath
    encryption_key: LocalPath | None = None
    key_file: LocalPath | None = None
    trust: LocalPath
    root: PublicKey
    policy: LocalPath | None = None
    run_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    device: str = Field(default="auto", pattern=DEVICE_PATTERN)
    threads: int = Field(default=0, ge=0, le=1024)
    seed: int = Field(default=0, ge=0, lt=2**63)
    user: str | None = Field(default=None, pattern=_ACCOUNT)
    unconfined: bool = False

    @model_validator(mode="before")
    @classmethod
    def _says_whose_it_is(cls, content: object) -> object:
        if isinstance(content, dict) and "role" not in content:
            raise ValueError('does not say whose node this is: add role = "collective" or role = "individual"')
        return content

    @model_validator(mode="after")
    def _key_of_its_role(self) -> "NodeTable":
        if (self.encryption_key is None) != (self.role == "collective"):
            raise ValueError(
                "node.encryption_key: an individual has one, which opens the learngenes that it receives; "
                "a collective has none"
            )
        return self

    @model_validator(mode="after")
    def _door_of_its_own(self) -> "NodeTable":
        if self.socket_group is None:
            return self
        door = self.socket.parent
        if self.secret.parent != door:
            raise ValueError("node.secret must lie beside node.socket where node.socket_group is set")
        names = ("data", "state", "key", "encryption_key", "key_file", "trust")
        inside = [name for name in names if (path := getattr(self, name)) is not None and path.is_relative_to(door)]
        if inside:
            raise ValueError(
                f"node.{inside[0]} lies in the folder of node.socket, which the group {self.socket_group} may enter; "
                "give socket and secret a folder of their own, such as /run/learngene"
            )
        return self


class NodeConfiguration(BaseModel):
    """A configuration file. Each party's own class adds its tables as further fields.

    TOML has no null: a setting that may be None, and is not by default, is set to None by the word ``"none"``.
    """

    model_config = STRICT

    node: NodeTable

    def data_fault(self) -> str:
        """Why the party's own work on its data folder would be refused, as far as the folder's names and manifest say;
        empty: nothing is known against it. Exchanges do not need that folder.
        """
        return ""

    @model_validator(mode="before")
    @classmethod
    def _none_is_a_word(cls, content: object) -> object:
        if not isinstance(content, dict):
            return content
        tables = {name: field.annotation for name, field in cls.model_fields.items()}
        return {name: _with_none(table, tables.get(name)) for name, table in content.items()}


def _with_none(table: object, model: object) -> object:
    if not (isinstance(table, dict) and isinstance(model, type) and issubclass(model, BaseModel)):
        return table
    optional = {name for name, field in model.model_fields.items() if NoneType in get_args(field.annotation)}
    return {name: None if value == "none" and name in optional else value for name, value in table.items()}


Configuration = TypeVar("Configuration", bound=NodeConfiguration)


def load(path: Path, model: type[Configuration], role: Role | None) -> Configuration:
    """Read and check a configuration file; relative paths in it start at the file's own folder.

    Args:
        role: the role that it must have; None: either.

    Raises:
        InputError: there is no such file, it is not TOML, it is the other role's, or a setting is unknown, missing or
            wrong.
    """
    content = read(path)
    node_table(path, content, role)
    return check(path, content, model)


def read(path: Path) -> dict[str, object]:
    """The tables of a configuration file, not yet checked.

    Raises:
        InputError: there is no such file, or it is not TOML within the limits of a configuration.
    """
    data = read_given(path, "the configuration", max_bytes=bounded_toml.MAX_BYTES)
    try:
        return bounded_toml.parse(data)
    except ValueError as error:
        raise InputError(f"{visible_name(path)} is not a TOML file: {error}") from None


def node_table(path: Path, content: dict[str, object], role: Role | None) -> NodeTable:
    """The table ``[node]`` of the tables read from ``path``; the party's own tables are not checked.

    Every command with a configuration calls this before it makes or changes anything.

    Args:
        role: the role that the configuration must have; None: either.

    Raises:
        OtherRoleError: it is the other role's. InputError: a setting in it is unknown, missing or wrong.
    """
    node = check(path, {"node": content.get("node", {})}, NodeConfiguration).node
    if role is not None and node.role != role:
        raise OtherRoleError(
            f"{path} is the configuration of {A_PARTY[node.role]}, for {node.role}-node; this command takes that of "
            f"{A_PARTY[role]}"
        )
    return node


def check(path: Path, content: object, model: type[Configuration]) -> Configuration:
    """Check tables read from ``path`` against a model.

    Raises:
        InputError: a setting is unknown, missing or wrong.
    """
    try:
        return model.model_validate(in_todays_words(content), context={"folder": Path(os.path.abspath(path)).parent})
    except ValidationError as error:
        raise InputError(f"{path}: {fault_line(error)}") from error
