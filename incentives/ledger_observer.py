"""An observer that believes nobody and takes no part: it checks every message and signature, and finds forks by itself.

It keeps no chains and asks for none. Two entries of one author for one place are a proof whatever stands before them,
so what it hears on the topic is enough.
"""

from collections import OrderedDict
from dataclasses import dataclass

from shoal.swarm.errors import MalformedMessage
from shoal.swarm.identifiers import PeerId, SwarmId
from shoal.swarm.topic_envelope import open_sealed

from . import entry as entries
from .bodies import ForkProof
from .chain import forger, fork_proof
from .entry import Entry
from .gossip_messages import news
from .ledger_topic_name import topic_of
from .quotas import Allowance, Quotas

_MOST_PLACES = 100_000
_MESSAGES = Allowance(burst=40, per_s=2.5)  # of one peer


@dataclass(frozen=True, slots=True)
class Signed:
    """A sound entry, heard for the first time."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class ForkSeen:
    """told: somebody's proof; otherwise we hold both entries ourselves"""

    author: bytes
    proof: ForkProof
    told: bool


@dataclass(frozen=True, slots=True)
class Unsound:
    """What no honest peer publishes."""

    origin: PeerId
    reason: str


Observation = Signed | ForkSeen | Unsound


class LedgerObserver:
    def __init__(self, swarm: SwarmId) -> None:
        self.topic = topic_of(swarm)
        self.forgers: dict[bytes, ForkProof] = {}
        self._places: OrderedDict[tuple[bytes, int], Entry] = OrderedDict()
        self._quotas: Quotas[PeerId] = Quotas(_MESSAGES)

    def heard(self, origin: PeerId, data: bytes, now: float) -> list[Observation]:
        """origin: by the transport's word. now: seconds of any clock that does not go back"""
        if not self._quotas.take(origin, now):
            return []
        try:
            _, body = open_sealed(self.topic, origin, data)
            several = [entries.decode(each) for each in news.decode(body).entries]
        except MalformedMessage as error:
            return [Unsound(origin, str(error))]
        return [seen for entry in several for seen in self._entry(origin, entry)]

    def _entry(self, origin: PeerId, entry: Entry) -> list[Observation]:
        place = (entry.author, entry.seq)
        known = self._places.get(place)
        if known is not None and entries.hash_of(known) == entries.hash_of(entry):
            return []
        if not entries.is_signed(entry):
            return [Unsound(origin, "an entry that its author did not sign")]
        if known is not None:
            return self._fork(entry.author, fork_proof(known, entry), told=False)
        self._places[place] = entry
        if len(self._places) > _MOST_PLACES:
            self._places.popitem(last=False)
        seen: list[Observation] = [Signed(entry)]
        if isinstance(entry.body, ForkProof):
            author = forger(entry.body)
            if author is None:
                return [*seen, Unsound(origin, "a proof that proves nothing")]
            seen += self._fork(author, entry.body, told=True)
        return seen

    def _fork(self, author: bytes, proof: ForkProof, *, told: bool) -> list[Observation]:
        if author in self.forgers:
            return []
        self.forgers[author] = proof
        return [ForkSeen(author, proof, told)]
