"""The trust store: the public keys that a party believes, signed by an offline root. Nothing else is believed.

Every change is a new version that the root signs (``protocol.trust.signed_trust``). After The Update Framework
(https://theupdateframework.github.io/specification/): one root instead of four roles, because a store that pins keys
needs no delegations.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from protocol.errors import (
    ExpiredError,
    InputError,
    RevokedKeyError,
    UnknownKeyError,
    fault_line,
)
from protocol.keys.signing_key import PublicKey, key_identifier
from protocol.trust.role import Role
from protocol.trust.root_handover import Handover, Roots

#: Why a learngene that was inherited should not be used any more: its collective has taken it back, or the key that
#: signed it was revoked since because another may have it.
RevocationStatus = Literal["withdrawn", "compromised"]
#: Why a key is no longer believed: another may have it, its owner has left, or a newer key has its place.
Reason = Literal["compromised", "retired", "superseded"]

_MOST_KEYS = 8192

_CONFIG = ConfigDict(frozen=True, extra="forbid", strict=True)

PARTY_PATTERN = r"^[a-z0-9][a-z0-9-]{0,63}$"
PartyName = Annotated[str, StringConstraints(pattern=PARTY_PATTERN)]
_LAST_VERSION = 2**31
_Version = Annotated[int, Field(ge=1, le=_LAST_VERSION)]


class TrustedKey(BaseModel):
    """A pinned public key: ``public`` (raw, 64 hexadecimal digits), its owner and role.

    ``epoch`` counts the signing keys that this party has had; a RELEASE names the epoch in which it was signed.
    """

    model_config = _CONFIG

    public: PublicKey
    role: Role
    party: PartyName
    epoch: _Version = 1

    @cached_property
    def raw(self) -> bytes:
        """The public key's 32 bytes."""
        return bytes.fromhex(self.public)

    @cached_property
    def keyid(self) -> str:
        """SHA-256 of the raw public key, 64 hexadecimal digits."""
        return key_identifier(self.raw)


class RevokedKey(TrustedKey):
    """A key that was pinned earlier: why it is no longer believed, and the ``version`` of the store that first said
    so.
    """

    reason: Reason
    version: _Version


