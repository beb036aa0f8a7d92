"""How one root key of a trust store hands over to the next."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from protocol.encoding import canonical_json
from protocol.errors import InputError
from protocol.keys import signing_key
from protocol.keys.signing_key import PublicKey, SigningKey
from protocol.messages.envelope import pre_authentication_encoding

#: DSSE type of the statement by which one root key hands over to the next. No other statement has it, so no other
#: signature passes as a handover.
HANDOVER_TYPE = "application/vnd.learngene.root-handover.v1+json"
_MOST_HANDOVERS = 64
_Signature = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]


class Handover(BaseModel):
    """One root key hands over to the next: both public keys, and a signature of each over the same statement."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    old: PublicKey
    new: PublicKey
    signature_old: _Signature
    signature_new: _Signature

    @classmethod
    def make(cls, old: SigningKey, new: SigningKey) -> "Handover":
        """The handover that both keys sign.

        Raises:
            InputError: both are the same key.
        """
        if old.public_hex == new.public_hex:
            raise InputError("the new root key is the old one; make another with: learngene keygen")
        statement = _statement(old.public_hex, new.public_hex)
        return cls(
            old=old.public_hex,
            new=new.public_hex,
            signature_old=old.sign(statement).hex(),
            signature_new=new.sign(statement).hex(),
        )

    def check(self) -> None:
        """Check both signatures.

        Raises:
            BadSignatureError: one of them does not fit.
        """
        statement = _statement(self.old, self.new)
        for public, signature in ((self.old, self.signature_old), (self.new, self.signature_new)):
            signing_key.check_signature(bytes.fromhex(public), bytes.fromhex(signature), statement)


def _statement(old: str, new: str) -> bytes:
    return pre_authentication_encoding(HANDOVER_TYPE, canonical_json.encode({"format": 1, "new": new, "old": old}))


class Roots(BaseModel):
    """The part of a trust store that says which root must sign it: the only part that is read before the signature is
    checked.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    root: PublicKey
    handovers: tuple[Handover, ...] = Field(default=(), max_length=_MOST_HANDOVERS)

    @model_validator(mode="after")
    def _one_chain(self) -> "Roots":
        for before, after in zip(self.handovers, self.handovers[1:], strict=False):
            if before.new != after.old:
                raise ValueError("the handovers from root to root are not one chain")
        if self.handovers and self.handovers[-1].new != self.root:
            raise ValueError("the last handover does not lead to the root")
        if len(set(self.roots)) != len(self.roots):
            raise ValueError("a root key comes back; every root is a new key")
        return self

    @property
    def roots(self) -> tuple[str, ...]:
        """Every root that led to this store's root, from the first to its own."""
        return (*(handover.old for handover in self.handovers), self.root)
