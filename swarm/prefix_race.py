"""What the first hop of a chain does next with a prompt of which parts are held or on their way: compute, skip or wait.

A chunk can be skipped when every hop of the chain has it. Computing starts at once and from the front, so that a fetch
that fails, or is slow, costs nothing; chunks come from the back, so that nothing is both computed and fetched. It waits
only where what is missing comes sooner than it could be computed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from shoal.compression.kv_levels import CHUNK_TOKENS

from .prefill_pace import PrefillPace

LARGEST_PIECE = 4  # chunks computed at once while others may come
SLACK_S = 0.02  # of a wait, for what an estimate cannot know


@dataclass(frozen=True, slots=True)
class Compute:
    count: int  # positions


@dataclass(frozen=True, slots=True)
class Skip:
    """The positions before `stop` are taken as they are held."""

    stop: int


@dataclass(frozen=True, slots=True)
class Wait:
    """For news, at most until then; asked again it computes."""

    until_s: float


Step = Compute | Skip | Wait


class PrefixRace:
    """chunks: of the prompt that need not be computed. audited: one that is computed although it is held"""

    def __init__(self, chunks: int, pace: PrefillPace, now: float, audited: int | None = None) -> None:
        self.chunks = chunks
        self._pace = pace
        self._audited = audited
        self._held: frozenset[int] = frozenset()  # by all hops
        self._expected: frozenset[int] = frozenset()
        self._searching = True
        self._first_s: float | None = None  # when the first came over the network
        self._came = 0
        self._began_s = now
        self._waited = False

    def everybody_holds(self, numbers: Iterable[int], now: float, *, fetched: bool) -> None:
        """fetched: news of an arrival, not of what lay there already"""
        held = frozenset(numbers)
        new = len(held - self._held)
        if fetched and new:
            self._first_s = self._first_s or now
            self._came += new
            self._waited = False
        self._held = held

    def expect(self, numbers: Iterable[int], *, searching: bool) -> None:
        """Chunks that may still come; searching: nobody knows yet."""
        self._expected = frozenset(numbers)
        self._searching = searching

    def next(self, position: int, count: int, now: float) -> Step:
        """count: positions that are at hand, from `position` on"""
        number, odd = divmod(position, CHUNK_TOKENS)
        if odd or number >= self.chunks:
            return Compute(count)
        if number in self._held and number != self._audited:
            return Skip(self._run_end(number) * CHUNK_TOKENS)
        if number == self._audited:
            return Compute(min(count, CHUNK_TOKENS))
        ahead = self._ahead(number)
        if not self._searching and not ahead & self._expected:
            to_the_end = number + len(ahead) == self.chunks
            return Compute(count if to_the_end else min(count, len(ahead) * CHUNK_TOKENS))
        piece_s = self._pace.seconds(position, CHUNK_TOKENS)
        rate = self._rate(now)
        if piece_s is None or not rate:
            return Compute(min(count, CHUNK_TOKENS))
        missing_s = len(ahead) / rate
        if ahead <= self._expected and missing_s <= piece_s and not self._waited:
            self._waited = True
            return Wait(now + min(2 * missing_s, piece_s) + SLACK_S)
        met = len(ahead) / (1 + rate * piece_s)  # chunks that will be computed before both meet
        return Compute(min(count, max(1, min(LARGEST_PIECE, int(met))) * CHUNK_TOKENS))

    def _run_end(self, number: int) -> int:
        while number in self._held and number != self._audited:
            number += 1
        return number

    def _ahead(self, number: int) -> frozenset[int]:
        """The chunks from here on that not everybody holds, up to the first that is held."""
        stop = number
        while stop < self.chunks and stop not in self._held:
            stop += 1
        return frozenset(range(number, stop))

    def _rate(self, now: float) -> float:
        """Chunks a second that came over the network; a silence counts against it."""
        if self._first_s is None:
            return 0.0
        if self._came < 2 or now <= self._first_s:
            return self._came / max(1e-3, now - self._began_s)
        return (self._came - 1) / (now - self._first_s)
