"""What one hop is paid in one session, as a machine without I/O.

The bound: never more than `tick_tokens` computed positions that no word has paid. What would go beyond is refused
before it is computed.
"""

from dataclasses import dataclass

from . import payword
from .bodies import Close, Open

AHEAD = 4  # ticks: a client may hear of a token before every hop of a chain under repair has computed it


@dataclass(frozen=True, slots=True)
class Stop:
    """The session ends here; `reason` is for the client."""

    reason: str


class Till:
    """opened: hash of the OPEN. unpaid_tokens: what may be computed before it is paid; None: no bound (free lane)."""

    def __init__(self, opened: bytes, terms: Open, unpaid_tokens: int | None) -> None:
        self.opened = opened
        self.terms = terms
        self.ticks = 0
        self.word = terms.root
        self.computed = 0
        self.given = 0  # of those, positions that somebody else has computed and was paid for
        self._unpaid_tokens = unpaid_tokens

    @property
    def unpaid(self) -> int:
        """Positions that were computed and not paid; negative when a replay has been paid in advance."""
        return self.computed - self.ticks * self.terms.tick_tokens

    def begin(self, ticks: int, word: bytes) -> Stop | None:
        """The client's payment for what is going to be computed again here."""
        if not ticks:
            return None
        if ticks > self.terms.most_ticks or not payword.pays(word, self.word, ticks, self.terms.most_ticks):
            return Stop("the word for the replay does not belong to the OPEN")
        self.ticks, self.word = ticks, word
        return None

    def admit(self, count: int) -> Stop | None:
        """Before `count` further positions are computed."""
        if self._unpaid_tokens is None:
            return None
        if self.unpaid + count > self._unpaid_tokens:
            return Stop(f"{self.unpaid} positions are not paid; no {count} more before they are")
        return None

    def take(self, word: bytes) -> Stop | None:
        """A word came. One that is known already is nobody's fault: positions are replayed after a repair."""
        steps = max(0, self.computed // self.terms.tick_tokens - self.ticks) + AHEAD
        steps = min(steps, self.terms.most_ticks - self.ticks)
        below = word
        for step in range(steps + 1):
            if below == self.word:
                self.ticks, self.word = self.ticks + step, word
                return None
            below = payword.step_down(below)
        if self._is_old(word):
            return None
        return Stop("a word that pays nothing of this session")

    def _is_old(self, word: bytes) -> bool:
        known = self.word
        for _ in range(self.ticks):
            known = payword.step_down(known)
            if known == word:
                return True
        return False

    def compute(self, count: int) -> None:
        """`count` further positions have been computed."""
        self.computed += count

    @property
    def owed(self) -> tuple[int, bytes]:
        """Ticks that are paid for what is computed here, and their word."""
        given = -(-self.given // self.terms.tick_tokens)
        ticks = max(0, self.ticks - given)
        return ticks, payword.step_down(self.word, self.ticks - ticks)

    def give(self, count: int) -> None:
        """`count` further positions came from somebody else: the words count them, the CLOSE does not."""
        self.computed += count
        self.given += count

    def close(self) -> Close | None:
        """What settles this session, at most what was computed here; None when there is nothing to settle."""
        ticks = min(self.ticks, (self.computed - self.given) // self.terms.tick_tokens)
        if not ticks and not self.terms.price:
            return None
        return Close(self.opened, ticks, payword.step_down(self.word, self.ticks - ticks))
