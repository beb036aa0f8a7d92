"""The signed form of a trust store: the bytes of ``trust.json``, made by its root and verified under a pinned root."""

from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from protocol.digest import digest_of
from protocol.encoding import canonical_json
from protocol.errors import (
    EquivocationError,
    InputError,
    MalformedError,
    RollbackError,
    UnknownKeyError,
    fault_line,
)
from protocol.keys.signing_key import SigningKey, key_identifier
from protocol.messages import envelope
from protocol.messages.envelope import Envelope, pre_authentication_encoding
from protocol.trust.root_handover import Roots
from protocol.trust.trust_store import TrustStore

#: Bytes of the largest ``trust.json``; room for about five thousand keys.
MAX_BYTES = 1 << 20
PAYLOAD_TYPE = "application/vnd.learngene.trust.v1+json"


@dataclass(frozen=True)
class TrustSeen:
    """A party's memory of the last trust store that it accepted.

    Attributes:
        version: of the store.
        digest: SHA-256 of its file's bytes, 64 hexadecimal digits.
        root: the store's own root (public key, 64 hexadecimal digits).
        pinned: the root that was pinned then.
    """

    version: int
    digest: str
    root: str
    pinned: str

    def check_after(self, before: "TrustSeen") -> None:
        """Refuse a step back to an earlier version, and a second store with the same version.

        Raises:
            RollbackError: ``before`` is a later version.
            EquivocationError: ``before`` is another store with this version.
        """
        if self.version < before.version:
            raise RollbackError(
                f"version {self.version} of the trust store is older than version {before.version}, which was accepted"
                " before; get the newest from whoever keeps the root key"
            )
        if self.version == before.version and self.digest != before.digest:
            raise EquivocationError(
                f"there are two trust stores of version {self.version}; keep both and ask whoever keeps the root key"
            )


def sign_trust(store: TrustStore, root: SigningKey) -> bytes:
    """The bytes of ``trust.json``: a DSSE envelope, canonical.

    Raises:
        InputError: ``root`` is not the store's root key, or the store has grown beyond ``MAX_BYTES``.
    """
    if root.public_hex != store.root:
        raise InputError(
            "the key is not the trust store's root key"
            + ("; the store has a newer root" if root.public_hex in store.roots else "")
        )
    payload = _encode(store)
    signature = root.sign(pre_authentication_encoding(PAYLOAD_TYPE, payload))
    data = envelope.encode(Envelope(PAYLOAD_TYPE, payload, root.keyid, signature))
    if len(data) > MAX_BYTES:
        raise InputError(f"the trust store would have {len(data)} bytes, at most {MAX_BYTES} are read; begin a new one")
    return data


def verify_trust(data: bytes, *, root: str, seen: TrustSeen | None) -> tuple[TrustStore, TrustSeen]:
    """Read a trust store that the pinned root signed, or a root that it leads to.

    Expiry is not checked here: the user of the store calls ``check_current`` with the time of the message to verify.

    Args:
        data: what ``trust.json`` holds.
        root: the pinned root's public key, 64 hexadecimal digits.
        seen: what this party remembers of the last store that it accepted.

    Returns:
        The store, and the memory of it that must be stored before it is used.

    Raises:
        TooLargeError: more than ``MAX_BYTES``.
        MalformedError: not a canonical envelope with a trust store.
        UnknownKeyError: the pinned root neither signed it nor leads to the root that did.
        BadSignatureError: the signature, or one of a handover, does not fit.
        RollbackError: an earlier version than one accepted before.
        EquivocationError: the root signed two stores with one version, or an earlier root handed over to two.
    """
    opened = envelope.parse(data, max_bytes=MAX_BYTES)
    if opened.payload_type != PAYLOAD_TYPE:
        raise MalformedError("the file is signed, but it is no trust store; make one with: trust init")
    _check_signature(opened, root)
    store = _decode(opened.payload, TrustStore)
    if _encode(store) != opened.payload:
        raise MalformedError("the trust store leaves out what it must say; get one that `learngene trust` made")
    now_seen = TrustSeen(store.version, digest_of(data), store.root, root)
    if seen is not None:
        _check_progress(store, now_seen, seen)
    return store, now_seen


def claimed_root(data: bytes) -> str:
    """The root's public key as the file itself names it. This proves nothing: only a root that was pinned out of band
    tells a trust store from a forged one.

    Raises:
        TooLargeError: more than ``MAX_BYTES``.
        MalformedError: not a canonical envelope with a trust store.
    """
    return _decode(envelope.parse(data, max_bytes=MAX_BYTES).payload, Roots).root


def _check_signature(opened: Envelope, pinned: str) -> None:
    """Check the handovers from the pinned root to the store's own root, and then that root's signature."""
    roots = _decode(opened.payload, Roots)
    if pinned not in roots.roots:
        raise UnknownKeyError(
            f"the trust store's root is {key_identifier(bytes.fromhex(roots.root))[:16]}, and nothing leads to it from"
            " the pinned root; compare the root's fingerprint with whoever keeps it, then pin that"
        )
    for handover in roots.handovers:
        handover.check()
    raw = bytes.fromhex(roots.root)
    if opened.keyid != key_identifier(raw):
        raise UnknownKeyError("the trust store is not signed by its root; get it again from whoever keeps the root key")
    envelope.check_signature(opened, raw)


def _check_progress(store: TrustStore, now_seen: TrustSeen, seen: TrustSeen) -> None:
    """Compare the store with the last accepted one: no earlier version, and no second history."""
    vouched = store.roots[store.roots.index(now_seen.pinned) :]
    if seen.pinned != now_seen.pinned and seen.root not in vouched:
        # The operator has since pinned a root that did not lead to the accepted store. This is the way out after a
        # thief of a root key has signed a store whose version nothing can surpass.
        return
    now_seen.check_after(seen)
    if seen.root not in vouched:
        raise EquivocationError(
            "the trust store comes from another root than the one accepted before: an earlier root key signed two"
            " successors; keep the file and ask whoever keeps the root key"
        )


RootsT = TypeVar("RootsT", bound=Roots)


def _encode(store: TrustStore) -> bytes:
    return canonical_json.encode(store.model_dump(mode="json"))


def _decode(payload: bytes, model: type[RootsT]) -> RootsT:
    canonical_json.decode(payload, max_bytes=MAX_BYTES)
    try:
        return model.model_validate_json(payload)
    except ValidationError as error:
        raise MalformedError(f"the trust store is not valid: {fault_line(error)}") from None
