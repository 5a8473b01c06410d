"""PayWord: a row of hashes that pays in equal steps, one SHA-256 each and no signature.

The payer draws w_n and computes w_(k-1) = H(w_k) down to w_0, the root, which stands in a signed OPEN. Handing out w_k
pays k ticks; nobody else can find it: words have 128 bits, and what a server would have to invert is the last word
that it was given, in a row whose root the client has signed for that server. Collisions are of no use to anybody.

source: Rivest, Shamir, PayWord and MicroMint, 1996
"""

from hashlib import sha256

from .bodies import WORD_BYTES

_HEAD = b"shoal/1/payword\0"
_SPACING = 64  # words that are kept: one in so many, the rest is computed again


def step_down(word: bytes, steps: int = 1) -> bytes:
    """The word `steps` ticks before."""
    for _ in range(steps):
        word = sha256(_HEAD + word).digest()[:WORD_BYTES]
    return word


def pays(word: bytes, known: bytes, ticks: int, limit: int) -> bool:
    """Whether `word` lies `ticks` steps above `known`. Costs at most `limit` hashes."""
    return len(word) == WORD_BYTES and 0 <= ticks <= limit and step_down(word, ticks) == known


class PayWords:
    """The payer's side. seed: WORD_BYTES random bytes, secret until the last tick is paid."""

    def __init__(self, seed: bytes, length: int) -> None:
        if len(seed) != WORD_BYTES:
            raise ValueError(f"a seed has {WORD_BYTES} bytes")
        self.length = length
        self._kept = {length: seed}  # index -> word
        word = seed
        for index in range(length - 1, -1, -1):
            word = step_down(word)
            if index % _SPACING == 0:
                self._kept[index] = word

    @property
    def root(self) -> bytes:
        return self.word(0)

    def word(self, ticks: int) -> bytes:
        """What pays `ticks` ticks, 0 <= ticks <= length."""
        above = min(self.length, -(-ticks // _SPACING) * _SPACING)
        return step_down(self._kept[above], above - ticks)
