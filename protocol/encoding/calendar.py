"""Unix seconds: what the clock says now, and how people read them."""

import time
from datetime import UTC, datetime


def unix_seconds() -> int:
    """What this machine's clock says now."""
    return int(time.time())


def moment(seconds: int) -> str:
    """Unix seconds as a date and time in UTC; as the number where no calendar reaches that far."""
    return _in_calendar(seconds, "%Y-%m-%d %H:%M UTC")


def day(seconds: int) -> str:
    """Unix seconds as a date in UTC; as ``moment`` where no calendar reaches that far."""
    return _in_calendar(seconds, "%Y-%m-%d")


def _in_calendar(seconds: int, pattern: str) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):{pattern}}"
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s after 1970"
