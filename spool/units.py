"""units - read and write durations, memory sizes and moments.

Durations are seconds, memory is megabytes (2**20 bytes), moments are seconds since the epoch (UTC).
Never  looks at the clock, except `now_stamp` and a moment relative to now.
Fails  ValueError, with what is allowed.
"""

from __future__ import annotations

import re
import time
from functools import lru_cache

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_MEGABYTES = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}
_DURATION = r"(\d+(?:\.\d+)?)([smhdw])"
_CLOCK = r"(?:(\d{1,9})-)?(\d{1,9}):(\d{1,2})(?::(\d{1,2}))?"
_MEMORY = r"(\d+(?:\.\d+)?)\s*([KMGTkmgt]?)(?:[iI]?[bB])?"
_MOMENT = r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(\.\d+)?)?)?Z?"
LONGEST = 10 * 365 * 86400
DURATION_FORM = "a duration such as 90, 90s, 10m, 1h30m, 2d or 1:30:00"
MEMORY_FORM = "a memory size such as 512M, 8G or 1.5T"
MOMENT_FORM = "a moment such as now+10m, 2026-11-22, 2026-11-22T20:30 (UTC) or -2h"


@lru_cache(maxsize=1024, typed=True)
def duration(text: str | int | float) -> float:
    """Seconds in `text`; a bare number is seconds. Raises ValueError."""
    seconds = text if isinstance(text, (int, float)) else _duration(text.strip().lower())
    if seconds is None or isinstance(text, bool) or not 0 <= seconds <= LONGEST:
        raise ValueError(f"expected {DURATION_FORM}, at most 10 years, got {shown(text)}")
    return float(seconds)


def shown(value: object) -> str:
    """A wrong value as a message shows it: cut short, since it may be of any size."""
    try:
        whole = repr(value)
    except ValueError:  # a number of more digits than Python will print
        return "a number of thousands of digits"
    return whole if len(whole) <= 80 else f"{whole[:77]}..."


def _duration(text: str) -> float | None:
    if re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text):
        return float(text)
    if clock := re.fullmatch(_CLOCK, text):
        days, first, second, third = (int(part or 0) for part in clock.groups())
        if clock[4] is None and not clock[1]:
            return first * 60.0 + second
        return days * 86400.0 + first * 3600 + second * 60 + third
    parts = re.findall(_DURATION, text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def print_duration(seconds: float) -> str:
    """The shortest exact form down to seconds: 5400 is 1h30m, 0 is 0s."""
    left = round(seconds)
    parts = []
    for unit in ("d", "h", "m", "s"):
        count, left = divmod(left, _SECONDS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


@lru_cache(maxsize=1024)
def memory(text: str | int) -> int:
    """Megabytes in `text`, rounded up; a bare number is megabytes. Raises ValueError."""
    plain = text.strip() if isinstance(text, str) else str(max(-1, min(text, 2**60)))
    found = re.fullmatch(_MEMORY, plain)
    megabytes = float(found[1]) * _MEGABYTES[found[2].upper() or "M"] if found else -1.0
    if not 0 <= megabytes <= 2**40:
        raise ValueError(f"expected {MEMORY_FORM}, got {shown(text)}")
    return int(-(-megabytes // 1))


def print_memory(megabytes: int) -> str:
    """8192 is 8G, 1536 is 1536M."""
    for unit in ("T", "G"):
        if megabytes and megabytes % int(_MEGABYTES[unit]) == 0:
            return f"{megabytes // int(_MEGABYTES[unit])}{unit}"
    return f"{megabytes}M"


def moment(text: str, now: float) -> float:
    """The moment `text` names, seconds since the epoch; relative forms count from `now`."""
    try:
        return _moment(text.strip(), now)
    except ValueError:
        raise ValueError(f"expected {MOMENT_FORM}, got {shown(text)}") from None


def _moment(text: str, now: float) -> float:
    if text == "now":
        return now
    for sign, prefixes in ((1, ("now+", "+")), (-1, ("now-", "-"))):
        for prefix in prefixes:
            if text.startswith(prefix):
                return now + sign * duration(text[len(prefix) :])
    if found := re.fullmatch(_MOMENT, text):
        return _civil(found)
    return now - duration(text)


def _civil(found: re.Match[str]) -> float:
    from calendar import monthrange, timegm  # here, because a lone submission must start fast

    year, month, day, hour, minute, second = (int(part or 0) for part in found.groups()[:6])
    fits = year >= 1970 and 1 <= month <= 12 and hour < 24 and minute < 60 and second < 61
    if not fits or not 1 <= day <= monthrange(year, month)[1]:
        raise ValueError("no such date")
    return timegm((year, month, day, hour, minute, second)) + float(found[7] or 0)


@lru_cache(maxsize=64)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def stamp(seconds: float) -> str:
    """A moment as it stands in files: 2026-11-22T20:30:05.123Z."""
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


def now_stamp() -> str:
    """This moment, as `stamp` writes it."""
    return stamp(time.time())


def read_stamp(text: str) -> float:
    """What `stamp` wrote, as seconds since the epoch. Raises ValueError."""
    try:
        if found := re.fullmatch(_MOMENT, text):
            return _civil(found)
    except ValueError:
        pass
    raise ValueError(f"expected a moment such as 2026-11-22T20:30:05Z (UTC), got {shown(text)}")


def print_age(seconds: float) -> str:
    """An age for a person, one or two units: 42s, 12m, 3h20m, 5d."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.0f}s"
    step = 60 if seconds < 86400 else 3600
    return print_duration(seconds // step * step)


def count(number: int, noun: str) -> str:
    """1 task, 2,000 tasks."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
