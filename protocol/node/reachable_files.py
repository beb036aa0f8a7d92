"""The files that a node and a courier may reach, and the folders that must not lie inside each other."""

import contextlib
import importlib.util
import os
import stat
import sys
from collections.abc import Collection, Iterable, Mapping
from glob import glob
from pathlib import Path

from protocol.confinement.landlock import DEVICE, OWN, READ, READ_AND_RUN, Access
from protocol.errors import InputError
from protocol.node.configuration import NodeTable

#: Programs, shared libraries and the tables that the dynamic loader reads.
_SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime")
#: Single files with facts about the machine that numerical libraries read: the folders also show other processes.
_MACHINE = (
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu/possible",
    "/sys/devices/system/cpu/present",
    "/sys/devices/system/cpu/online",
    "/sys/devices/system/cpu/kernel_max",
    "/sys/devices/system/cpu/cpu*/topology/*",
    "/sys/devices/system/cpu/cpu*/cache/index*/*",
    "/sys/devices/system/node/possible",
    "/sys/devices/system/node/online",
    "/sys/devices/system/node/node*/cpulist",
    "/sys/devices/system/node/node*/cpumap",
    "/sys/devices/system/node/node*/distance",
    "/sys/devices/system/node/node*/meminfo",
)
#: Folders whose names may be listed but whose files may not be read: they show the number of processors.
_LISTED = ("/sys/devices/system/cpu", "/sys/devices/system/node")
#: Files that a process reads about itself. Not ``net``, ``mountinfo`` or ``fd``.
_ITSELF = ("maps", "status", "stat", "statm", "cgroup", "limits", "auxv", "environ", "cmdline", "comm")
#: Limits that a container or a service sets, in the process's own control group.
_LIMITS = ("cpu.max", "memory.max", "cpu.cfs_quota_us", "cpu.cfs_period_us", "memory.limit_in_bytes")
_GPU_FACTS = ("/proc/driver/nvidia*", "/proc/devices", "/proc/modules", "/sys/bus/pci", "/sys/module/nvidia*")
#: Classes of PCI devices: displays, and accelerators (PCI Code and ID Assignment Specification, section 1).
_GPU_CLASSES = ("0x03", "0x12")
_GPU_DEVICES = ("/dev/nvidia*", "/dev/dri", "/dev/kfd")
#: The device files that every program on a GPU opens.
_GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia[0-9]*", "/dev/dri/renderD*", "/dev/kfd")
#: Files for finding a host by name and checking a certificate. A folder stands here if its files get replaced.
_NETWORK = (
    "/etc/resolv.conf",
    "/run/systemd/resolve",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/ssl/openssl.cnf",
    "/etc/ssl/certs",
    "/etc/pki/tls/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust",
    "/etc/ca-certificates",
)


def node_rules(node: NodeTable, packages: Iterable[str]) -> dict[Path, Access]:
    """The paths that a node may reach: its data (to read), its state (all), its trust store's folder, the interpreter
    with the named packages, and its devices."""
    rules = program_rules(packages)
    if computes_on_gpu(node):
        rules |= gpu_rules()
    if node.policy is not None:
        rules |= {node.policy: Access.READ_FILE}
    return rules | {node.trust.parent: READ, node.data: READ, node.state: OWN}


def gpu_rules() -> dict[Path, Access]:
    """The paths that computing on a GPU needs. Of the machine's devices they are the GPUs alone: the others tell of its
    networks and disks.
    """
    facts = [*_existing(_GPU_FACTS), *_gpu_folders()]
    return dict.fromkeys(facts, READ) | dict.fromkeys(_existing(_GPU_DEVICES), DEVICE | READ)


def computes_on_gpu(node: NodeTable) -> bool:
    """Whether a node may use a GPU: its settings allow one, and this machine has one."""
    return node.device != "cpu" and bool(gpu_devices())


def _gpu_folders() -> list[Path]:
    """The kernel's folder about each GPU on the PCI bus."""
    found = []
    for device in _existing(["/sys/bus/pci/devices/*"]):
        with contextlib.suppress(OSError):
            if (device / "class").read_text().startswith(_GPU_CLASSES):
                found.append(device.resolve())
    return found


def courier_rules(home: Path, files: Iterable[Path]) -> dict[Path, Access]:
    """The paths that a courier may reach: its home, the interpreter, the network's tables and, to read, these files."""
    rules = program_rules(["protocol", "flwr"]) | dict.fromkeys(_existing(_NETWORK), READ)
    return rules | dict.fromkeys(files, Access.READ_FILE) | {home: OWN}


