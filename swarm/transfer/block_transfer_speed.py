"""How fast a donor gives: bytes over the time in which something was asked of it, the last seconds counting most."""

import math

MEMORY_S = 3.0  # what is older than this counts for little
_FEWEST_BYTES = 32 << 10  # say nothing about a speed yet


class Speed:
    def __init__(self) -> None:
        self._bytes, self._seconds = 0.0, 0.0
        self._all_bytes = 0
        self._at = 0.0

    def begin(self, now: float) -> None:
        """Something is asked of it again; the time before does not count."""
        self._at = now

    def add(self, count: int, now: float) -> None:
        elapsed_s = max(0.0, now - self._at)
        fading = math.exp(-elapsed_s / MEMORY_S)
        self._bytes, self._seconds = self._bytes * fading + count, self._seconds * fading + elapsed_s
        self._all_bytes += count
        self._at = now

    def seconds_for(self, count: int) -> float | None:
        """None while nothing is known."""
        if self._all_bytes < _FEWEST_BYTES or not self._seconds:
            return None
        return count * self._seconds / self._bytes
