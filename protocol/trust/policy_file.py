"""The policy file of a site, ``policy.toml``: the operator's rules on what may leave, narrower than the default."""

import os
import stat
from pathlib import Path

from pydantic import ValidationError

from protocol.encoding import bounded_toml
from protocol.errors import InputError, fault_line
from protocol.files.user_files import open_binary
from protocol.trust.policy import Policy
from protocol.trust.role import Role


def load_policy(path: Path | None, role: Role) -> Policy:
    """The policy in a file; its default if there is none (``path`` is None). A file changes only the settings that it
    names.

    Raises:
        InputError: it cannot be read, another user than its owner may write it, or its content is not allowed.
    """
    if path is None:
        return Policy.for_role(role)
    try:
        with open_binary(path) as file:
            status = os.fstat(file.fileno())
            data = file.read(bounded_toml.MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read the policy {path}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        raise InputError(f"the policy {path} must be a file that only its operator writes: chown it and chmod 644")
    try:
        content = bounded_toml.parse(data)
    except ValueError as error:
        raise InputError(f"the policy {path} is not a TOML file: {error}") from None
    try:
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
        return Policy.model_validate(Policy.for_role(role).model_dump() | given)
    except ValidationError as error:
        raise InputError(f"the policy {path}: {fault_line(error)}") from None
