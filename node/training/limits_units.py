"""Quantities as people write them: `10 Mbit/s`, `500 kB/s`, `8GB`, `50%`, `22:00-07:00`."""

import re

from shoal.swarm.errors import UsageError

_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z/%]*)\s*")
_RATES = {"bit/s": 1, "kbit/s": 1e3, "mbit/s": 1e6, "gbit/s": 1e9, "b/s": 8, "kb/s": 8e3, "mb/s": 8e6, "gb/s": 8e9}
_SIZES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_SPAN = re.compile(r"\s*(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})\s*")
DAY_MINUTES = 24 * 60


def bits_per_second(text: str, what: str = "limits.upload") -> float:
    """raises: UsageError, for zero too; it begins with `what`"""
    match = _QUANTITY.fullmatch(text)
    factor = _RATES.get(match[2].lower().replace("bps", "bit/s")) if match else None
    if match is None or factor is None:
        raise UsageError(f"{what}: cannot read the rate {text!r}; write 10 Mbit/s or 500 kB/s")
    rate = float(match[1]) * factor
    if rate <= 0:
        raise UsageError(f"{what}: a rate of zero would never finish a round; leave it out for no limit")
    return rate


def memory_bytes(text: str, total: int) -> int:
    """total: what a percentage is taken of. raises: UsageError"""
    match = _QUANTITY.fullmatch(text)
    unit = match[2].lower() if match else ""
    if match is None or (unit != "%" and unit not in _SIZES):
        raise UsageError(f"limits.memory: cannot read the size {text!r}; write 8GB, 500MiB or 50%")
    number = float(match[1])
    size = int(number * total / 100) if unit == "%" else int(number * _SIZES[unit])
    if size < 1 or (unit == "%" and number > 100):
        raise UsageError(f"limits.memory: {text} is not a part of this machine's memory")
    return size


def minutes_of_day(text: str) -> tuple[int, int]:
    """`22:00-07:00` as [begin, end) in minutes since midnight; the end may lie on the next day. raises: UsageError"""
    match = _SPAN.fullmatch(text)
    times = [int(match[i]) * 60 + int(match[i + 1]) for i in (1, 3)] if match else []
    minutes = [int(match[i]) for i in (2, 4)] if match else []
    if not times or max(times) > DAY_MINUTES or max(minutes) > 59 or times[0] % DAY_MINUTES == times[1] % DAY_MINUTES:
        raise UsageError(f"limits.hours: cannot read {text!r}; write 22:00-07:00")
    return times[0], times[1]
