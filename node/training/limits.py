"""When a volunteer's machine may train: the hours of the day, only while it is idle, and not while it is paused.

Decisions are pure; the clock and the load of the machine are given. `limits_watch.py` looks at the real ones.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

import msgspec

from shoal.swarm.errors import UsageError

from .limits_units import DAY_MINUTES, bits_per_second, memory_bytes, minutes_of_day

IDLE_AFTER_S = 60.0  # others must have left the machine alone for this long
BUSY_SHARE = 0.25  # of all cores, used by other programs: more is busy


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The [limits] of a config: this machine's own business, no part of what peers agree on."""

    upload: str = ""  # "10 Mbit/s"; empty: no limit
    memory: str = ""  # "8GB" or "50%"; empty: no limit
    hours: tuple[str, ...] = ()  # ("22:00-07:00",) by the local clock; empty: always
    idle_only: bool = False  # only while nobody else uses this machine
    threads: int = 0  # compute threads; 0: torch's choice

    def check(self) -> None:
        """raises: UsageError that names the key"""
        if self.upload:
            bits_per_second(self.upload)
        if self.memory:
            memory_bytes(self.memory, 1 << 40)
        for span in self.hours:
            minutes_of_day(span)
        if self.threads < 0:
            raise UsageError(f"limits.threads is {self.threads}, not a number of threads")

    @property
    def upload_bit_s(self) -> float | None:
        return bits_per_second(self.upload) if self.upload else None


def open_now(hours: tuple[str, ...], now: datetime) -> bool:
    if not hours:
        return True
    minute = now.hour * 60 + now.minute
    return any(_within(minute, *minutes_of_day(span)) for span in hours)


def _within(minute: int, begin: int, end: int) -> bool:
    if begin < end:
        return begin <= minute < end
    return minute >= begin or minute < end


def opens_at(hours: tuple[str, ...], now: datetime) -> datetime:
    """The next time at which training is allowed; now, when it is allowed now."""
    if open_now(hours, now):
        return now
    minute = now.hour * 60 + now.minute
    wait = min((minutes_of_day(span)[0] - minute) % DAY_MINUTES for span in hours)
    return now.replace(second=0, microsecond=0) + timedelta(minutes=wait)


@dataclass(slots=True)
class IdleJudge:
    """Others' use of the machine over time. `observe` each few seconds; the first look is taken as quiet."""

    quiet_since_s: float | None = field(default=None)
    busy_share: float = 0.0

    def observe(self, others_share: float, now_s: float) -> None:
        """others_share: of all cores, by programs that are not ours"""
        self.busy_share = others_share
        if others_share > BUSY_SHARE:
            self.quiet_since_s = None
        elif self.quiet_since_s is None:
            self.quiet_since_s = now_s

    def idle(self, now_s: float) -> bool:
        return self.quiet_since_s is not None and now_s - self.quiet_since_s >= IDLE_AFTER_S


def reason_to_wait(settings: LimitSettings, paused: bool, now: datetime, idle: bool) -> str:
    """Why this machine may not train now, in words; "" when it may."""
    if paused:
        return "paused; `shoal train --continue` goes on"
    if not open_now(settings.hours, now):
        return f"outside of the hours {', '.join(settings.hours)}; on at {opens_at(settings.hours, now):%H:%M}"
    if settings.idle_only and not idle:
        return "somebody uses this machine; on when it is idle"
    return ""
