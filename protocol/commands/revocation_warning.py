"""The warning about a learngene that should not be used any more."""

from protocol.output import warn
from protocol.trust.trust_store import RevocationStatus


def warn_revoked(status: RevocationStatus, what: str, *, form: str, release: str) -> None:
    """Warn on standard error, in one line, that something should not be used any more.

    Args:
        status: the reason.
        what: what should not be used: ``this learngene``.
        form, release: of its release: form and digest.
    """
    why = {
        "withdrawn": "was withdrawn by the collective",
        "compromised": "was signed with a key that is revoked as compromised, so that a thief may have made it",
    }[status]
    warn(f"{what} {why} ({form}, release {release[:16]}); request a new one")
