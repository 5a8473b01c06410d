"""Which chunks of a prefix to ask a donor for, in which order and at which level: no I/O, time comes in.

From the back: the prompt is computed from the front meanwhile, so both meet, whichever is faster, and what is fetched
is what would take longest to compute. The level of each chunk is the best that still meets the deadline at the speed
the link has shown, as in CacheGen; the deadline is a little more than what the smallest level would take, so that a
client that allows losses gets its answer about as soon as they can make it, and no loss that saves nothing.
source: Liu et al., CacheGen, arXiv:2310.07240; Jin et al., Compute Or Load KV Cache? Why Not Both?, arXiv:2410.03065
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shoal.compression.kv_levels import KvLevel

from .fetch_past import shares_of

LEEWAY = 1.02  # of the time that the smallest level would take from the beginning
LEAST_WINDOW, MOST_WINDOW = 2, 16  # asks under way
AHEAD_OF_LINK = 1.5  # of what a round trip carries, so that the link never idles
NEWEST = 0.5  # weight of the newest arrival


@dataclass(frozen=True, slots=True)
class Ask:
    number: int
    level: KvLevel


@dataclass(slots=True)
class _Asked:
    level: KvLevel
    at_s: float


class ChunkFetch:
    """levels: that may be asked for, the best first. began_s: when the wait began; taking_in_s: what a chunk of each
    level costs here when it has come; chunk_s: from one chunk to the next, as it was the last time; dtype: of the
    caches.

    A chunk's size in memory follows from the first that comes.
    """

    def __init__(
        self,
        wanted: Iterable[int],
        levels: tuple[KvLevel, ...],
        round_trip_s: float,
        now: float,
        began_s: float | None = None,
        taking_in_s: Mapping[KvLevel, float] | None = None,
        chunk_s: float | None = None,
        dtype: str = "bfloat16",
    ) -> None:
        self._wanted = set(wanted)
        self._levels = levels
        self._taking_in_s = taking_in_s or {}
        self._raw_bytes = 0.0
        self._shares = shares_of(dtype)
        self.round_trip_s = round_trip_s
        self._past_chunk_s = chunk_s
        self._began_s = now if began_s is None else began_s
        self._last_s = now
        self._first_ask_s: float | None = None
        self._came_bytes = 0
        self._asked: dict[int, _Asked] = {}
        self.link_bytes_s: float | None = None

    @property
    def open(self) -> frozenset[int]:
        """Chunks that may still come."""
        return frozenset(self._wanted | self._asked.keys())

    @property
    def is_waiting(self) -> bool:
        """Whether something was asked for and has not come."""
        return bool(self._asked)

    @property
    def chunks_s(self) -> float | None:
        """How many a second come at the smallest level; None while nothing is known."""
        if self.link_bytes_s is None:
            return None
        return self.link_bytes_s / (self._shares[self._levels[-1]] * self._raw_bytes)

    def asks(self, frontier: int, now: float) -> list[Ask]:
        """frontier: the first chunk that is neither computed nor being computed"""
        self._wanted = {number for number in self._wanted if number >= frontier}
        asks = []
        while self._wanted and len(self._asked) < self._window():
            number = max(self._wanted)
            level = self._level(now)
            self._wanted.discard(number)
            self._asked[number] = _Asked(level, now)
            self._first_ask_s = now if self._first_ask_s is None else self._first_ask_s
            asks.append(Ask(number, level))
        return asks

    def arrived(self, number: int, size_bytes: int, now: float) -> KvLevel | None:
        """returns: the level that was asked for; None when it was not"""
        asked = self._asked.pop(number, None)
        if asked is None:
            return None
        idle_before = asked.at_s + self.round_trip_s > self._last_s
        took_s = max(1e-4, now - (asked.at_s + self.round_trip_s if idle_before else self._last_s))
        rate = size_bytes / took_s
        self.link_bytes_s = rate if self.link_bytes_s is None else (1 - NEWEST) * self.link_bytes_s + NEWEST * rate
        self._came_bytes += size_bytes
        if not self._raw_bytes:
            self._raw_bytes = size_bytes / self._shares[asked.level]
        self._shares[asked.level] = size_bytes / self._raw_bytes
        self._last_s = now
        return asked.level

    def gone(self, number: int) -> bool:
        """The donor has not got it (any more). returns: whether it was asked for"""
        return self._asked.pop(number, None) is not None

    def _level(self, now: float) -> KvLevel:
        """The best that meets the deadline; the smallest while nothing is known of the link."""
        if self.link_bytes_s is None:
            return self._levels[-1]
        # Chunks that lay in a buffer come all at once, and say nothing of the link; all of them together do.
        since_s = self._last_s - (self._first_ask_s or 0.0) - self.round_trip_s
        bytes_s = min(self.link_bytes_s, self._came_bytes / max(1e-3, since_s))
        under_way = sum(self._shares[asked.level] for asked in self._asked.values())

        def takes_s(level: KvLevel) -> float:
            waiting = (under_way + len(self._wanted) * self._shares[level]) * self._raw_bytes
            taking_in_s = len(self._wanted) * self._taking_in_s.get(level, 0.0)
            return now - self._began_s + waiting / bytes_s + taking_in_s

        deadline_s = LEEWAY * takes_s(self._levels[-1])
        return next(level for level in self._levels if takes_s(level) <= deadline_s)

    def _window(self) -> int:
        chunks_s = self.chunks_s or (1 / self._past_chunk_s if self._past_chunk_s else 0.0)
        carried = AHEAD_OF_LINK * chunks_s * self.round_trip_s
        return max(LEAST_WINDOW, min(MOST_WINDOW, 1 + int(carried)))
