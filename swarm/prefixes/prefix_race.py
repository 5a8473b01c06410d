"""What the first hop of a chain does next with a prompt of which parts are held or on their way: compute, skip or wait.

A chunk can be skipped when every hop of the chain has it. Computing starts at once and from the front, so that a fetch
that fails, or is slow, costs nothing; chunks come from the back, so that nothing is both computed and fetched. It waits
only where what is missing comes much sooner than it could be computed: then computing would slow the fetch down, on a
machine that has no core to spare, for nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from shoal.compression.kv_levels import CHUNK_TOKENS

from .prefill_pace import PrefillPace

LARGEST_PIECE, SMALLEST_PIECE = 256, 16  # positions computed at once while others may come
BRIEF_S = 0.12  # a piece that takes no longer is not made smaller than a chunk: small ones cost several times as much
LATE_ENOUGH = 3  # chunks that have come before their own pace is believed
UNSURE_S = 0.3  # without a chunk, after which pieces double
WORTH_A_WAIT = 0.3  # of what computing would take: what comes so much sooner is not slowed down by computing
WORTH_WAITING_FOR_ALL = 0.5  # the same from the start, for all of it: both ends together gain little there
PATIENCE = 1.5  # of what the last fetches took
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
    promise_s: in which all was there the last time; alone: there is no other hop"""

    def __init__(
        self,
        chunks: int,
        pace: PrefillPace,
        now: float,
        audited: int | None = None,
        promise_s: float | None = None,
        *,
        alone: bool = True,
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
        self._last_s = now
        self._began_s = now
        self._waited = False
        computing_s = pace.seconds(0, chunks * CHUNK_TOKENS)
        waits = promise_s is not None and computing_s is not None and promise_s <= WORTH_WAITING_FOR_ALL * computing_s
        self._patient_until_s = now + PATIENCE * promise_s if waits and promise_s is not None else now

    def everybody_holds(self, numbers: Iterable[int], now: float, *, fetched: bool) -> None:
        """fetched: news of an arrival, not of what lay there already"""
        held = frozenset(numbers)
        new = len(held - self._held)
        if fetched and new:
            self._first_s = self._first_s or now
            self._came += new
            self._last_s = now
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
        patient_until_s = self._patient_until_s
        if self._came:  # what is missing is waited for no longer than it takes to compute: it may be lost
            patient_until_s = min(patient_until_s, self._last_s + (self._pace.seconds(position, to_go) or 0.0))
        if now < patient_until_s:
            return Wait(patient_until_s)
        least = self._least_piece(position)
        piece_s = self._pace.seconds(position, least)
        rate = self._rate(now)
        if piece_s is None or not rate:
            return Compute(min(count, self._unsure_piece(least, now, left)))
        missing_s = len(ahead) / rate
        computing_s = self._pace.seconds(position, to_go) or 0.0
        if ahead <= self._expected and missing_s <= max(piece_s, WORTH_A_WAIT * computing_s) and not self._waited:
            self._waited = True
            return Wait(now + 2 * missing_s + SLACK_S)
        met = int(to_go / (1 + rate * piece_s * CHUNK_TOKENS / least))  # positions computed when both meet
        piece = min(met // 2, LARGEST_PIECE)  # half of it, for the rate may be better than it seems
        if piece < left:
            return Compute(min(count, least, left))
        return Compute(min(count, left + (piece - left) // CHUNK_TOKENS * CHUNK_TOKENS))

    def _least_piece(self, position: int) -> int:
        """As many positions as take BRIEF_S; the smallest piece while nothing is known."""
        smallest_s = self._pace.seconds(position, SMALLEST_PIECE)
        if not smallest_s:
            return SMALLEST_PIECE
        piece = CHUNK_TOKENS  # halves of it, so that no small rest is left
        while piece > SMALLEST_PIECE and piece // SMALLEST_PIECE * smallest_s > BRIEF_S:
            piece //= 2
        return piece

    def _unsure_piece(self, least: int, now: float, left: int) -> int:
        """Small at first; the longer nothing comes, the less likely is it to come in the next moment."""
        piece = min(LARGEST_PIECE, least << min(4, int((now - self._began_s) / UNSURE_S)))
        return min(piece, left) if piece < CHUNK_TOKENS else left + piece - CHUNK_TOKENS

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
