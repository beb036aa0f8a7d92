"""Tests of what a confined process can and cannot do, in a child that confines itself as a node or a courier does.

Confinement cannot be undone, so the calling process itself is not confined.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pydantic import BaseModel

from protocol.confinement import guards, warden
from protocol.confinement.guards import NODE, Profile
from protocol.confinement.landlock import Access
from protocol.errors import LearngeneError, RunFailedError
from protocol.node import confine
from protocol.node.configuration import STRICT
from protocol.node.reachable_files import gpu_devices
from protocol.node.rehearsal import rehearse, taken

_MOST_LOG_BYTES = 64 * 1024
#: Time limit; loading torch and starting a GPU takes long the first time.
_SECONDS = 300.0


class Trial(BaseModel):
    """What a confined child reports.

    Attributes:
        guards: for each guard, whether it holds.
        unread: files that it needs but cannot read, with the reason.
        devices: for each of the GPUs' files, why it cannot be opened; empty if it can.
        computed: name of the GPU on which it computed.
        trained: whether a step of training succeeded.
        refused: system calls that were refused meanwhile.
        error: why nothing could be tried.
    """

    model_config = STRICT

    guards: dict[str, bool] = {}
    unread: dict[str, str] = {}
    devices: dict[str, str] = {}
    computed: str = ""
    trained: bool = False
    refused: list[str] = []
    error: str = ""


def try_confined(
    rules: dict[Path, Access] | None,
    own: Path,
    profile: Profile,
    *,
    gpu: bool = False,
    before: Callable[[], None] = lambda: None,
    reads: Sequence[Path] = (),
) -> Trial:
    """Try everything in a child that confines itself.

    Args:
        rules: the paths that it may reach; None: it does not confine itself.
        own: the folder that it may write to.
        profile: a node's or a courier's.
        gpu: compute on the GPU, too.
        before: called first.
        reads: files and folders that it needs to read.
    """

    def look() -> bytes:
        try:
            tried = _look(rules, own, profile, gpu=gpu, before=before, reads=reads)
        except LearngeneError:
            raise
        except Exception as error:  # any error is reported to the parent
            raise RunFailedError(f"{type(error).__name__}: {error}") from error
        return tried.model_dump_json().encode()

    try:
        reported = Trial.model_validate_json(taken(rehearse(look, seconds=_SECONDS)))
    except LearngeneError as error:
        reported = Trial(error=str(error))
    return reported.model_copy(update={"guards": dict.fromkeys(profile.guards, False) | reported.guards})


def _look(
    rules: dict[Path, Access] | None,
    own: Path,
    profile: Profile,
    *,
    gpu: bool,
    before: Callable[[], None],
    reads: Sequence[Path],
) -> Trial:
    noted = rules is not None and profile is NODE and confine.offered()
    log = os.open(own, os.O_TMPFILE | os.O_RDWR, 0o600) if noted else -1
    guard = warden.start(log, None) if noted else None
    before()
    cuda = bool(gpu_devices())
    found = guards.look(profile) if rules is None else confine.restrict(rules, own, profile, cuda=cuda, warden=guard)
    unread = {str(path): reason for path in reads if (reason := _reason(partial(_read, path)))}
    return Trial(
        guards={guard.name: guard.enforced for guard in found.guards},
        unread=unread,
        devices={str(path): _reason(partial(_open, path)) for path in gpu_devices()},
        computed=_compute() if gpu else "",
        trained=profile is NODE and _train(),
        refused=warden.refused_calls(os.pread(log, _MOST_LOG_BYTES, 0).decode()) if noted else [],
    )


def _read(path: Path) -> None:
    if path.is_dir():
        os.listdir(path)
    else:
        path.read_bytes()


def _open(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))


def _reason(attempt: Callable[[], None]) -> str:
    """The reason why it fails; empty if it does not."""
    try:
        attempt()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _compute() -> str:
    # Imported here and below: torch starts threads, and a process that confines itself must have only one.
    import torch

    if not torch.cuda.is_available():
        raise RunFailedError("torch finds no GPU that it can use")
    total = torch.ones(256, 256, device="cuda").matmul(torch.ones(256, 256, device="cuda")).sum().item()
    if total != 256**3:
        raise RunFailedError(f"the GPU computes wrongly: {total}")
    return str(torch.cuda.get_device_name())


def _train() -> bool:
    """A step of training in each of two threads, as a node makes them: convolutions, gradients, a random number, and a
    sum. Each operation has one thread: those that OpenMP had in the parent are not in its forked child, and would be
    waited for."""
    from protocol.learngene.side_by_side import set_worker_count, side_by_side

    set_worker_count(2)
    return all(side_by_side(_step, range(2)))


def _step(seed: int) -> bool:
    import torch

    generator = torch.Generator().manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten())
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.rand(64, 3, 32, 32, generator=generator)).square().mean().backward()
    before = [parameter.clone() for parameter in network.parameters()]
    optimiser.step()
    return any(not torch.equal(one, other) for one, other in zip(before, network.parameters(), strict=True))
