"""Errors of the project. Every one carries a line that tells its reader what to do next."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class LearngeneError(Exception):
    """Base of every error that this project raises on purpose."""


class InputError(LearngeneError):
    """Something the user gave is wrong: a path, an option, a setting, a folder. Commands exit with code 2."""


class RunFailedError(LearngeneError):
    """A run, a node or a job ended without its result. Commands exit with code 1."""


class RefusedError(LearngeneError):
    """A message was refused. ``code`` is the coarse word that may cross the wire; the text stays in the local log."""

    code = "refused"


class TooLargeError(RefusedError):
    """More bytes, tensors or characters than the protocol allows."""

    code = "too_large"


class MalformedError(RefusedError):
    """The bytes are not what the format says, or not in their canonical form."""

    code = "malformed"


class UnknownKeyError(RefusedError):
    """The key that signed is not in the pinned trust store, or not for this role."""

    code = "unknown_key"


class BadSignatureError(RefusedError):
    """The signature does not belong to these bytes and this key."""

    code = "bad_signature"


class WrongRunError(RefusedError):
    """The message belongs to another run."""

    code = "wrong_run"


class WrongAudienceError(RefusedError):
    """The message is addressed to another party, or answers another party's request."""

    code = "wrong_audience"


class ExpiredError(RefusedError):
    """The message is past its time, or from the future."""

    code = "expired"


class RollbackError(RefusedError):
    """An older release than one that was accepted already."""

    code = "rollback"


class EquivocationError(RefusedError):
    """One party signed two things that exclude each other: two histories of releases, two requests with one nonce."""

    code = "equivocation"


class DigestMismatchError(RefusedError):
    """The content is not the one that was signed."""

    code = "digest_mismatch"


class NonFiniteError(RefusedError):
    """A tensor holds NaN or infinity, or a negative Fisher entry or variance."""

    code = "non_finite"


class PolicyDeniedError(RefusedError):
    """The site's own policy does not allow it."""

    code = "policy_denied"


class StorageFailedError(RefusedError):
    """What was verified could not be stored durably."""

    code = "storage_failed"


def first_fault(error: "ValidationError") -> tuple[str, str]:
    """Where the first fault is that pydantic found, as names with dots between (empty: the whole), and what it is."""
    fault = error.errors(include_url=False, include_input=False)[0]
    text = fault["msg"].removeprefix("Value error, ")
    return ".".join(str(step) for step in fault["loc"]), f"{text[:1].lower()}{text[1:]}"


def fault_line(error: "ValidationError", *, inside: str = "") -> str:
    """``first_fault`` in one line; its place counts from ``inside``."""
    where, text = first_fault(error)
    return ": ".join(filter(None, (".".join(filter(None, (inside, where))), text)))
