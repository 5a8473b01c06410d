"""Filling the gaps in chains: what is missing, who is said to have it, and what to ask whom next.

One page at a time from each peer, an entry that we hold among those asked for: so a fork before the gap shows itself by
a second entry for that place. Nobody is believed, and who brings nothing is not asked for that chain again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from shoal.swarm.identifiers import PeerId

from .bodies import Count
from .chain_book import ChainBook
from .gossip_events import Ask
from .gossip_messages import MAX_PAGE, EntriesWanted
from .quotas import Allowance, Quotas

MOST_WANTED = 512  # chains
MOST_SOURCES = 4  # of one chain


@dataclass(slots=True)
class _Gap:
    stop: Count  # somebody is said to have entries up to here, exclusive
    sources: list[PeerId] = field(default_factory=list)
    asked: PeerId | None = None


class CatchUp:
    def __init__(self, book: ChainBook, pages: Allowance) -> None:
        self._book = book
        self._gaps: dict[bytes, _Gap] = {}
        self._busy: set[PeerId] = set()
        self._pages: Quotas[PeerId] = Quotas(pages)

    def __len__(self) -> int:
        return len(self._gaps)

    def want(self, author: bytes, stop: Count, source: PeerId) -> None:
        """The source is said to have entries [.., stop) of the author, and they are not those that we hold."""
        gap = self._gaps.get(author)
        if gap is None:
            if len(self._gaps) >= MOST_WANTED:
                return  # the next comparison with another peer finds it again
            gap = self._gaps[author] = _Gap(stop)
        gap.stop = max(gap.stop, stop)
        if source not in gap.sources and len(gap.sources) < MOST_SOURCES:
            gap.sources.append(source)

    def forget(self, author: bytes) -> None:
        """Nothing of this chain counts any more."""
        self._gaps.pop(author, None)

    def came(self, peer: PeerId, question: EntriesWanted, *, new: bool) -> None:
        """A page was taken. new: it brought what we had not"""
        self._busy.discard(peer)
        gap = self._gaps.get(question.author)
        if gap is None:
            return
        if gap.asked == peer:
            gap.asked = None
        if self._book.chain(question.author).length >= gap.stop:
            del self._gaps[question.author]
        elif not new:
            self._drop(question.author, gap, peer)

    def failed(self, peer: PeerId, question: EntriesWanted) -> None:
        self._busy.discard(peer)
        gap = self._gaps.get(question.author)
        if gap is not None:
            if gap.asked == peer:
                gap.asked = None
            self._drop(question.author, gap, peer)

    def _drop(self, author: bytes, gap: _Gap, peer: PeerId) -> None:
        if peer in gap.sources:
            gap.sources.remove(peer)
        if not gap.sources:
            del self._gaps[author]

    def questions(self, now: float) -> Iterator[Ask]:
        """What to ask now."""
        for author, gap in tuple(self._gaps.items()):
            if gap.asked is not None:
                continue
            for source in gap.sources:
                if source in self._busy or not self._pages.take(source, now):
                    continue
                gap.asked = source
                self._busy.add(source)
                held = self._book.chain(author).length
                start = max(0, min(held, gap.stop) - 1)
                yield Ask(source, EntriesWanted(author, start, min(gap.stop, start + MAX_PAGE)))
                break
