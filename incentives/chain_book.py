"""What the protocols around the ledger ask of whoever keeps the chains: `store.Store`, or the simulator's book."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Protocol

from .bodies import ForkProof
from .chain import Accepted, Chain, Forked, Refused
from .entry import Entry
from .gossip_messages import BUCKETS, DIGEST_BYTES


class ChainBook(Protocol):
    @property
    def chains(self) -> Mapping[bytes, Chain]:
        """By author; `chain` says the last word on one, these suffice for a survey."""

    def chain(self, author: bytes) -> Chain: ...

    def find(self, author: bytes, seq: int) -> Entry | None: ...

    def of(self, author: bytes, start: int = 0, stop: int = 2**32) -> list[Entry]: ...

    def receive_all(self, several: Sequence[Entry], now: int) -> list[Accepted | Refused | Forked]: ...


Convicted = Mapping[bytes, ForkProof]  # who has forked; known before any FORKPROOF stands in a chain


def bucket_of(author: bytes) -> int:
    return author[0] * BUCKETS >> 8


def digests(book: ChainBook, convicted: Convicted) -> tuple[bytes, ...]:
    """One for each bucket of authors; equal at two peers that know the same chains and the same forks."""
    sums = [0] * BUCKETS
    for author in book.chains.keys() | convicted.keys():
        if author in convicted:
            content = b"forked"  # which branch somebody happens to hold does not matter any more
        else:
            chain = book.chains[author]
            content = chain.length.to_bytes(4, "big") + chain.head
        sums[bucket_of(author)] ^= int.from_bytes(sha256(author + content).digest()[:DIGEST_BYTES], "big")
    return tuple(each.to_bytes(DIGEST_BYTES, "big") for each in sums)
