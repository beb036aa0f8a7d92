"""Writing to files that others read: the other party's files, shared places, and files of its own next start."""

import base64
import os
import signal
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .act import DONE, Aims, act, step
from .expectation import files, system_calls, users
from .seen import GRANTED, changes, unlike, writable

if TYPE_CHECKING:
    from sims.boundary.stage import Stage

_OPEN, _OTHERS = files("open"), users("open")
# Landlock checks both folders, and names the error of the first that fails.
_RENAME = files("rename", "EACCES", "EXDEV")


def _drop(path: str, aims: Aims) -> bytes:
    with step("open"):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(descriptor, aims["token"].encode())
    os.close(descriptor)
    return DONE


def _append(path: str, text: str) -> bytes:
    with step("open"):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, text.encode())
    os.close(descriptor)
    return DONE


def _nameless(folder: str) -> bytes:
    """A file without a name in that folder: a process that can make one could name it ``evil.pth``. No file remains."""
    with step("open"):
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600))
    return DONE


def _in_own_data(stage: "Stage", token: str) -> bool:
    return any((site.data / "dropped").exists() for site in (stage.sites.collective, stage.sites.unprotected))


@act(
    "leave a file in the other's data",
    "makes a file there",
    changes(lambda stage, token: (stage.victim.data / "dropped").exists()),
    _OPEN,
    _OPEN,
    _OTHERS,
)
def drop_in_data(aims: Aims) -> bytes:
    return _drop(f"{aims['data']}/dropped", aims)


@act("change its own data", "makes a file among the images that it learns from", changes(_in_own_data), _OPEN)
def drop_in_own_data(aims: Aims) -> bytes:
    return _drop(f"{aims['own_data']}/dropped", aims)


@act(
    "write to another's file",
    "appends to an image",
    unlike("writable", lambda now, before, token: now is not None and token.encode() in now),
    _OPEN,
    _OPEN,
    _OTHERS,
)
def write_file(aims: Aims) -> bytes:
    return _append(aims["writable"], aims["token"])


@act(
    "cut another's file",
    "truncate by path",
    unlike("cuttable", lambda now, before, token: now == b""),
    system_calls("truncate"),
    files("truncate"),
    users("truncate"),
)
def cut_file(aims: Aims) -> bytes:
    with step("truncate"):
        os.truncate(aims["cuttable"], 0)
    return DONE


_UNLINK = files("unlink")


@act(
    "remove another's file",
    "unlink",
    unlike("removable", lambda now, before, token: now is None),
    _UNLINK,
    _UNLINK,
    users("unlink"),
)
def remove_file(aims: Aims) -> bytes:
    with step("unlink"):
        os.unlink(aims["removable"])
    return DONE


@act(
    "replace another's file",
    "rename over an image",
    unlike("replaceable", lambda now, before, token: now is not None and now != before),
    _RENAME,
    _RENAME,
    users("rename"),
)
def replace_file(aims: Aims) -> bytes:
    here = Path(aims["own"]) / "replacement"
    here.write_text(aims["token"])
    with step("rename"):
        os.replace(here, aims["replaceable"])
    return DONE


@act(
    "leave a file in /tmp",
    "where every process reads",
    changes(lambda stage, token: stage.dropped(Path(tempfile.gettempdir()), token)),
    _OPEN,
    _OPEN,
)
def drop_in_temporary(aims: Aims) -> bytes:
    return _drop(aims["temporary_drop"], aims)


@act(
    "leave a file in /dev/shm",
    "memory that every process shares",
    changes(lambda stage, token: stage.dropped(Path("/dev/shm"), token)),
    _OPEN,
    _OPEN,
)
def drop_in_shared_memory(aims: Aims) -> bytes:
    return _drop(aims["shared_memory_drop"], aims)


@act(
    "leave code in site-packages",
    "a .pth file there runs in every later process",
    GRANTED,
    _OPEN,
    _OPEN,
    lacks=writable(lambda: sysconfig.get_path("purelib")),
)
def drop_in_site_packages(aims: Aims) -> bytes:
    return _nameless(aims["site_packages"])


@act(
    "leave code in the project's package",
    "a file beside protocol/__init__.py",
    GRANTED,
    _OPEN,
    _OPEN,
    lacks=lambda stage: writable(lambda: str(stage.package))(stage),
)
def drop_in_package(aims: Aims) -> bytes:
    return _nameless(aims["package"])


@act(
    "leave code in the interpreter's library",
    "a file beside os.py",
    GRANTED,
    _OPEN,
    _OPEN,
    lacks=writable(lambda: sysconfig.get_path("stdlib")),
)
def drop_in_interpreter(aims: Aims) -> bytes:
    return _nameless(aims["interpreter"])


@act(
    "leave code where its program is looked for",
    "a file in each folder of sys.path, and in the folder in which it works",
    GRANTED,
    _OPEN,
    lacks=lambda stage: writable(lambda: str(stage.package))(stage),
)
def drop_in_search_path(aims: Aims) -> bytes:
    """Every folder is tried; the first that can be written to is enough."""
    stopped: list[Exception] = []
    for folder in dict.fromkeys([*(place or "." for place in sys.path if os.path.isdir(place or ".")), "."]):
        try:
            return _nameless(folder)
        except Exception as error:  # told below
            stopped.append(error)
    raise stopped[0]


@act(
    "change its own configuration",
    "unconfined = true would hold from the next start",
    changes(lambda stage, token: stage.in_own(lambda site: site.config, token)),
    _OPEN,
    _OPEN,
)
def change_own_configuration(aims: Aims) -> bytes:
    return _append(aims["own_config"], f"# {aims['token']}\n")


@act(
    "change its own trust store",
    "appends to trust.json",
    changes(lambda stage, token: stage.in_own(lambda site: site.node.trust, token)),
    _OPEN,
    _OPEN,
)
def change_own_trust(aims: Aims) -> bytes:
    return _append(aims["own_trust"], aims["token"])


# --- For its own next start (sims.boundary.start_attacks) -----------------------------------------------------------


@act("leave a file in its own state", "which is its own, and no attack by itself", GRANTED)
def plant_file(aims: Aims) -> bytes:
    path = Path(aims["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(aims["content"]))
    return DONE


@act(
    "stay when it is told to end",
    "no way out of the process is left: neither its lifeline nor SIGTERM ends it",
    GRANTED,
)
def refuse_to_end(aims: Aims) -> bytes:
    def stay(status: int) -> None:
        while True:
            time.sleep(1.0)

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os._exit = stay  # type: ignore[assignment]
    return DONE
