"""A token bucket: how much may be sent now under a limit of bytes a second, shared by all that send."""

from collections.abc import Awaitable, Callable

import anyio

from shoal.swarm.errors import UsageError

from .limits_units import bits_per_second

BURST_S = 0.5  # how much of the rate may pass at once after a pause
SMALL_BYTES = 2048  # a vote or a question passes at once; it is booked, and what is large waits for it


class TokenBucket:
    """No clock of its own. rate: bytes a second"""

    def __init__(self, rate: float, now: float) -> None:
        if rate <= 0:
            raise UsageError("an upload rate of zero would never finish a round; leave limits.upload out for no limit")
        self.rate = rate
        self._level = rate * BURST_S  # bytes that may pass at once; below zero: that much is still owed
        self._at = now

    def take(self, size: int, now: float) -> float:
        """Book `size` bytes. returns: seconds to wait before they may pass; whoever asks later waits behind them"""
        if now > self._at:
            self._level = min(self.rate * BURST_S, self._level + (now - self._at) * self.rate)
            self._at = now
        self._level -= size
        return max(0.0, -self._level / self.rate)


class Throttle:
    """One bucket for a whole process. rate_bit_s: None for no limit"""

    def __init__(
        self,
        rate_bit_s: float | None,
        clock: Callable[[], float] = anyio.current_time,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._bucket = None if rate_bit_s is None else TokenBucket(rate_bit_s / 8, clock())

    @classmethod
    def of(cls, upload: str) -> "Throttle":
        """upload: as in `limits.upload`, "" for no limit. raises: UsageError"""
        return cls(bits_per_second(upload) if upload else None)

    async def pass_through(self, size: int) -> None:
        """Returns when `size` bytes may be sent."""
        if self._bucket is not None:
            wait_s = self._bucket.take(size, self._clock())
            if wait_s > 0 and size > SMALL_BYTES:
                await self._sleep(wait_s)
