"""What a node's small helpers, its warden and its printer, do first: outlive its signals, and confine themselves."""

import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from protocol.confinement import landlock, privileges, seccomp
from protocol.confinement.allowed_calls import WARDEN
from protocol.confinement.landlock import Access
from protocol.confinement.privileges import User


def become_helper(keep: Iterable[int], user: User | None, rules: Mapping[Path, Access]) -> None:
    """Make this forked process a helper of the process that forked it; called before its second thread.

    Args:
        keep: descriptors that stay open. The node's are not among them, because it may be taken over.
        user: that it becomes.
        rules: the paths that it may reach, and how.
    """
    # Ctrl-C and the end of a service are for the node, and its helpers end after it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTTOU, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    _close_all_but(keep)
    # Nothing that other processes of its user must not see is open any more, and it needs its own ``/proc``.
    privileges.let_others_look(True)
    time.tzset()
    os.chdir("/")
    privileges.give_up(user, capabilities=True)
    landlock.restrict(rules, tcp=False)
    seccomp.restrict(WARDEN)


def _close_all_but(keep: Iterable[int]) -> None:
    """Close every other descriptor, and let no program inherit these."""
    kept = sorted(set(keep))
    for number in kept:
        os.set_inheritable(number, False)
    start = 0
    for number in [*kept, sys.maxsize]:
        os.closerange(start, min(number, 1 << 20))
        start = number + 1
