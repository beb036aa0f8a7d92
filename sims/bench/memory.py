"""Memory that a piece of work on a bundle takes, measured in a process that has done nothing else."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from protocol.commands.key_commands import kem_named
from protocol.errors import RunFailedError
from protocol.keys.kem import Kem
from sims.bench.bundle_timing import Work
from sims.bench.made_bundle import Bundle
from sims.bench.measurements import COPY, VERIFY_AND_PARSE, WHOLE, Memory
from sims.run.processes import peak_memory

_PARTS = ("request", "release", "grant", "ciphertext", "plaintext")
_CLEAR = Path("/proc/self/clear_refs")
#: Written to ``clear_refs``, it sets the peak back to what is in use now (proc(5)).
_RESET_PEAK = "5"


def measure_memory(bundle: Bundle, folder: Path) -> tuple[Memory, ...]:
    """Peak memory beyond the received bytes, each in a process of its own; one measurement copies the bundle on
    purpose, to show that a copy is detected.

    Raises:
        RunFailedError: a process ended without an answer.
    """
    with TemporaryDirectory(prefix="learngene-bench-", dir=folder) as temporary:
        for name in _PARTS:
            (Path(temporary) / name).write_bytes(getattr(bundle, name))
        return tuple(
            Memory(name=name, bytes=growth_elsewhere(__name__, temporary, name, bundle.kem))
            for name in (COPY, VERIFY_AND_PARSE, WHOLE)
        )


def growth(work: Callable[[], object]) -> int:
    """Bytes by which this process grows at most while it works."""
    before = _reset_peak()
    result = work()
    after = _peak()
    del result
    return max(0, after - before)


def print_growth(work: Callable[[], object]) -> None:
    """Say :func:`growth` to the process that started this one."""
    print(json.dumps(growth(work)))


def growth_elsewhere(module: str, *arguments: str) -> int:
    """Bytes by which a process of its own grows: of a module that is run as a program with these arguments and calls
    :func:`print_growth`.

    Raises:
        RunFailedError: it ended without an answer.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RunFailedError(f"the process that measures memory ended with code {done.returncode}: {reason}")
    return int(json.loads(done.stdout))


def _reset_peak() -> int:
    """Memory in use, in bytes; the peak is reset to it, if the system can do that."""
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return _peak()
    return psutil.Process().memory_info().rss


def _peak() -> int:
    found = peak_memory()
    if found is not None:
        return found
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def _main(folder: Path, name: str, kem: Kem) -> None:
    bundle = Bundle(kem, *((folder / part).read_bytes() for part in _PARTS))
    work = Work(bundle)
    work.prepare()
    pieces: dict[str, Callable[[], object]] = {
        COPY: lambda: bytearray(bundle.plaintext),
        VERIFY_AND_PARSE: work.verify_and_parse,
        WHOLE: work.verify_whole,
    }
    print_growth(pieces[name])


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2], kem_named(sys.argv[3]))
