"""What the first hop of a chain does next with a prompt of which parts are held or on their way: compute, skip or wait.

A chunk can be skipped when every hop of the chain has it. Computing starts at once and from the front, so that a fetch
that fails, or is slow, costs nothing; chunks come from the back, so that nothing is both computed and fetched. It waits
only where what is missing comes sooner than it could be computed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from shoal.compression.kv_levels import CHUNK_TOKENS

from .prefill_pace import PrefillPace

LARGEST_PIECE, SMALLEST_PIECE = 256, 16  # positions computed at once while others may come; while all is open
LATE_ENOUGH = 3  # chunks that have come before their own pace is believed
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


def frontier_of(position: int) -> int:
    """The first chunk that is worth a fetch where so much is computed: of the one that has begun, the rest may be."""
    number, inside = divmod(position, CHUNK_TOKENS)
    return number if inside <= CHUNK_TOKENS // 2 else number + 1


class PrefixRace:
    """chunks: of the prompt that need not be computed. audited: one that is computed although it is held;
    alone: there is no other hop"""

    def __init__(
        self, chunks: int, pace: PrefillPace, now: float, audited: int | None = None, *, alone: bool = True
    ) -> None:
        self.chunks = chunks
        self._pace = pace
        self._audited = audited
        self._alone = alone
        self._held: frozenset[int] = frozenset()  # by all hops
        self._expected: frozenset[int] = frozenset()
        self._searching = True
        self._link_rate: float | None = None  # chunks a second that this hop's own link brings
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

    def expect(self, numbers: Iterable[int], rate: float | None = None, *, searching: bool) -> None:
        """Chunks that may still come, and how many a second; searching: nobody knows yet."""
        self._expected = frozenset(numbers)
        self._searching = searching
        self._link_rate = rate

    def next(self, position: int, count: int, now: float) -> Step:
        """count: positions that are at hand, from `position` on"""
        number, inside = divmod(position, CHUNK_TOKENS)
        if number >= self.chunks:
            return Compute(count)
        left = CHUNK_TOKENS - inside
        if number == self._audited:
            return Compute(min(count, left))
        if number in self._held:
            return Skip(self._run_end(number) * CHUNK_TOKENS)
        ahead = self._ahead(number)
        to_go = len(ahead) * CHUNK_TOKENS - inside
        if not self._searching and not ahead & self._expected:
            return Compute(count if number + len(ahead) == self.chunks else min(count, to_go))
        piece_s = self._pace.seconds(position, SMALLEST_PIECE)
        rate = self._rate(now)
        if piece_s is None or not rate:
            return Compute(min(count, SMALLEST_PIECE, left))
        missing_s = len(ahead) / rate
        if ahead <= self._expected and missing_s <= piece_s and not self._waited:
            self._waited = True
            return Wait(now + min(2 * missing_s, piece_s) + SLACK_S)
        met = int(to_go / (1 + rate * piece_s * CHUNK_TOKENS / SMALLEST_PIECE))  # positions computed when both meet
        piece = min(met // 2, LARGEST_PIECE)  # half of it, for the rate may be better than it seems
        if piece < left:
            return Compute(min(count, SMALLEST_PIECE, left))
        return Compute(min(count, left + (piece - left) // CHUNK_TOKENS * CHUNK_TOKENS))

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
        """Chunks a second that all hops come to hold: what they have shown, and at first what the own link brings."""
        if self._first_s is None:
            return 0.0
        if self._came < LATE_ENOUGH or now <= self._first_s:
            return self._link_rate or self._came / max(1e-3, now - self._began_s)
        shown = (self._came - 1) / (now - self._first_s)
        return max(shown, self._link_rate or 0.0) if self._alone else shown
