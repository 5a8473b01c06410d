"""How fetches went so far, to know before the first answer whether one is worth a look, or even a wait."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from shoal.compression.kv_levels import KvLevel

NEWEST = 0.5  # weight of the newest
FORGOTTEN_S = 600.0  # links change: then a fetch is tried again
LEAST_GAIN = 0.2  # of the time that computing takes: what promises less is not worth the small pieces beside a fetch
_SHARES: dict[KvLevel, float] = {"lossless": 0.68, "near-lossless": 0.16, "default": 0.09, "small": 0.045}
_EXACT_SHARES = {"float32": 1.67, "float16": 0.85}


def shares_of(dtype: str) -> dict[KvLevel, float]:
    """What a chunk of each level takes of bfloat16, as measured on a real model; of those that come the sizes are seen.

    dtype: of the arithmetic
    """
    return {**_SHARES, "lossless": _EXACT_SHARES.get(dtype, _SHARES["lossless"])}


@dataclass(frozen=True, slots=True)
class Arrival:
    level: KvLevel
    at_s: float


@dataclass(slots=True)
class FetchPast:
    """first_s: from the wish to the first chunk; chunk_s: from one chunk to the next, by its level; taking_in_s: from
    the bytes of a chunk to a cache; noted_s: when this was seen the last time"""

    first_s: float | None = None
    chunk_s: dict[KvLevel, float] = field(default_factory=dict)
    taking_in_s: dict[KvLevel, float] = field(default_factory=dict)
    noted_s: float = 0.0

    def note(self, began_s: float, arrivals: Sequence[Arrival], missed: Arrival | None = None) -> None:
        """One fetch. began_s: when somebody wished for it; missed: what had been asked for and had not come when nobody
        waited any longer, so that a link on which nothing comes in time is known for it"""
        if missed is not None and len(arrivals) < 2:
            late = Arrival(
                missed.level, 2 * missed.at_s - began_s
            )  # had the first come just then, the next at best then
            arrivals = [*arrivals, missed] if arrivals else [missed, late]
        if not arrivals:
            return
        self.noted_s = arrivals[-1].at_s
        first_s = arrivals[0].at_s - began_s
        self.first_s = first_s if self.first_s is None else (1 - NEWEST) * self.first_s + NEWEST * first_s
        took: dict[KvLevel, list[float]] = {}
        for before, arrival in pairwise(arrivals):
            took.setdefault(arrival.level, []).append(arrival.at_s - before.at_s)
        for level, seconds in took.items():
            _blend(self.chunk_s, level, sum(seconds) / len(seconds))

    def note_taken_in(self, level: KvLevel, took_s: float) -> None:
        _blend(self.taking_in_s, level, took_s)

    def predicted_s(self, chunks: int, level: KvLevel, now: float, dtype: str = "bfloat16") -> float | None:
        """Until so many are taken in; None while nothing is known."""
        chunk_s = self.next_chunk_s(level, now, dtype)
        if self.first_s is None or chunk_s is None:
            return None
        return self.first_s + chunks * (chunk_s + self.taking_in_s.get(level, 0.0))

    def is_worth_a_look(
        self, chunks: int, level: KvLevel, computing_s: float | None, now: float, dtype: str = "bfloat16"
    ) -> bool:
        """Whether computing from the front and fetching from the back gain enough before they meet."""
        chunk_s = self.next_chunk_s(level, now, dtype)
        if self.first_s is None or chunk_s is None or computing_s is None:
            return True
        own_s = computing_s / chunks
        fetched = min(chunks, (computing_s - self.first_s) / (chunk_s + own_s))
        return fetched * (own_s - self.taking_in_s.get(level, 0.0)) >= LEAST_GAIN * computing_s

    def next_chunk_s(self, level: KvLevel, now: float, dtype: str = "bfloat16") -> float | None:
        """From one chunk to the next: by the size of another level where this one never came; None while unknown."""
        if not self.chunk_s or now - self.noted_s > FORGOTTEN_S:
            return None
        known = self.chunk_s.get(level)
        if known is not None:
            return known
        shares = shares_of(dtype)
        return min(seconds * shares[level] / shares[other] for other, seconds in self.chunk_s.items())


def _blend(known: dict[KvLevel, float], level: KvLevel, newest: float) -> None:
    known[level] = (1 - NEWEST) * known.get(level, newest) + NEWEST * newest
