"""What the reader of a bundle expects of it: as the answer to an open request, or out of a file."""

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.exchange.release_chain import SeenRelease
from protocol.learngene.architecture import Form


@dataclass(frozen=True)
class Expectation:
    """What an individual waits for.

    Attributes:
        run_id: the run it takes part in.
        audience: its own key id.
        requests: digests of its unanswered requests, and the form that each asked for.
        withdrawn: digests of releases that the collective has withdrawn.
    """

    run_id: str
    audience: str
    requests: Mapping[str, Form]
    withdrawn: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Holder:
    """The reader of a bundle that came as a file and not as the answer to an open request.

    Attributes:
        run_id: the run that it must belong to; None: the one that the collective signed.
        audience: the key id that it must be granted to; None: any key that the trust store pins as an individual's.
        seen: the authentic releases of the run that the reader's ledger remembers.
        committed: digests of the releases that the reader's ledger committed, so verified while they were valid.
        withdrawn: digests of releases that the collective has withdrawn, as far as the reader's ledger knows.
    """

    run_id: str | None = None
    audience: str | None = None
    seen: tuple[SeenRelease, ...] = ()
    committed: frozenset[str] = frozenset()
    withdrawn: frozenset[str] = frozenset()
