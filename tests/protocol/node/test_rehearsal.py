"""Work in a child: its bytes are held for later, its errors come back as they are, and nothing else does."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.errors import ExpiredError, InputError, LearngeneError, RunFailedError
from protocol.node.rehearsal import rehearse, taken


def raising(error: BaseException) -> Callable[[], bytes]:
    def work() -> bytes:
        raise error

    return work


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("data", [b"", b"\0secret", bytes(64 * 1024)])
def test_what_it_gives_is_held_until_it_is_taken(data: bytes) -> None:
    before = descriptors()
    assert taken(rehearse(lambda: data)) == data
    assert descriptors() == before


def test_what_it_does_stays_in_the_child(tmp_path: Path) -> None:
    given: list[int] = []

    def work() -> bytes:
        sys.modules["rehearsed"] = sys
        given.append(os.getpid())
        os.chdir(tmp_path)
        return str(os.getpid()).encode()

    folder = Path.cwd()
    assert int(taken(rehearse(work))) != os.getpid()
    assert (given, "rehearsed" in sys.modules, Path.cwd()) == ([], False, folder)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InputError("name\udcff is wrong; mend it"), InputError),
        (RunFailedError("it failed"), RunFailedError),
        (ExpiredError("too late"), RunFailedError),
        (ZeroDivisionError("by nothing"), RunFailedError),
        (SystemExit(0), RunFailedError),
    ],
)
def test_an_error_comes_back(error: BaseException, kind: type[LearngeneError]) -> None:
    before = descriptors()
    with pytest.raises(LearngeneError) as raised:
        rehearse(raising(error))
    assert type(raised.value) is kind
    assert str(error) in str(raised.value)
    assert descriptors() == before


def test_a_child_that_is_broken_off_killed_or_gives_too_much_is_no_success() -> None:
    with pytest.raises(KeyboardInterrupt):
        rehearse(raising(KeyboardInterrupt()))
    with pytest.raises(RunFailedError):
        rehearse(lambda: bytes(os.kill(os.getpid(), signal.SIGKILL) or 0))
    with pytest.raises(RunFailedError):
        rehearse(lambda: bytes(64 * 1024 + 1))
