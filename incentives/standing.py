"""Trust as routing reads it: a cost in milliseconds, `swarm.standing.KnownStanding`."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from shoal.swarm.identifiers import PeerId

from .trust import AuditRecord, Receipts, standings

STRANGER_MS = 20.0  # that a peer of whom nobody knows anything costs more than one that is well known
CAUGHT_MS = 400.0  # of one whose every audit was false
FORKED_MS = 10_000.0  # of one that signed two histories: only when nobody else is there


@dataclass(frozen=True, slots=True)
class Standings:
    """One peer's view. shares: as `trust.standings` gives them; empty: nothing is known, and all are alike"""

    shares: Mapping[PeerId, float] = field(default_factory=dict)
    audits: Mapping[PeerId, AuditRecord] = field(default_factory=dict)
    forked: frozenset[PeerId] = frozenset()
    me: PeerId | None = None

    @classmethod
    def seen_by(
        cls,
        me: PeerId,
        receipts: Receipts,
        audits: Mapping[PeerId, AuditRecord],
        forked: Collection[PeerId],
    ) -> "Standings":
        return cls(standings(me, receipts, audits, forked), dict(audits), frozenset(forked), me)

    def of(self, peer: PeerId) -> float:
        """In [0, 1]: .5 for whoever stands as the mean of those that are known, 0 for a stranger or a forger."""
        share = self.shares.get(peer, 0.0) if peer not in self.forked else 0.0
        return share / (share + 1 / len(self.shares)) if share else 0.0

    def shown(self, peer: PeerId) -> float | None:
        return self.of(peer) if self.shares else None

    def cost_ms(self, peer: PeerId) -> float:
        if peer == self.me:
            return 0.0
        if peer in self.forked:
            return FORKED_MS
        record = self.audits.get(peer)
        caught_ms = CAUGHT_MS * (1 - record.soundness) if record else 0.0
        return (STRANGER_MS * (1 - self.of(peer)) if self.shares else 0.0) + caught_ms
