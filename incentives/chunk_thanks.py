"""What a chunk of a cached prefix is worth to whoever gave it, and what the giver checks before it settles; no I/O.

The hop that took chunks opens an account with the donor and hands out its last word at once: the chunks are there, and
have been found good. A chunk of 64 positions earns one tick, which is what computing 32 of them through these layers
costs: half of what the taker is paid for them, so that both are better off and taking never costs more than computing.
Where the taker's client paid and the taker can, these are credits; otherwise the tick is a favour that the taker owes
(`favours`). Either way it is a transfer: nothing is minted, and what is paid is burned in part like any payment.
"""

from collections import OrderedDict
from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.compression.kv_levels import CHUNK_TOKENS
from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import Refused
from shoal.swarm.identifiers import PeerId
from shoal.swarm.manifest import Manifest
from shoal.swarm.units import Span

from . import payword
from .bodies import MAX_ENTRY_BYTES, Open, Ticks, Word
from .entry import Entry
from .price import tick_price

LIFETIME_S = 600  # of what is set aside: the donor is told at once
MOST_TAKERS = 1024  # whose chunks a donor counts; of more the one that took longest ago is forgotten
METHOD = "ledger/chunks"


class Thanks(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Taker to donor. entry: the OPEN, encoded; word: pays `ticks` chunks of it"""

    entry: Annotated[bytes, Meta(max_length=MAX_ENTRY_BYTES)]
    ticks: Ticks
    word: Word


thanks = Canonical(Thanks, "thanks for chunks", MAX_ENTRY_BYTES + 64)


def is_for_chunks(terms: Open) -> bool:
    """Whether an OPEN is for chunks of a prefix, and not for work in a session: its ticks are chunks."""
    return terms.tick_tokens == CHUNK_TOKENS


def chunk_price(manifest: Manifest, span: Span) -> int:
    """Credits for one chunk of these units; 0 when none of them keeps anything. Embedding and head do not."""
    first, stop = max(span.start, 1), min(span.stop, manifest.layers + 1)
    return tick_price(manifest, Span(first, stop)) if first < stop else 0


def terms(donor: bytes, session: bytes, root: bytes, chunks: int, price: int) -> Open:
    """price: credits for one chunk; 0: as a favour. session: in which they were taken"""
    return Open(donor, session, root, price, CHUNK_TOKENS, chunks, LIFETIME_S, 1 if price else 0)


class GivenChunks:
    """How many chunks each taker got and has not given thanks for."""

    def __init__(self) -> None:
        self._given: OrderedDict[PeerId, int] = OrderedDict()

    def gave(self, taker: PeerId) -> None:
        self._given[taker] = self._given.pop(taker, 0) + 1
        if len(self._given) > MOST_TAKERS:
            self._given.popitem(last=False)

    def settled(self, taker: PeerId, entry: Entry, said: Thanks, me: bytes) -> None:
        """Count thanks as answered. raises: Refused when they are for nothing that was given here"""
        self.check(taker, entry, said, me)
        self._given[taker] -= said.ticks

    def check(self, taker: PeerId, entry: Entry, said: Thanks, me: bytes) -> None:
        """me: the own key. raises: Refused, as `settled`"""
        body = entry.body
        if not isinstance(body, Open) or body.server != me or not is_for_chunks(body):
            raise Refused("this is no account for chunks of this node")
        given = self._given.get(taker, 0)
        if not 0 < said.ticks <= min(given, body.most_ticks):
            raise Refused(f"thanks for {said.ticks} chunks; {given} that were given here are not settled")
        if not payword.pays(said.word, body.root, said.ticks, body.most_ticks):
            raise Refused("the word does not belong to the account")