def program_rules(packages: Iterable[str]) -> dict[Path, Access]:
    """The paths that any Python program needs: the interpreter, its libraries, the named packages wherever they lie,
    and facts about the machine."""
    rules = dict.fromkeys([*_existing(_SYSTEM), *code_folders(packages)], READ_AND_RUN)
    itself = [f"/proc/self/{name}" for name in _ITSELF]
    rules |= dict.fromkeys([*_existing((*_MACHINE, *itself)), *_own_limits()], Access.READ_FILE)
    rules |= dict.fromkeys(_existing(_LISTED), Access.READ_DIR)
    rules |= {Path(name): Access.READ_FILE for name in ("/dev/urandom", "/dev/random", "/dev/zero")}
    return rules | {Path("/dev/null"): Access.READ_FILE | Access.WRITE_FILE}


def _own_limits() -> list[Path]:
    """Files with the limits of this process's control group and of the groups above it."""
    root = Path("/sys/fs/cgroup")
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(",") or [""]:
                group = root / controller / path.lstrip("/")
                found += [one / name for one in (group, *group.parents) if one.is_relative_to(root) for name in _LIMITS]
    return [path for path in dict.fromkeys(found) if path.is_file()]


def code_folders(packages: Iterable[str]) -> list[Path]:
    """The folders of the interpreter, the installed packages and the named ones."""
    # A virtual environment's interpreter lies outside it.
    code = [sys.prefix, sys.base_prefix, *(folder for package in packages for folder in _folders(package))]
    return [Path(folder) for folder in dict.fromkeys(code)]


def check_apart(node: NodeTable, configuration: Path | None = None) -> None:
    """Refuse folders that lie inside each other: a rule holds for everything beneath its path.

    Args:
        configuration: the file that the node is started with.

    Raises:
        InputError: they do, a file that the node starts with lies in a folder that it may write, or the trust store's
            folder holds folders that are not the node's.
    """
    data, state = node.data.resolve(), node.state.resolve()
    if state.is_relative_to(data):
        raise InputError(f"node.state {state} lies inside node.data: a node only reads its data; choose another folder")
    if data.is_relative_to(state):
        raise InputError(f"node.data {data} lies inside node.state: a node may write there; keep its images elsewhere")
    # A node that was taken over could rewrite the program and settings of its next start.
    for place in map(Path, filter(None, (sys.prefix, sys.base_prefix, *sys.path, *_folders("protocol")))):
        if place.is_absolute() and place.resolve().is_relative_to(state):
            raise InputError(
                f"the program's folder {place} lies inside node.state {state}: a node may write there, and starts with "
                "what it wrote; choose another folder"
            )
    settings = ("policy", "trust", "secret", "key", "encryption_key", "key_file")
    given = {"the configuration": configuration} | {f"node.{name}": getattr(node, name) for name in settings}
    for name, path in given.items():
        if path is not None and path.resolve().is_relative_to(state):
            raise InputError(
                f"{name} {path} lies inside node.state: a node may write there, and starts with what it wrote; keep it "
                "elsewhere"
            )
    trust = node.trust.parent.resolve()
    if not trust.is_relative_to(data):
        _check_trust_folder(trust, {data, state, node.socket.parent.resolve()})


def _check_trust_folder(folder: Path, own: Collection[Path]) -> None:
    """Refuse a folder of many things, such as a home or one that holds other parties' folders: the node reads all of
    the trust store's folder, because a new trust store replaces the old file."""
    if not folder.is_dir():
        return
    # Links are skipped: a rule opens the files beneath a folder, not the targets of links in it.
    with os.scandir(folder) as entries:
        inside = {Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)}
    if others := sorted(inside - set(own)):
        raise InputError(
            f"node.trust lies in {folder}, all of which the node reads, {others[0]} as well; put trust.json into a "
            "folder of its own"
        )


def check_out_of_reach(rules: Mapping[Path, Access], folders: Iterable[Path]) -> None:
    """Refuse folders that lie beneath a path that a rule opens.

    Raises:
        InputError: one does.
    """
    for folder in folders:
        for path in rules:
            if folder.resolve().is_relative_to(path.resolve()):
                raise InputError(
                    f"the node's folder {folder} lies in {path}, which a courier reads; move the one or the other"
                )


def _folders(package: str) -> list[str]:
    specification = importlib.util.find_spec(package)
    return list((specification and specification.submodule_search_locations) or ())


def gpu_devices() -> list[Path]:
    """Files through which programs reach this machine's GPUs; empty if it has none."""
    return [path for path in _existing(_GPU_FILES) if stat.S_ISCHR(path.stat().st_mode)]


def _existing(patterns: Iterable[str]) -> list[Path]:
    return [Path(path) for pattern in patterns for path in glob(pattern)]
