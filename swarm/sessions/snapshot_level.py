"""At which level each chunk of a snapshot goes out: the best that the link to its keeper carries beside the session.

Only of sessions that allow losses (`fast`); `exact` has one level. No I/O: what is sent and what has arrived comes in
with the time. A level's size is seen when a chunk is coded so; until then it follows from what real models gave.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal.compression.kv_levels import QUALITIES, KvLevel
from shoal.swarm.prefixes.fetch_past import shares_of

PART_OF_LINK = 0.25  # that snapshots may take; the rest is the session's and others'
FILL_S = 3.0  # in which a chunk fills, before that has been seen
NEWEST = 0.5  # weight of what was seen last
LONG = 4.0  # times the shortest: what the way itself takes is a small part of it


def best_level(
    levels: tuple[KvLevel, ...], sizes: Mapping[KvLevel, float], waiting: int, fill_s: float, link_bytes_s: float | None
) -> KvLevel:
    """The first level at which what waits is through when one more chunk has filled; else the last.

    levels: the best first. sizes: bytes of a chunk. link_bytes_s: None while nothing is known of the link
    """
    if link_bytes_s is None:
        return levels[-1]
    room_bytes = PART_OF_LINK * link_bytes_s * fill_s
    return next((level for level in levels if max(1, waiting) * sizes[level] <= room_bytes), levels[-1])


def allowed_levels(lowest: KvLevel) -> tuple[KvLevel, ...]:
    """The best first. Without loss if that is asked for; where losses are allowed, none is made for nothing."""
    return QUALITIES[: QUALITIES.index(lowest) + 1]


@dataclass(slots=True)
class SnapshotPace:
    """Of one cache stream whose receiver says what has come. dtype: of the caches"""

    levels: tuple[KvLevel, ...]
    dtype: str = "bfloat16"
    link_bytes_s: float | None = None
    _sizes: dict[KvLevel, float] = field(default_factory=dict)
    _seen: set[KvLevel] = field(default_factory=set)
    _fill_s: float = FILL_S
    _filled_at_s: float | None = None
    _under_way: deque[tuple[float, int]] = field(default_factory=deque)  # when sent, bytes
    _came_at_s: float | None = None
    _shortest_s: float = math.inf  # that a lone chunk took

    def level(self, waiting: int) -> KvLevel:
        """For the next of so many chunks that wait."""
        if len(self.levels) == 1 or not self._sizes:
            return self.levels[-1]
        waiting += len(self._under_way)
        return best_level(self.levels, self._sizes, waiting, self._fill_s, self.link_bytes_s)

    def filled(self, now: float) -> None:
        """A chunk has filled while the session generates."""
        if self._filled_at_s is not None:
            self._fill_s += NEWEST * (now - self._filled_at_s - self._fill_s)
        self._filled_at_s = now

    def sent(self, level: KvLevel, size_bytes: int, now: float) -> None:
        shares = shares_of(self.dtype)
        for each in self.levels:
            if each not in self._seen:
                self._sizes[each] = size_bytes * shares[each] / shares[level]
        self._seen.add(level)
        self._sizes[level] = size_bytes
        self._under_way.append((now, size_bytes))

    def came(self, now: float) -> None:
        """The receiver has the oldest chunk that is under way.

        Where it followed the one before without a pause, the time between them is the link's for its bytes. Alone it
        took a way there and a way back besides: if that may be most of the time, it shows no more than that the link
        is at least as fast.
        """
        if not self._under_way:
            return
        sent_s, size_bytes = self._under_way.popleft()
        followed = self._came_at_s is not None and sent_s < self._came_at_s
        since_s = self._came_at_s if followed and self._came_at_s is not None else sent_s
        took_s = max(1e-6, now - since_s)
        speed = size_bytes / took_s
        if self.link_bytes_s is None:
            self.link_bytes_s = speed
        elif followed or took_s > LONG * self._shortest_s:
            self.link_bytes_s = self.link_bytes_s ** (1 - NEWEST) * speed**NEWEST  # it may be off by powers of ten
        else:
            self.link_bytes_s = max(self.link_bytes_s, speed)
        if not followed:
            self._shortest_s = min(self._shortest_s, took_s)
        self._came_at_s = now
