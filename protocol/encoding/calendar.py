"""Unix seconds: the clock's time, and dates for people."""

import time
from datetime import UTC, datetime


def unix_seconds() -> int:
    """The present time of this machine's clock."""
    return int(time.time())


def moment(seconds: int) -> str:
    """Unix seconds as a date and time in UTC; as the number if it is beyond the calendar."""
    return _in_calendar(seconds, "%Y-%m-%d %H:%M UTC")


def day(seconds: int) -> str:
    """Unix seconds as a date in UTC; as ``moment`` if it is beyond the calendar."""
    return _in_calendar(seconds, "%Y-%m-%d")


def _in_calendar(seconds: int, pattern: str) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):{pattern}}"
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s after 1970"
