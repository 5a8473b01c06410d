"""What a client pays for one session, as a machine without I/O: it says when tokens came, and gets words to send.

One row of words pays all hops of the session; each hop has an OPEN of its own, with its own price. A tick is paid when
its 32 tokens have come, never before, so that the client has nothing at risk. A hop that replaces a lost one computes
everything so far again and is paid for that as it opens.
"""

from .bodies import TICK_TOKENS, Open
from .offer import terms
from .payword import PayWords


class Payer:
    """seed: WORD_BYTES random bytes, secret. most_tokens: positions that the session may reach."""

    def __init__(self, seed: bytes, most_tokens: int) -> None:
        self.most_ticks = most_tokens // TICK_TOKENS
        self._most_tokens = most_tokens
        self.came = 0  # positions that the whole chain has computed, as its last hop showed
        self.told = 0  # ticks whose word has left
        self._told_at = 0  # positions that had come then
        self._words = PayWords(seed, self.most_ticks)

    @property
    def due(self) -> int:
        """Ticks that are owed for what came."""
        return min(self.came // TICK_TOKENS, self.most_ticks)

    def open(self, server: bytes, session: bytes, price: int) -> Open:
        """The body that reserves for one hop. price: credits for one tick; 0 in the free lane"""
        return terms(server, session, self._words.root, self._most_tokens, price)

    def arrived(self, positions: int) -> None:
        """The last hop's output shows that so many positions have been computed."""
        self.came = max(self.came, positions)

    def for_a_new_hop(self) -> tuple[int, bytes]:
        """Ticks and word for a hop that opens now: what came before is computed again, and paid again, there."""
        return self.due, self._words.word(self.due) if self.due else b""

    def tick(self) -> bytes:
        """The word that goes with the next positions; b"" when no tick is due that was not told."""
        if self.due <= self.told:
            return b""
        self.told, self._told_at = self.due, self.came
        return self._words.word(self.told)

    def last(self) -> bytes:
        """The word for all that came; b"" when it rode on positions that have been computed: it reached all hops."""
        if not self.due or (self.due == self.told and self.came > self._told_at):
            return b""
        return self._words.word(self.due)
