"""Before a node signs: is its own chain all that the others have of it? As a machine without I/O.

A store that was restored from a backup, or lost, ends before entries that this node has signed and shown. Signing the
next one again would be a fork, and the node would convict itself. So after every start it asks its witnesses and some
others for the rest of its own chain, takes back what is missing, and signs only then. Nobody is believed: what comes
has our own signature, or is nothing; a liar can only keep silent, and several are asked.
"""

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.swarm.errors import MalformedMessage
from shoal.swarm.identifiers import PeerId

from . import entry as entries
from .chain import Accepted, Forked, Refused
from .chain_book import ChainBook
from .gossip_messages import MAX_PAGE, EntriesWanted, Page
from .rendezvous import witnesses

if TYPE_CHECKING:
    from .bodies import ForkProof

ENOUGH = 3  # answers; more are waited for as long as they may come
OTHERS = 5  # asked beside the witnesses
AGAIN_S = 5.0  # until those that did not answer are asked again


@dataclass(frozen=True, slots=True)
class AskForOwn:
    """By member call; report the answer, or that there was none."""

    peer: PeerId
    question: EntriesWanted


class OwnHead:
    """may_sign: enough have answered, and none has more of our chain than the book.

    forked: the proof that this key has signed two branches; it may never sign again
    adopted: entries that came back
    """

    def __init__(self, author: bytes, book: ChainBook, generator: random.Random, needed: int = ENOUGH) -> None:
        self.may_sign = False
        self.forked: ForkProof | None = None
        self.adopted = 0
        self._author = author
        self._book = book
        self._random = generator
        self._needed = needed
        self._members: tuple[PeerId, ...] = ()
        self._asked: set[PeerId] = set()  # and neither answered nor failed yet
        self._failed: dict[PeerId, float] = {}  # when that was
        self._answered: set[PeerId] = set()
        self._without: set[PeerId] = set()  # a ledger: they cannot know, and are not waited for

    def listed(self, members: Collection[PeerId], now: float) -> Iterator[AskForOwn]:
        """Who lives now. Nobody beside us: there is nobody who could have more, and nobody to cheat."""
        me = entries.peer_of(self._author)
        self._members = tuple(sorted(set(members) - {me}))
        if not self._members:
            self.may_sign = self.forked is None
        yield from self.ticked(now)

    def ticked(self, now: float) -> Iterator[AskForOwn]:
        if self.may_sign or self.forked is not None:
            return
        self._decide()  # whoever was waited for may be gone
        if self.may_sign:
            return
        for peer in self._targets():
            rested = now - self._failed.get(peer, -AGAIN_S) >= AGAIN_S
            if peer not in self._answered and peer not in self._asked and rested:
                yield self._question(peer)

    def answered(self, peer: PeerId, answer: Page, now: float) -> Iterator[AskForOwn]:
        if peer not in self._asked:
            return
        self._asked.discard(peer)
        self._without.discard(peer)
        before = self._book.chain(self._author).length
        worth = self._adopt(answer, now)
        length = self._book.chain(self._author).length
        if length > before:
            self.adopted += length - before
            if answer.length > length:
                yield self._question(peer)  # the next page
                return
        if worth:
            self._answered.add(peer)  # also who says that it has more and does not show it
        else:
            self._failed[peer] = now
        self._decide()

    def unanswered(self, peer: PeerId, now: float, *, keeps_none: bool = False) -> None:
        """It is asked again in a while, or, when the directory says that it is gone, another is.

        keeps_none: it said that it has no ledger
        """
        self._asked.discard(peer)
        self._failed[peer] = now
        if keeps_none:
            self._without.add(peer)
        self._decide()

    def _decide(self) -> None:
        """Not before all that were asked have answered or failed: the one that knows more may be the slowest."""
        keeping = len(set(self._members) - self._without)
        enough = len(self._answered) >= max(1, min(self._needed, keeping))
        self.may_sign = self.forked is None and enough and not self._asked

    def _targets(self) -> Sequence[PeerId]:
        """Witnesses first: they keep what they sign."""
        appointed = witnesses(self._author, self._members)
        others = [peer for peer in self._members if peer not in appointed]
        return (*appointed, *self._random.sample(others, min(OTHERS, len(others))))

    def _question(self, peer: PeerId) -> AskForOwn:
        """With our last entry, which the other must have alike."""
        self._asked.add(peer)
        start = max(0, self._book.chain(self._author).length - 1)
        return AskForOwn(peer, EntriesWanted(self._author, start, start + MAX_PAGE))

    def _adopt(self, answer: Page, now: float) -> bool:
        """False when the answer is worth nothing."""
        try:
            several = [entries.decode(data) for data in answer.entries]
        except MalformedMessage:
            return False
        if any(entry.author != self._author for entry in several):
            return False
        for verdict in self._book.receive_all(several, int(now)) if several else ():
            match verdict:
                case Forked(_, proof):
                    self.forked = proof
                case Refused("known") | Accepted():
                    pass
                case Refused():
                    return False
        return True
