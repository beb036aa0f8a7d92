"""Ray's environment: all its sockets on the loopback, a token that all its services require, and its files in a folder
(0700) that is removed with the run.
"""

import atexit
import secrets
from collections.abc import MutableMapping
from pathlib import Path

from protocol.files.atomic import write_atomically
from protocol.files.private_folders import private_folder
from sims.run.environment import TEMPORARY
from sims.run.own_folder import make_temporary_folder


def keep_ray_to_itself(environment: MutableMapping[str, str]) -> None:
    """Set all of Ray's variables in ``environment``; what the user had set of them is removed.

    Call it before Ray is imported.

    Raises:
        InputError: there is no folder for its files.
    """
    for name in [name for name in environment if name.startswith("RAY_")]:
        del environment[name]
    if given := environment.get(TEMPORARY):
        folder = private_folder(Path(given))
    else:
        own = make_temporary_folder()
        atexit.register(own.remove)
        folder = own.path
    token = folder / "ray.token"
    write_atomically(token, secrets.token_hex(32).encode(), mode=0o600)
    environment.update(
        # Ray's switch for systems whose firewall asks about every listener: each service keeps to 127.0.0.1.
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
        RAY_TMPDIR=str(folder),
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
        # A container gives little shared memory, and little goes through the store.
        RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE="1",
        RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    )
