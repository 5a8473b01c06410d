"""The simulator's book of chains: the real rules, no database."""

from collections.abc import Sequence
from functools import lru_cache

from shoal.swarm.identity import Identity

from . import entry as entries
from .bodies import AnyBody, Rotate
from .chain import Accepted, Chain, Forked, Refused, judge
from .entry import Entry

# A verdict depends on its arguments alone, and a thousand simulated peers ask the same.
_judge = lru_cache(maxsize=1 << 15)(judge)


class SimulatedBook:
    """`chain_book.ChainBook`"""

    def __init__(self) -> None:
        self.chains: dict[bytes, Chain] = {}
        self._entries: dict[bytes, list[Entry]] = {}
        self._successors: dict[bytes, bytes] = {}  # hash of a ROTATE -> its author

    def chain(self, author: bytes) -> Chain:
        return self.chains.get(author) or Chain(author)

    def find(self, author: bytes, seq: int) -> Entry | None:
        held = self._entries.get(author, [])
        return held[seq] if 0 <= seq < len(held) else None

    def of(self, author: bytes, start: int = 0, stop: int = 2**32) -> list[Entry]:
        return self._entries.get(author, [])[start:stop]

    def receive_all(self, several: Sequence[Entry], now: int) -> list[Accepted | Refused | Forked]:
        return [self._receive(entry, now) for entry in several]

    def write(self, author: Identity, body: AnyBody, now: int) -> Entry:
        """The next entry of the own chain."""
        chain = self.chain(author.public_key)
        entry = entries.write(author, chain.length, chain.head, max(now, chain.time), body)
        self._receive(entry, now)
        return entry

    def copy(self) -> "SimulatedBook":
        """As a backup."""
        other = SimulatedBook()
        other.chains = dict(self.chains)
        other._entries = {author: list(held) for author, held in self._entries.items()}
        other._successors = dict(self._successors)
        return other

    def _receive(self, entry: Entry, now: int) -> Accepted | Refused | Forked:
        predecessor = self.chains.get(self._successors.get(entry.prev, b""))
        known = self.find(entry.author, entry.seq)
        verdict = _judge(entry, self.chain(entry.author), known, predecessor, now)
        if isinstance(verdict, Accepted):
            self.chains[entry.author] = verdict.chain
            self._entries.setdefault(entry.author, []).append(entry)
            if isinstance(entry.body, Rotate):
                self._successors[verdict.chain.head] = entry.author
        return verdict
