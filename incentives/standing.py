"""Trust as routing reads it: a cost in milliseconds, `swarm.standing.KnownStanding`."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from shoal.swarm.identifiers import PeerId

from .trust import AuditRecord, Receipts, standings

STRANGER_MS = 20.0  # that a peer of whom nobody knows anything costs more than one that is well known
CAUGHT_MS = 400.0  # of one whose every audit was false
FORKED_MS = 10_000.0  # of one that signed two histories: only when nobody else is there
AVOIDED_MS = 10_000.0  # of one that was convicted of false work by the swarm's owner, or that own audits speak against
HEARSAY_MS = 100.0  # of a conviction by a peer that is trusted fully; each peer counts once
MOST_HEARSAY_MS = 200.0
# Why a peer is avoided, as `shoal peers` shows it
FALSE_WORK = "false work"
FALSE_AUDITS = "false audits"  # its re-executions, or its accusations, stand against those of all others
SHOWS_NO_WORK = "shows no work"  # again and again, when it is asked for what it has computed
FALSE_LINKS = "false links"  # what it signs as sent is not what several others signed as received


@dataclass(frozen=True, slots=True)
class Standings:
    """One peer's view. shares: as `trust.standings` gives them; empty: nothing is known, and all are alike"""

    shares: Mapping[PeerId, float] = field(default_factory=dict)
    audits: Mapping[PeerId, AuditRecord] = field(default_factory=dict)
    forked: frozenset[PeerId] = frozenset()
    me: PeerId | None = None
    avoided: Mapping[PeerId, str] = field(default_factory=dict)  # for what, as far as it binds this peer
    accused: Mapping[PeerId, frozenset[PeerId]] = field(default_factory=dict)  # by whom else

    @classmethod
    def seen_by(
        cls,
        me: PeerId,
        receipts: Receipts,
        audits: Mapping[PeerId, AuditRecord],
        forked: Collection[PeerId],
        avoided: Mapping[PeerId, str] | None = None,
        accused: Mapping[PeerId, frozenset[PeerId]] | None = None,
    ) -> "Standings":
        shares = standings(me, receipts, audits, forked)
        return cls(shares, dict(audits), frozenset(forked), me, dict(avoided or {}), dict(accused or {}))

    def of(self, peer: PeerId) -> float:
        """In [0, 1]: .5 for whoever stands as the mean of those that are known, 0 for a stranger, forger or liar."""
        share = self.shares.get(peer, 0.0) if not self._is_out(peer) else 0.0
        return share / (share + 1 / len(self.shares)) if share else 0.0

    def _is_out(self, peer: PeerId) -> bool:
        return peer in self.forked or peer in self.avoided

    def shown(self, peer: PeerId) -> float | None:
        return self.of(peer) if self.shares or peer in self.avoided else None

    def remark(self, peer: PeerId) -> str:
        if peer in self.forked:
            return "forked"
        if peer in self.avoided:
            return self.avoided[peer]
        return "accused" if self.accused.get(peer) else ""

    def cost_ms(self, peer: PeerId) -> float:
        if peer == self.me:
            return 0.0
        if peer in self.forked:
            return FORKED_MS
        if peer in self.avoided:
            return AVOIDED_MS
        hearsay_ms = HEARSAY_MS * sum(self.of(author) for author in self.accused.get(peer, ()))
        record = self.audits.get(peer)
        caught_ms = CAUGHT_MS * (1 - record.soundness) if record else 0.0
        stranger_ms = STRANGER_MS * (1 - self.of(peer)) if self.shares else 0.0
        return stranger_ms + caught_ms + min(hearsay_ms, MOST_HEARSAY_MS)
