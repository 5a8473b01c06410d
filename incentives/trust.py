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

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

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


_UNTOLD = AuditRecord()


def standings(
    me: Peer,
    receipts: Mapping[Peer, Mapping[Peer, int]],
    audits: Mapping[Peer, AuditRecord] | None = None,
    forked: Collection[Peer] = (),
) -> dict[Peer, float]:
    """Standing of every peer that walks from `me` get to; the values sum to 1, or there are none.

    forked: peers that signed two histories; nobody's walk goes through them
    """
    edges = _Edges(receipts, audits or {}, frozenset(forked) | {me})
    arriving = edges.onward(me)
    found: dict[Peer, float] = {}
    for step in range(_STEPS):
        going: dict[Peer, float] = {}
        for peer, share in arriving.items():
            onward = edges.onward(peer) if step < _STEPS - 1 else {}
            stays = RESTART if onward else 1.0
            found[peer] = found.get(peer, 0.0) + share * stays
            for other, part in onward.items():
                going[other] = going.get(other, 0.0) + share * (1 - stays) * part
        arriving = going
    return found


class _Edges(Generic[Peer]):
    def __init__(
        self,
        receipts: Mapping[Peer, Mapping[Peer, int]],
        audits: Mapping[Peer, AuditRecord],
        closed: frozenset[Peer],
    ) -> None:
        self._receipts, self._audits, self._closed = receipts, audits, closed
        self._known: dict[Peer, dict[Peer, float]] = {}

    def onward(self, peer: Peer) -> dict[Peer, float]:
        """Where a walk goes from here, and with which probability; nowhere when there is no edge."""
        if peer not in self._known:
            weights = {
                other: paid * self._audits.get(other, _UNTOLD).soundness
                for other, paid in self._receipts.get(peer, {}).items()
                if paid > 0 and other != peer and other not in self._closed
            }
            total = sum(weights.values())
            self._known[peer] = {other: weight / total for other, weight in weights.items()}
        return self._known[peer]
