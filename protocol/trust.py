"""The trust store: the public keys that a party has pinned, with their roles. Nothing else is believed."""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from protocol import canonical_json
from protocol.errors import ExpiredError, InputError, MalformedError, TooLargeError, UnknownKeyError, fault_line
from protocol.keys import check_public_key, key_identifier
from protocol.storage import write_atomically

Role = Literal["collective", "individual"]

_CONFIG = ConfigDict(frozen=True, extra="forbid", strict=True)
_Hex64 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
PartyName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]


class TrustedKey(BaseModel):
    """A pinned public key: ``public`` (raw, 64 hexadecimal digits), its ``keyid``, whose it is and for which role.

    ``epoch`` counts the signing keys that this party has had; a RELEASE names the one it was signed in.
    """

    model_config = _CONFIG

    keyid: _Hex64
    public: _Hex64
    role: Role
    party: PartyName
    epoch: int = Field(default=1, ge=1, le=2**31)

    @model_validator(mode="after")
    def _key_is_sound(self) -> "TrustedKey":
        raw = bytes.fromhex(self.public)
        try:
            check_public_key(raw)
        except InputError as error:
            raise ValueError(str(error)) from None
        if key_identifier(raw) != self.keyid:
            raise ValueError(f"the key id of {self.party} is not the SHA-256 of its public key")
        return self

    @property
    def raw(self) -> bytes:
        """The public key's 32 bytes."""
        return bytes.fromhex(self.public)


class TrustStore(BaseModel):
    """Pinned keys, in one version. The place for the offline root's signature, rotation and revocation is ``load``.

    Attributes:
        version: counts the changes; a later one replaces an earlier one.
        expires_at: unix seconds after which nothing in it is believed, or None.
        keys: at most one entry for a key.
    """

    model_config = _CONFIG

    format: Literal[1] = 1
    version: int = Field(default=1, ge=1, le=2**31)
    expires_at: int | None = Field(default=None, ge=0, le=2**40)
    keys: tuple[TrustedKey, ...] = Field(default=(), max_length=4096)

    @model_validator(mode="after")
    def _keys_differ(self) -> "TrustStore":
        if len({key.keyid for key in self.keys}) != len(self.keys):
            raise ValueError("a key is pinned twice; every key has one party and one role")
        return self

    @classmethod
    def load(cls, path: Path) -> "TrustStore":
        """Read ``trust.json``.

        Raises:
            InputError: no such file, not a trust store, or a key in it that must not be pinned.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read the trust store {path}: {error.strerror}") from None
        try:
            canonical_json.parse(data, max_bytes=1 << 20)
            return cls.model_validate_json(data)
        except (MalformedError, TooLargeError) as error:
            raise InputError(f"the trust store {path} is not valid: {error}") from None
        except ValidationError as error:
            raise InputError(f"the trust store {path} is not valid: {fault_line(error)}") from None

    def save(self, path: Path) -> None:
        """Write ``trust.json``, replacing it as a whole.

        Raises:
            StorageFailedError: it could not be stored durably.
        """
        write_atomically(path, (json.dumps(self.model_dump(mode="json"), indent=2) + "\n").encode("ascii"))

    def with_key(self, public: str, role: Role, party: str, *, epoch: int = 1) -> "TrustStore":
        """The next version of the store, with one key more (``public``: 64 hexadecimal digits).

        Raises:
            InputError: the key must not be pinned, is pinned already, or the party's name is not allowed.
        """
        try:
            keyid = key_identifier(bytes.fromhex(public))
            key = TrustedKey(keyid=keyid, public=public, role=role, party=party, epoch=epoch)
            # Not model_copy: the whole store is validated again.
            return TrustStore(
                version=self.version + (1 if self.keys else 0), expires_at=self.expires_at, keys=(*self.keys, key)
            )
        except ValidationError as error:
            raise InputError(f"the key of {party} cannot be pinned: {fault_line(error)}") from None
        except ValueError:
            raise InputError(
                f"the key of {party} is not hexadecimal; copy the public key that keygen printed"
            ) from None

    def key_for(self, keyid: str, role: Role) -> TrustedKey:
        """The pinned key with this id.

        Raises:
            UnknownKeyError: it is not pinned, or for another role.
        """
        for key in self.keys:
            if key.keyid == keyid:
                if key.role != role:
                    raise UnknownKeyError(f"the key {keyid[:16]} is pinned as {key.role}, not as {role}")
                return key
        raise UnknownKeyError(
            f"the key {keyid[:16]} is not pinned; compare fingerprints with its owner, then: trust add"
        )

    def only(self, role: Role) -> TrustedKey:
        """The one key of this role.

        Raises:
            InputError: there is none, or more than one.
        """
        found = [key for key in self.keys if key.role == role]
        if len(found) != 1:
            raise InputError(f"the trust store must hold exactly one key of a {role}, it holds {len(found)}: trust add")
        return found[0]

    def check_current(self, now: int) -> None:
        """Refuse a store past its time.

        Raises:
            ExpiredError: it is; a new version is needed.
        """
        if self.expires_at is not None and now > self.expires_at:
            raise ExpiredError("the trust store is past its time; get a new version from whoever keeps the root key")