class TrustStore(Roots):
    """Pinned keys, in one version. Changes make the next version; none of them changes this one.

    Attributes:
        root: public key of the offline root that signs the store.
        handovers: how earlier roots led to this one.
        version: counts the changes; a later one replaces an earlier one.
        expires_at: unix seconds after which nothing in it is believed.
        keys: the believed keys, at most one for a party and role.
        revoked: the keys that are no longer believed. They never come back.
    """

    model_config = _CONFIG

    format: Literal[1] = 1
    version: _Version = 1
    expires_at: int = Field(ge=0, le=2**40)
    keys: tuple[TrustedKey, ...] = Field(default=(), max_length=_MOST_KEYS)
    revoked: tuple[RevokedKey, ...] = Field(default=(), max_length=_MOST_KEYS)

    @model_validator(mode="after")
    def _keys_differ(self) -> "TrustStore":
        publics = [*(key.public for key in self.revoked), *(key.public for key in self.keys)]
        if set(publics) & set(self.roots):
            raise ValueError("a root key is a party's key too; a root key signs the trust store and nothing else")
        if len(set(publics)) != len(publics):
            raise ValueError("a key is pinned twice; every key has one party and one role")
        former = _last_epochs(self.revoked)
        if len({(key.role, key.party) for key in self.keys}) != len(self.keys):
            raise ValueError("a party has two keys for one role; trust rotate replaces a key")
        if any(key.epoch <= former.get((key.role, key.party), 0) for key in self.keys):
            raise ValueError("a party's key has not a later epoch than its revoked ones")
        return self

    def with_key(self, public: str, role: Role, party: str, *, epoch: int | None = None) -> "TrustStore":
        """The next version, with one more key (``public``: 64 hexadecimal digits). ``epoch`` increases by itself.

        Raises:
            InputError: the key must not be pinned, is or was pinned already, the party has a key, or its name is not
                allowed.
        """
        _check_hexadecimal(public, party)
        gone = next((key for key in self.revoked if key.public == public), None)
        if gone is not None:
            raise InputError(f"the key of {party} cannot be pinned: it was revoked as {gone.reason}; make a new key")
        try:
            if epoch is None:
                epoch = 1 + _last_epochs((*self.revoked, *self.keys)).get((role, party), 0)
            key = TrustedKey(public=public, role=role, party=party, epoch=epoch)
            return self._next(keys=(*self.keys, key))
        except ValidationError as error:
            raise InputError(f"the key of {party} cannot be pinned: {fault_line(error)}") from None

    def without_key(self, keyid: str, reason: Reason) -> "TrustStore":
        """The next version, in which this key is revoked. A retired or replaced key can be marked as compromised later,
        but never the reverse.

        Raises:
            InputError: it is not pinned, or was revoked before for a reason that is not weaker.
        """
        key = self._by_keyid.get(keyid)
        if key is not None:
            return self._next(keys=self._others(key), revoked=(*self.revoked, self._revocation(key, reason)))
        gone = self._revoked_by_keyid.get(keyid)
        if gone is None:
            raise InputError(f"the key {keyid[:16]} is not pinned, so there is nothing to revoke: trust show")
        if reason != "compromised" or gone.reason == "compromised":
            raise InputError(f"the key {keyid[:16]} is revoked already, as {gone.reason}: trust show")
        worse = gone.model_copy(update={"reason": reason, "version": self.version + 1})
        return self._next(revoked=tuple(worse if key is gone else key for key in self.revoked))

    def with_rotated_key(self, party: str, role: Role, public: str, *, epoch: int | None = None) -> "TrustStore":
        """The next version, with this key (64 hexadecimal digits) in the place of the party's present key, in the next
        epoch or a later ``epoch``.

        Raises:
            InputError: the party has no key for this role, or the new key must not be pinned.
        """
        key = next((key for key in self.keys if (key.party, key.role) == (party, role)), None)
        if key is None:
            raise InputError(f"{party} has no key as {role}, so there is nothing to rotate: trust add")
        _check_hexadecimal(public, party)
        try:
            new = TrustedKey(public=public, role=role, party=party, epoch=key.epoch + 1 if epoch is None else epoch)
            return self._next(
                keys=(*self._others(key), new), revoked=(*self.revoked, self._revocation(key, "superseded"))
            )
        except ValidationError as error:
            raise InputError(f"the key of {party} cannot be rotated: {fault_line(error)}") from None

    def with_root(self, handover: Handover) -> "TrustStore":
        """The next version, under the root that the handover leads to.

        Raises:
            InputError: the handover is not from this store's root, or the new root must not be one.
            BadSignatureError: a signature of the handover does not fit.
        """
        if handover.old != self.root:
            raise InputError("the old root key is not the trust store's root; use the key that signed it last")
        handover.check()
        try:
            return self._next(root=handover.new, handovers=(*self.handovers, handover))
        except ValidationError as error:
            raise InputError(f"the root cannot be rotated: {fault_line(error)}") from None

    def taken_over(self, root: str, expires_at: int) -> "TrustStore":
        """The next version, under another root (public key, 64 hexadecimal digits) without a handover, after the old
        root key was lost. Keys, epochs and revocations stay, so that the numbers of releases go on.

        Raises:
            InputError: the new root must not be one.
        """
        if root in self.roots:
            raise InputError("the new root key is a root of the old trust store; make another with: learngene keygen")
        try:
            return self._next(root=root, handovers=(), expires_at=expires_at)
        except ValidationError as error:
            raise InputError(f"the root cannot take over: {fault_line(error)}") from None

    def with_expiry(self, expires_at: int) -> "TrustStore":
        """The next version, which holds until ``expires_at`` (unix seconds)."""
        return self._next(expires_at=expires_at)

    def key_for(self, keyid: str, role: Role) -> TrustedKey:
        """The pinned key with this id.

        Raises:
            RevokedKeyError: it was pinned and is revoked.
            UnknownKeyError: it is not pinned, or for another role.
        """
        key = self._by_keyid.get(keyid)
        if key is None:
            gone = self._revoked_by_keyid.get(keyid)
            if gone is not None:
                raise RevokedKeyError(
                    f"the key {keyid[:16]} of {gone.party} was revoked as {gone.reason} in version {gone.version} of"
                    f" the trust store; believe nothing signed with it and ask {gone.party} for what its new key signed"
                )
            raise UnknownKeyError(
                f"the key {keyid[:16]} is not pinned; compare fingerprints with its owner, then: trust add"
            )
        if key.role != role:
            raise UnknownKeyError(f"the key {keyid[:16]} is pinned as {key.role}, not as {role}")
        return key

    def is_compromised(self, keyid: str) -> bool:
        """Whether the key with this id was pinned earlier and was revoked because another may have it: then everything
        that it signed, at any time, may be compromised too.
        """
        key = self._revoked_by_keyid.get(keyid)
        return key is not None and key.reason == "compromised"

    def only(self, role: Role) -> TrustedKey:
        """The one key of this role.

        Raises:
            InputError: there is none, or more than one.
        """
        found = [key for key in self.keys if key.role == role]
        if len(found) != 1:
            raise InputError(f"the trust store must hold exactly one key of a {role}, it holds {len(found)}: trust add")
        return found[0]

    def collective_of(self, role: Role, own: str) -> TrustedKey:
        """The collective's pinned key, as a party of this ``role`` whose key has the id ``own`` needs it.

        Raises:
            InputError: a collective's own key is not in the store; or, for an individual, the store has no collective,
                or several.
        """
        if role == "individual":
            return self.only("collective")
        # Every individual would refuse the signatures of a key that is not pinned.
        try:
            return self.key_for(own, "collective")
        except (UnknownKeyError, RevokedKeyError) as error:
            raise InputError(f"the collective's own key is not in its trust store: {error}") from None

    def check_current(self, now: int) -> None:
        """Refuse an expired store.

        Raises:
            ExpiredError: it has expired; a new version is needed.
        """
        if now > self.expires_at:
            raise ExpiredError("the trust store is past its time; get a new version from whoever keeps the root key")

    @cached_property
    def _by_keyid(self) -> Mapping[str, TrustedKey]:
        return {key.keyid: key for key in self.keys}

    @cached_property
    def _revoked_by_keyid(self) -> Mapping[str, RevokedKey]:
        return {key.keyid: key for key in self.revoked}

    def _others(self, key: TrustedKey) -> tuple[TrustedKey, ...]:
        return tuple(other for other in self.keys if other is not key)

    def _revocation(self, key: TrustedKey, reason: Reason) -> RevokedKey:
        return RevokedKey(**key.model_dump(), reason=reason, version=self.version + 1)

    def _next(self, **changes: object) -> "TrustStore":
        if self.version == _LAST_VERSION:
            raise InputError(
                "the trust store has the last version that there can be, so somebody else may have signed it; begin"
                " from an earlier copy with a new root: trust init --from"
            )
        # Not model_copy, so that the whole store is validated again.
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return TrustStore.model_validate({**fields, "version": self.version + 1, **changes})


def _last_epochs(listed: tuple[TrustedKey, ...]) -> dict[tuple[Role, str], int]:
    """The latest epoch of every role and party among these keys."""
    last: dict[tuple[Role, str], int] = {}
    for key in listed:
        name = (key.role, key.party)
        last[name] = max(key.epoch, last.get(name, 0))
    return last


def _check_hexadecimal(public: str, party: str) -> None:
    try:
        bytes.fromhex(public)
    except ValueError:
        raise InputError(f"the key of {party} is not hexadecimal; copy the public key that keygen printed") from None
