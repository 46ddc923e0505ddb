"""Moments and spans as people write them."""

import re
from datetime import UTC, datetime, timedelta

from vococache.errors import InputError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")
_TIME = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?")


def seconds(text: str | float, what: str) -> float:
    """A span such as "90", "60s", "10m", "24h" or "7d" in seconds. Raises `InputError`, which names `what`."""
    found = _SPAN.fullmatch(str(text).strip())
    if found is None or not float(found[1]):
        raise InputError(f"{what} {text!r}: expected a span such as 60s, 10m or 24h")
    return float(found[1]) * UNITS[found[2] or "s"]


def moment(text: str, near: float) -> float:
    """A moment in seconds since the epoch: "17:05", "17:05:30", "2026-11-26T17:05", also with a zone; else local time.

    A time without a day is the last one that is not later than a minute after `near`. Raises `InputError`.
    """
    if (time := _TIME.fullmatch(text)) is not None:
        hour, minute, second = int(time[1]), int(time[2]), float(time[3] or 0)
        if hour < 24 and minute < 60 and second < 60:
            day = datetime.fromtimestamp(near).replace(hour=hour, minute=minute, second=0, microsecond=0)
            found = day + timedelta(seconds=second)
            return (found if found.timestamp() <= near + 60 else found - timedelta(days=1)).timestamp()
    else:
        try:
            return datetime.fromisoformat(text).timestamp()
        except ValueError:
            pass
    raise InputError(f"{text!r}: expected a time such as 17:05, 17:05:30 or 2026-11-26T17:05")


def is_moment(text: str) -> bool:
    """Is it meant as a moment of the day, not as a number of seconds?"""
    return ":" in text


def shown(moment: float) -> str:
    """A moment in local time, with its zone."""
    return datetime.fromtimestamp(moment).astimezone().isoformat(timespec="milliseconds")


def hour_of(moment: float) -> int:
    """Which hour since the epoch."""
    return int(moment // 3600)


def name_of(moment: float) -> str:
    """The hour in UTC, which no change of clocks repeats: 2026-11-26T17."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H")


def place_in_hour(moment: float) -> str:
    """Minutes and seconds, as they stand behind an hour's name: 05.30."""
    return datetime.fromtimestamp(moment, UTC).strftime("%M.%S")
