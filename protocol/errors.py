"""Errors of the project. Every one carries a line that tells its reader what to do next."""

import signal
from typing import TYPE_CHECKING, ClassVar

from protocol.visible_text import visible_line, visible_name

if TYPE_CHECKING:
    # For types only: listing commands loads no pydantic.
    from pydantic import ValidationError


class LearngeneError(Exception):
    """Base of every error that this project raises on purpose."""


class InputError(LearngeneError):
    """Something the user gave is wrong: a path, an option, a setting, a folder. Commands exit with code 2."""


class RunFailedError(LearngeneError):
    """A run, a node or a job ended without its result. Commands exit with code 1."""


class StoppedError(LearngeneError):
    """A command was ended from outside, by Ctrl-C or another signal, and left everything in order.

    Attributes:
        number: of the signal.
    """

    def __init__(self, text: str, number: int = signal.SIGINT) -> None:
        super().__init__(text)
        self.number = number

    @property
    def exit_code(self) -> int:
        """The exit code of a command that a signal ended, as shells expect it."""
        return 128 + self.number


#: What a run says that Flower has ended: Flower tells its app no reason, its own log does.
FLOWER_ENDED = "Flower has ended the run"


class RefusedError(LearngeneError):
    """A message was refused. ``code`` is the coarse word that may cross the wire; the text stays in the local log.

    The text says what is wrong and, after a semicolon, what to do next; if it does not, ``advice`` does.
    """

    code = "refused"
    advice: ClassVar[str] = "ask the party that sent it"

    def __init__(self, text: str) -> None:
        super().__init__(text if "; " in text else f"{text}; {self.advice}")


class TooLargeError(RefusedError):
    """More bytes, tensors or characters than the protocol allows."""

    code = "too_large"
    advice = "refuse it and ask its sender for one within the limits"


class MalformedError(RefusedError):
    """The bytes are not what the format says, or not in their canonical form."""

    code = "malformed"
    advice = "fetch it again, and if it stays so ask its sender for one made anew"


class UnknownKeyError(RefusedError):
    """The key that signed is not in the pinned trust store, or not for this role."""

    code = "unknown_key"
    advice = "compare fingerprints with its owner, then pin the key: trust add"


class RevokedKeyError(RefusedError):
    """The key that signed was trusted earlier but no longer is."""

    code = "revoked_key"
    advice = "believe nothing signed with it and ask its owner for what the new key signed"


class BadSignatureError(RefusedError):
    """The signature does not belong to these bytes and this key."""

    code = "bad_signature"
    advice = "fetch it again, and if it stays so somebody altered it: tell its sender"


class WrongRunError(RefusedError):
    """The message belongs to another run."""

    code = "wrong_run"
    advice = "give the run's own file or message, or join that run"


class WrongAudienceError(RefusedError):
    """The message is addressed to another party, or answers another party's request."""

    code = "wrong_audience"
    advice = "send a request of your own and use its answer"


class ExpiredError(RefusedError):
    """The message is past its time, or from the future."""

    code = "expired"
    advice = "ask for a new one, and compare the clocks"


class RollbackError(RefusedError):
    """The release is older than an accepted one."""

    code = "rollback"
    advice = "keep the newer one and ask the collective why an older one came"


class EquivocationError(RefusedError):
    """One party signed two things that exclude each other: two histories of releases, two requests with one nonce."""

    code = "equivocation"
    advice = "keep both and ask the party that signed them"


class DigestMismatchError(RefusedError):
    """The content is not the one that was signed."""

    code = "digest_mismatch"
    advice = "fetch it again"


class NonFiniteError(RefusedError):
    """A tensor holds NaN or infinity, or a negative Fisher entry or variance."""

    code = "non_finite"
    advice = "ask the collective to train and publish anew"


class PolicyDeniedError(RefusedError):
    """The site's own policy does not allow it."""

    code = "policy_denied"
    advice = "change the content, or the site's policy where it may be changed"


class StorageFailedError(RefusedError):
    """Verified data could not be stored durably."""

    code = "storage_failed"
    advice = "check the disk, then try again"


_LONGEST_FAULT = 400


def first_fault(error: "ValidationError") -> tuple[str, str]:
    """The place of the first fault that pydantic found, as names with dots between (empty: the whole), and its text."""
    fault = error.errors(include_url=False, include_input=False)[0]
    said = "no such name is known here" if fault["type"] == "extra_forbidden" else fault["msg"]
    text = visible_line(said.removeprefix("Value error, "), length=_LONGEST_FAULT)
    # A field's name is ours; a table's key comes from the file's author.
    return ".".join(visible_name(str(step), length=64) for step in fault["loc"]), f"{text[:1].lower()}{text[1:]}"


def fault_line(error: "ValidationError", *, inside: str = "") -> str:
    """``first_fault`` in one line; its place counts from ``inside``."""
    where, text = first_fault(error)
    return ": ".join(filter(None, (".".join(filter(None, (inside, where))), text)))
