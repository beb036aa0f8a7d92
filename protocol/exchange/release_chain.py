"""The chain of a run's releases, as far as one individual has seen it: which release may come next, and which one
contradicts it.
"""

from dataclasses import dataclass

from protocol.errors import EquivocationError, ExpiredError, RollbackError
from protocol.learngene.architecture import Form
from protocol.messages.payloads import Release


@dataclass(frozen=True)
class SeenRelease:
    """An authentic release that a ledger remembers."""

    key_epoch: int
    seq: int
    form: Form
    digest: str
    prev: str


def check_chain(
    release: Release, digest: str, seen: tuple[SeenRelease, ...], withdrawn: frozenset[str] = frozenset()
) -> None:
    """Check ``seq`` and ``prev`` against what the ledger has seen of this run.

    An individual sees the releases of the forms that it asked for, so the chain has gaps: neighbours are compared
    wherever both are known, and a release may not be older than the last one of its own form.

    Numbers count within one ``key_epoch``: a thief of an earlier epoch's key may have signed any number with it, and
    must not stop the collective that continues with a new key (a fast-forward; the TUF specification, 5.3.11, answers
    it in the same way).
    """
    for other in seen:
        if contradicts(release, digest, other):
            raise EquivocationError(
                f"the collective signed two histories: release {release.seq} contradicts release {other.seq};"
                " ask the collective"
            )
    epoch, newest = max(((other.key_epoch, other.seq) for other in seen if other.form == release.form), default=(0, 0))
    if (release.key_epoch, release.seq) < (epoch, newest):
        raise RollbackError(f"release {release.seq} is older than release {newest}, which was seen before")
    if digest in withdrawn:
        raise ExpiredError(f"release {release.seq} was withdrawn by the collective; send a new request")


def contradicts(release: Release, digest: str, other: SeenRelease) -> bool:
    """Whether an authentic release (``digest``: its name) and another one of its run cannot both be in one chain."""
    return other.key_epoch == release.key_epoch and (
        (other.seq == release.seq and other.digest != digest)
        or (other.seq == release.seq - 1 and other.digest != release.prev)
        or (other.seq == release.seq + 1 and other.prev != digest)
    )
