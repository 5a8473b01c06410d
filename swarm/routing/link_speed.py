"""How fast this node has seen its link to be: what planning knows of the time that KV takes to come.

What comes may be slow because whoever makes it is, so faster stretches count for much and slower ones for little.
"""

import math
from collections.abc import Callable

import anyio

LEAST_S, LEAST_BYTES = 0.02, 64 << 10  # of a stretch that is looked at
FASTER, SLOWER = 0.5, 0.02  # weight of a stretch
HALF_LIFE_S = 3600.0  # of what nothing has confirmed since


class LinkSpeed:
    def __init__(self, clock: Callable[[], float] = anyio.current_time) -> None:
        self._clock = clock
        self._byte_s = 0.0
        self._at_s = 0.0

    @property
    def byte_s(self) -> float:
        """0 while nothing was seen, and when that was long ago."""
        known = self._byte_s * 0.5 ** ((self._clock() - self._at_s) / HALF_LIFE_S)
        return known if known > 1e3 else 0.0

    def flow(self) -> "Flow":
        """Of one stream, from its first message on."""
        return Flow(self, self._clock)

    def note(self, byte_s: float) -> None:
        before = self.byte_s
        weight = FASTER if byte_s > before else SLOWER
        self._byte_s = before + weight * (byte_s - before) if before else byte_s
        self._at_s = self._clock()


class Flow:
    def __init__(self, book: LinkSpeed, clock: Callable[[], float]) -> None:
        self._book = book
        self._clock = clock
        self._since_s = math.nan  # the end of a message, from which on bytes are counted
        self._bytes = 0

    def came(self, count: int) -> None:
        now = self._clock()
        self._bytes += count
        if math.isnan(self._since_s):
            self._since_s, self._bytes = now, 0
        elif now - self._since_s >= LEAST_S and self._bytes >= LEAST_BYTES:
            self._book.note(self._bytes / (now - self._since_s))
            self._since_s, self._bytes = now, 0
