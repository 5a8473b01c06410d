"""What the first hop does with a prompt that another peer computes for the chain: skip, wait or compute.

Both work from the front, so that what the chain computes while the other is ahead is done twice. It waits as long as
the positions come sooner than it would compute them itself, and not much later than they were expected; then it goes on
by itself in small pieces, and skips again whatever has come meanwhile. So a peer that dies, hangs or is slow costs one
such wait.
"""

import math

from shoal.compression.kv_levels import CHUNK_TOKENS

from .prefix_race import SMALLEST_PIECE, Compute, Skip, Step, Wait

PATIENCE = 2.0  # of what was expected
SLACK_S = 0.25
UNKNOWN_S = 2.0  # waited for the first chunk, where nobody knows how long it takes
BURST = 2  # chunks that come together, as the other computes a few at once
SURE = 3  # chunks after which their own pace is believed
INSTANT_S = 1e-3  # too short to wait for
DOUBLE_S = 0.3  # after which pieces double


class PrefillRace:
    """positions: that the other peer computes. first_s, chunk_s, own_chunk_s: as in `messages.Prefill`
    audited: the chunk that is computed although it came, to compare
    """

    def __init__(
        self,
        positions: int,
        now: float,
        first_s: float = 0.0,
        chunk_s: float = 0.0,
        own_chunk_s: float = 0.0,
        audited: int | None = None,
    ) -> None:
        self.positions = positions
        first_s, self._chunk_s, self._own_chunk_s = map(_expected, (first_s, chunk_s, own_chunk_s))
        self._audit_from = audited * CHUNK_TOKENS if audited is not None else positions
        self._came = 0  # to all hops
        self._over = self._useless = False
        self._first_came, self._first_at_s = 0, 0.0
        self._last_at_s = 0.0
        self._due_s = now + (PATIENCE * first_s if first_s else UNKNOWN_S) + SLACK_S

    def came(self, positions: int, now: float) -> None:
        """All hops have so many."""
        if positions <= self._came or self._useless:
            return
        if not self._came:
            self._first_came, self._first_at_s = positions, now
        self._came, self._last_at_s = positions, now
        self._due_s = now + PATIENCE * BURST * self._interval_s + SLACK_S

    def end(self) -> None:
        """No more will come."""
        self._over = True

    def forget(self) -> None:
        """Nor is what has come of any use."""
        self._over = self._useless = True
        self._came = 0

    @property
    def _interval_s(self) -> float:
        """From one chunk to the next: as expected, until it has shown itself."""
        if not self._is_sure:
            return self._chunk_s
        return (self._last_at_s - self._first_at_s) * CHUNK_TOKENS / (self._came - self._first_came)

    @property
    def _is_sure(self) -> bool:
        return self._came - self._first_came >= SURE * CHUNK_TOKENS

    def next(self, position: int, count: int, now: float) -> Step:
        """count: positions that are at hand, from `position` on"""
        if position >= self.positions:
            return Compute(count)
        audit_to = min(self._audit_from + CHUNK_TOKENS, self.positions)
        if self._audit_from <= position < audit_to and self._came >= audit_to:
            return Compute(min(count, audit_to - position))
        if self._came > position:
            ahead = self._audit_from if position < self._audit_from else self._came
            return Skip(min(self._came, ahead))
        if self._over:
            return Compute(count)
        left = CHUNK_TOKENS - position % CHUNK_TOKENS
        if self._is_slow:
            return Compute(min(count, left))
        if now < self._due_s - INSTANT_S:
            return Wait(self._due_s)
        piece = SMALLEST_PIECE << min(4, int(max(0.0, now - self._due_s) / DOUBLE_S))
        return Compute(min(count, piece if piece < left else left + (piece - left) // CHUNK_TOKENS * CHUNK_TOKENS))

    @property
    def _is_slow(self) -> bool:
        """Slower than the chain itself: what it computes from here on, it has sooner."""
        return self._is_sure and 0 < self._own_chunk_s < self._interval_s


def _expected(seconds: float) -> float:
    """What somebody else says: 0, nobody knows, unless it is a time."""
    return seconds if 0 <= seconds < math.inf else 0.0
