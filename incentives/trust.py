"""How far a peer trusts others: a random walk with restart from itself over who has served whom.

An edge leads from a client to a server and weighs the work that the client says it got. A walk begins at the
peer whose view it is, follows edges by their weight, and stops at each peer that it comes to with the probability
RESTART (and wherever no edge leads on); a peer's standing is the share of walks that stop at it.

Whatever a peer that got some edges by work does afterwards, with however many peers of its own, walks that enter its
group can do no more than all stop there. As at least RESTART of them stop at the first peer already, lies gain it at
most 1 / RESTART, that is 1.18. A longer walk would see farther and be worth more to a liar. Max-flow has no such bound:
every peer that it invents has as much flow as the first.

source: Page, Brin, Motwani and Winograd, The PageRank Citation Ranking, 1999 (personalised);
Nasrulin, Ishmaev and Pouwelse, MeritRank: Sybil Tolerant Reputation for Merit-based Tokenomics, arXiv:2207.09950
"""
# ruff: noqa: N803, N806  names end in their shapes

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from shoal.swarm.identifiers import PeerId

Peer = TypeVar("Peer", bound=Hashable)

RESTART = 0.85
_STEPS = 7  # what is still on its way then, less than one walk in 10^5, stops where it is
FAILURE_WEIGHT = 20  # sound audits that one false one outweighs
BENEFIT_OF_DOUBT = 4  # sound audits that everybody is taken to have had

Receipts = Mapping[PeerId, Mapping[PeerId, int]]  # client -> server -> positions, or what was paid for them


@dataclass(frozen=True, slots=True)
class AuditRecord:
    sound: int = 0
    false: int = 0

    @property
    def soundness(self) -> float:
        """In (0, 1]: what an edge to such a peer is still worth."""
        sound = self.sound + BENEFIT_OF_DOUBT
        return sound / (sound + FAILURE_WEIGHT * self.false)


Shares = NDArray[np.float64]


def standings(
    me: Peer,
    receipts: Mapping[Peer, Mapping[Peer, float]],
    audits: Mapping[Peer, AuditRecord] | None = None,
    forked: Collection[Peer] = (),
) -> dict[Peer, float]:
    """Standing of every peer that walks from `me` get to; the values sum to 1, or there are none.

    forked: peers that signed two histories; nobody's walk goes through them
    """
    return Walks(receipts, audits, forked).standings(me)


class Walks(Generic[Peer]):
    """Walks over the same receipts from anybody: P peers and E edges, laid out once."""

    def __init__(
        self,
        receipts: Mapping[Peer, Mapping[Peer, float]],
        audits: Mapping[Peer, AuditRecord] | None = None,
        forked: Collection[Peer] = (),
    ) -> None:
        sound = {peer: record.soundness for peer, record in (audits or {}).items()}
        closed, numbers = frozenset(forked), dict[Peer, int]()
        tails, heads, weights = list[int](), list[int](), list[float]()
        for client, servers in receipts.items():
            tail = numbers.setdefault(client, len(numbers))
            for server, paid in servers.items():
                if paid > 0 and server != client and server not in closed:
                    tails.append(tail)
                    heads.append(numbers.setdefault(server, len(numbers)))
                    weights.append(paid * sound.get(server, 1.0))
        self._numbers, self._peers = numbers, list(numbers)
        self._tails_E = np.array(tails, np.intp)
        self._heads_E = np.array(heads, np.intp)
        self._weights_E = np.array(weights, np.float64)

    def standings(self, me: Peer) -> dict[Peer, float]:
        """As the function of that name."""
        home, size = self._numbers.get(me), len(self._peers)
        if home is None:
            return {}
        weights_E = np.where(self._heads_E == home, 0.0, self._weights_E)  # no walk comes back
        totals_P = np.bincount(self._tails_E, weights_E, size)
        leads_P = totals_P > 0
        parts_E = weights_E / np.where(leads_P, totals_P, 1.0)[self._tails_E]

        def onward(leaving_P: Shares) -> Shares:
            return np.bincount(self._heads_E, leaving_P[self._tails_E] * parts_E, size).astype(np.float64, copy=False)

        here_P, found_P = np.zeros(size), np.zeros(size)
        here_P[home] = 1.0
        arriving_P = onward(here_P)
        for _ in range(_STEPS - 1):
            found_P += arriving_P * np.where(leads_P, RESTART, 1.0)
            arriving_P = onward(arriving_P * (1 - RESTART))
        found_P += arriving_P
        return {self._peers[number]: float(found_P[number]) for number in np.flatnonzero(found_P)}
