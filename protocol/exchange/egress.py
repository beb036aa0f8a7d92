"""The egress gate: everything that leaves a site passes it and is recorded; the default is to refuse.

``Gate.let_out`` clears each message; ``Gate.let_frame_out`` checks the finished answer, last before the socket.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import get_args

from protocol.digest import digest_of
from protocol.errors import DigestMismatchError, PolicyDeniedError, RefusedError, TooLargeError
from protocol.exchange.audit import TOO_LARGE, Crossings
from protocol.keys.signing_key import SigningKey
from protocol.messages import envelope, payloads
from protocol.messages.envelope import Envelope
from protocol.messages.payloads import AbortCode, Grant, PaddedPayload, Payload, Release
from protocol.transport.frame import Frame, JobState
from protocol.trust.policy import Policy, check_release
from protocol.trust.role import Role

#: Parts of the answers with which a role's node lets bytes out. All other answers have none.
_PARTS: dict[Role, dict[str, tuple[str, ...]]] = {
    "collective": {"bundle": ("blob", "grant", "release"), "abort": ("abort",)},
    "individual": {"request": ("request",), "receipt": ("receipt",)},
}
#: Jobs that a status may name.
_JOBS = ("", "adapt", "evolve")
#: Codes of a refusal: those of the messages, and that of an error of our own.
_CODES = (*get_args(AbortCode), "failed")
_MOST_CLEARED = 64


class Gate:
    """One site's gate: messages are let out and recorded one by one, then frames that hold nothing else.

    Args:
        policy: of the site.
        crossings: the log of what crosses; a refusal is recorded too.
        key: the site's own signing key: it signs everything that leaves.
        run_id: the run of everything that leaves.
        is_partner: whether a key id is that of a party to which the site may address a message now.
    """

    def __init__(
        self,
        policy: Policy,
        crossings: Crossings,
        *,
        key: SigningKey,
        run_id: str,
        is_partner: Callable[[str], bool],
    ) -> None:
        self._policy, self._crossings = policy, crossings
        self._key, self._run_id, self._is_partner = key, run_id, is_partner
        self._cleared: deque[tuple[str, str]] = deque(maxlen=_MOST_CLEARED)

    def check_size(self, kind: str, data: bytes) -> None:
        """Refuse, before hashing it, data that is larger than anything of its kind.

        Raises:
            TooLargeError: it is larger.
        """
        limit = self._policy.largest_blob if kind == "blob" else envelope.MAX_BYTES
        if len(data) > limit:
            raise TooLargeError(f"a {kind} of {len(data)} bytes, this site takes at most {limit}")

    def let_in(self, peer: str, kind: str, data: bytes, refused: RefusedError | None = None) -> None:
        """Record what came in, and why it was refused, if it was. Data that is too large is not hashed.

        Raises:
            StorageFailedError: it could not be recorded.
        """
        sha256 = None
        try:
            self.check_size(kind, data)
        except TooLargeError as error:
            refused, sha256 = refused or error, TOO_LARGE
        decision = () if refused is None else (refused.code,)
        self._crossings.append("in", peer, kind, data, *decision, sha256=sha256)

    def let_out(self, peer: str, parts: Mapping[str, bytes]) -> None:
        """Let parts of one answer leave, all or none: messages by their kind, and ``blob`` beside its ``release``. Each
        is recorded before this returns; if one is refused, the refusal is recorded and nothing is let out.

        Raises:
            PolicyDeniedError: one is not a message of its kind with a content that the policy allows, by this site, of
                this run and to a partner; or there is a blob without its release.
            DigestMismatchError: the blob is not the release's.
            TooLargeError, MalformedError: one is not a message at all.
            StorageFailedError: it could not be recorded, so nothing may be sent.
        """
        # A blob may be large: each part is hashed once here, and once more before the socket, to check that it is the
        # same.
        digests = {kind: digest_of(data) for kind, data in parts.items()}
        opened: dict[str, Payload] = {}
        # The release comes before the blob that it describes.
        for kind in sorted(parts, key="blob".__eq__):
            data = parts[kind]
            try:
                if kind == "blob":
                    _check_blob(opened.get("release"), len(data), digests[kind])
                else:
                    sealed, opened[kind] = _message(self._policy, data, kind)
                    self._check_own(sealed, opened[kind])
            except RefusedError as error:
                self._crossings.append("out", peer, kind, data, error.code, sha256=digests[kind])
                raise
        for kind, data in parts.items():
            self._crossings.append("out", peer, kind, data, sha256=digests[kind])
            self._cleared.append((kind, digests[kind]))

    def _check_own(self, sealed: Envelope, payload: Payload) -> None:
        """Check run, addressee and signature: they leave no room for anything else.

        Ed25519 is deterministic (RFC 8032), so this site's key makes exactly one signature of a payload. Other valid
        signatures exist, and their maker could hide data in the random part.
        """
        if (payload.run_id, payload.signer) != (self._run_id, self._key.keyid):
            raise PolicyDeniedError(f"the {payload.kind} is of another run, or not signed by this site")
        if isinstance(payload, PaddedPayload | Grant) and not self._is_partner(payload.audience):
            raise PolicyDeniedError(f"the {payload.kind} is for the key {payload.audience[:16]}, which is no partner's")
        signed = envelope.pre_authentication_encoding(sealed.payload_type, sealed.payload)
        if sealed.signature != self._key.sign(signed):
            raise PolicyDeniedError(f"the {payload.kind} does not bear the signature that this site's key makes of it")

    def let_frame_out(self, frame: Frame, party: str) -> Frame:
        """Return the answer of ``party``'s node if it holds nothing but parts that were let out and words from lists.

        Raises:
            PolicyDeniedError: it holds something else.
        """
        role, word = self._policy.role, frame.name
        parts = _PARTS[role].get(word, ())
        names = {"status": ("role", "party", "state", "job"), "refused": ("code",)}.get(word, ())
        allowed = {"role": (role,), "party": (party,), "state": get_args(JobState), "job": _JOBS, "code": _CODES}
        if word not in (*_PARTS[role], "status", "refused", "accepted") or frame.numbers:
            raise PolicyDeniedError(f"the {role}'s node gives no answer {word!r} with {len(frame.numbers)} numbers")
        if set(frame.fields) != set(names) or any(value not in allowed[name] for name, value in frame.fields.items()):
            raise PolicyDeniedError(f"the answer {word!r} holds words that are on no list")
        if tuple(sorted(frame.parts)) != parts:
            raise PolicyDeniedError(f"the answer {word!r} may hold the parts {parts}, not {sorted(frame.parts)}")
        for name, data in frame.parts.items():
            if (name, digest_of(data)) not in self._cleared:
                raise PolicyDeniedError(f"the {name} in the answer {word!r} was not let out by this gate")
        return frame


def egress(policy: Policy, data: bytes, kind: str | None = None) -> bytes:
    """Return a message unchanged if it may leave (as this ``kind``, if one is given).

    Raises:
        PolicyDeniedError: not an envelope of a kind and content that this policy allows.
        TooLargeError, MalformedError: not a message at all.
    """
    _message(policy, data, kind)
    return data


def leaving_release(policy: Policy, data: bytes) -> Release:
    """The payload of a release that may leave.

    Raises:
        PolicyDeniedError: no release, or of a content that this policy does not allow.
        TooLargeError, MalformedError: not a message at all.
    """
    payload = _message(policy, data, Release.kind)[1]
    assert isinstance(payload, Release)
    return payload


def _message(policy: Policy, data: bytes, kind: str | None) -> tuple[Envelope, Payload]:
    """A message that may leave, and its payload."""
    opened = envelope.parse(data)
    model = payloads.MODELS.get(opened.payload_type)
    if model is None or model.kind not in policy.kinds_out or model.kind != (kind or model.kind):
        raise PolicyDeniedError(f"the policy of this {policy.role} lets no {opened.payload_type} leave")
    # The schema is the list of fields that may leave; for padded kinds it fixes the size too.
    payload = payloads.decode(model, opened.payload)
    # The envelope's own key id is no field of the payload, and could be a text of any length, so it is checked too.
    if opened.keyid != payload.signer:
        raise PolicyDeniedError("the envelope names another signer than its payload")
    if isinstance(payload, Release):
        check_release(policy, payload)
    return opened, payload


def _check_blob(release: Payload | None, size: int, sha256: str) -> None:
    if not isinstance(release, Release):
        raise PolicyDeniedError("a blob leaves only with the release that describes it")
    if (size, sha256) != (release.ciphertext.size, release.ciphertext.sha256):
        raise DigestMismatchError("the blob is not the one that the release describes; publish again")
