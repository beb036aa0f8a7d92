"""What the endpoints of both parties hold: key, trust store, ledger, policy and log, in the right order.

What an endpoint returns is durable in the ledger, was cleared by ``Gate.let_out`` and is recorded in the log of
crossings; ``Gate.let_frame_out`` checks the finished answer, last before the socket.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Generic, Self, TypeVar

from protocol.encoding.calendar import moment
from protocol.errors import (
    InputError,
    RevokedKeyError,
    UnknownKeyError,
)
from protocol.exchange.audit import Crossings
from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.exchange.egress import Gate
from protocol.exchange.individual_ledger import IndividualLedger
from protocol.keys.party_keys import NodeKeys
from protocol.messages.payloads import (
    SKEW,
    Payload,
)
from protocol.trust.policy import Policy
from protocol.trust.role import A_PARTY, PARTNER, Role
from protocol.trust.trust_file import TrustFile
from protocol.trust.trust_store import TrustedKey, TrustStore

logger = logging.getLogger(__name__)

LedgerT = TypeVar("LedgerT", CollectiveLedger, IndividualLedger)


#: Named in the log as the sender of a message that could not be verified.
UNVERIFIED = "unverified"


class Endpoint(Generic[LedgerT]):
    """What both endpoints hold: key, trust store, ledger, policy, run, log of crossings.

    ``trust`` is asked for each piece of work, so that a revocation reaches an open endpoint. Every ``now`` is compared
    with the latest time that the ledger remembers, and the later one decides: if the clock is set back, an expired
    message stays expired.
    """

    role: ClassVar[Role]

    def __init__(
        self,
        *,
        keys: NodeKeys,
        trust: Callable[[], TrustStore],
        ledger: LedgerT,
        policy: Policy,
        run_id: str,
        crossings: Crossings,
    ) -> None:
        if policy.role != self.role:
            raise InputError(f"the {self.role} needs the policy of {A_PARTY[self.role]}")
        self._key = keys.signing
        self._trust = trust
        self._ledger: LedgerT = ledger
        self._policy = policy
        self._run_id = run_id
        self._clock_was_behind = False
        self.gate = Gate(policy, crossings, key=self._key, run_id=run_id, is_partner=self._is_partner)
        # Check this before any message in its name or to it.
        self._collective(trust())

    @classmethod
    def open(
        cls,
        state: Path,
        *,
        party: str,
        keys: NodeKeys,
        trust: Path,
        root: str,
        run_id: str,
        clock: Callable[[], int],
        policy: Policy | None = None,
        new_pin: bool = False,
    ) -> Self:
        """The endpoint of ``party``; ledger and log of crossings lie in its own folder.

        Args:
            state: the party's own folder, made if there is none.
            trust: the trust store's file.
            root: the public key, in hexadecimal, of the root that must have signed it.
            clock: unix seconds, for the log of crossings.
            policy: of the site; None: the default.
            new_pin: see :class:`protocol.trust.trust_file.TrustFile`.
        """
        ledger = cls._open_ledger(state)
        return cls(
            keys=keys,
            trust=TrustFile(trust, root, ledger, new_pin=new_pin).current,
            ledger=ledger,
            policy=policy or Policy.for_role(cls.role),
            run_id=run_id,
            crossings=Crossings(state / "crossings.jsonl", party, clock),
        )

    @staticmethod
    def _open_ledger(state: Path) -> LedgerT:
        """The role's ledger in a party's folder."""
        raise NotImplementedError

    def _collective(self, trust: TrustStore) -> TrustedKey:
        """The collective's pinned key."""
        return trust.collective_of(self.role, self._key.keyid)

    def time(self, now: int) -> int:
        """The time that checks use, which never goes back; ``now``: the clock's time. If the clock is further behind
        than clocks may differ, this is logged once.

        Raises:
            StorageFailedError: the time could not be stored.
        """
        later = self._ledger.time_after(now)
        behind = later - now > SKEW
        if behind and not self._clock_was_behind:
            logger.warning("%s", behind_line(now, later, self.role))
        self._clock_was_behind = behind
        return later

    def _is_partner(self, keyid: str) -> bool:
        try:
            self._trust().key_for(keyid, PARTNER[self.role])
        except (UnknownKeyError, RevokedKeyError):
            return False
        return True


def behind_line(now: int, latest: int, role: Role) -> str:
    """The warning about a clock that stands behind the latest time that was decided by."""
    return (
        f"the clock stands at {moment(now)}, and this node has decided by {moment(latest)} before: that time counts, "
        f"and what has expired stays so. Set the clock right; where it was wrong before: {role}-node clock --forget"
    )


def holds(payload: Payload, now: int) -> bool:
    """Whether a message of this site is valid at this time; other parties would refuse it if not."""
    return payload.issued_at <= now + SKEW and now < payload.expires_at
