"""An author's way to a witnessed head, as a machine: whom to ask, what to show, when there are enough signatures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.swarm.identifiers import PeerId

from . import entry as entries
from .chain_book import ChainBook
from .entry_tree import root_of
from .gossip_messages import MAX_PAGE, MAX_PAGE_BYTES, Cosigned, CosignWanted
from .rendezvous import quorum
from .witnessed import Head, WitnessedHead, is_cosigned

if TYPE_CHECKING:
    from .bodies import Witness

_MOST_ASKED = 64  # times that one witness is asked; each page brings it further


@dataclass(frozen=True, slots=True)
class AskWitness:
    """By member call; report the answer, or that there was none."""

    peer: PeerId
    question: CosignWanted


class WitnessQuest:
    """For the first `count` entries of the own chain, as they stand in the book.

    result: set when enough have signed, and grows until all have answered: a server that does not know one of the
        members takes others for the author's witnesses, and wants more signatures than the least
    failed: so many have refused that it cannot be
    raises: ValueError for a chain without entries
    """

    def __init__(
        self, author: bytes, count: int, book: ChainBook, appointed: Sequence[PeerId], needed: int | None = None
    ) -> None:
        own = book.of(author, 0, count)
        hashes = [entries.hash_of(entry) for entry in own]
        self.head = Head(author, count, hashes[-1] if hashes else b"", root_of(hashes))
        self.result: WitnessedHead | None = None
        self.refusals: dict[PeerId, str] = {}
        self._own = own
        self._needed = quorum(len(appointed)) if needed is None else min(needed, len(appointed))
        self._appointed = tuple(appointed)
        self._signatures: dict[PeerId, Witness] = {}
        self._asked: dict[PeerId, int] = {}

    @property
    def failed(self) -> bool:
        return len(self._appointed) - len(self.refusals) < self._needed

    @property
    def complete(self) -> bool:
        """Nobody is left to wait for."""
        return self.failed or len(self._signatures) + len(self.refusals) >= len(self._appointed)

    def begin(self) -> Iterator[AskWitness]:
        """Everybody at once, with the last entry: most have heard the others."""
        if not self._appointed:
            self.result = WitnessedHead(self.head, ())
        for peer in self._appointed:
            yield self._question(peer, self.head.count - 1)

    def answered(self, peer: PeerId, answer: Cosigned) -> Iterator[AskWitness]:
        if answer.witness is None:
            if self._asked.get(peer, 0) >= _MOST_ASKED or answer.length >= self.head.count:
                self.refusals[peer] = "it wants to see what it has"
            else:
                yield self._question(peer, answer.length)
            return
        if entries.peer_of(answer.witness.key) != peer or not is_cosigned(self.head, answer.witness):
            self.refusals[peer] = "it signed something else"
            return
        self._signatures[peer] = answer.witness
        if len(self._signatures) >= self._needed:
            self.result = WitnessedHead(self.head, tuple(self._signatures.values()))

    def unanswered(self, peer: PeerId, reason: str) -> None:
        if peer not in self._signatures:
            self.refusals[peer] = reason

    def _question(self, peer: PeerId, start: int) -> AskWitness:
        self._asked[peer] = self._asked.get(peer, 0) + 1
        shown, size = [], 0
        for entry in self._own[start : start + MAX_PAGE]:
            data = entries.encode(entry)
            size += len(data) + 8
            if size > MAX_PAGE_BYTES:
                break
            shown.append(data)
        return AskWitness(peer, CosignWanted(self.head.author, self.head.count, tuple(shown)))
