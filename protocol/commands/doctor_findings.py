"""The findings of ``doctor``, one line for each subject."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from protocol.errors import LearngeneError, RunFailedError

Verdict = Literal["ok", "not enforced", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        subject: the subject of the check.
        verdict: ``wrong`` must be corrected; ``not enforced`` is something that the operating system does not enforce
            here.
        found: in words.
        advice: what to do; empty if all is well.
        stops: whether a node does not start with it.
    """

    subject: str
    verdict: Verdict
    found: str
    advice: str = ""
    stops: bool = False


def starts(findings: Iterable[Finding]) -> bool:
    """Whether a node would start."""
    return not any(finding.stops for finding in findings)


def tried(subject: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, "ok", look())
    except LearngeneError as error:
        return failure(subject, error)
    except OSError as error:
        return failure(subject, RunFailedError(f"{error.filename}: {error.strerror}"))


def failure(subject: str, error: LearngeneError) -> Finding:
    found, _, advice = str(error).partition("; ")
    return Finding(subject, "wrong", found, advice or "put that right, and look again", True)
