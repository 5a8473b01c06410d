"""What a simulation of the ledger's gossip saw."""

from collections.abc import Collection
from dataclasses import dataclass, field

from shoal.swarm.identifiers import PeerId
from shoal.swarm.simulated.time import Timeline
from shoal.swarm.simulated.topics import SimulatedTopics


@dataclass(slots=True)
class Fork:
    """One forger's two branches. Time counts from when the second was shown."""

    witnesses: frozenset[PeerId]  # peers that have to learn of it
    shown_at: dict[int, float] = field(default_factory=dict)  # branch -> when somebody first saw it
    learnt_at: dict[PeerId, float] = field(default_factory=dict)
    honoured: int = 0  # branches

    def shown(self, branch: int, now: float) -> None:
        self.shown_at.setdefault(branch, now)

    def told(self, honoured: bool) -> None:
        self.honoured += honoured

    def delays_s(self) -> list[float]:
        """Of those that learnt of it."""
        since = max(self.shown_at.values())
        return [max(0.0, at - since) for peer, at in self.learnt_at.items() if peer in self.witnesses]


@dataclass(slots=True)
class GossipReport:
    peers: int
    forks: dict[bytes, Fork] = field(default_factory=dict)
    sessions: int = 0  # honest ones
    honoured: int = 0  # of these
    witnessed_s: list[float] = field(default_factory=list)  # that a client waited for its signatures
    told: int = 0  # FORKPROOF entries that were written
    asked: int = 0  # member calls
    published: int = 0
    published_bytes: int = 0
    copies: int = 0  # of messages, on links of the mesh
    simulated_s: float = 0.0
    events: int = 0

    def fork(self, author: bytes, peers: int, honest: Collection[PeerId]) -> Fork:
        assert len(honest) == peers
        self.forks[author] = Fork(frozenset(honest))
        return self.forks[author]

    def learns(self, peer: PeerId, author: bytes, now: float) -> None:
        self.forks[author].learnt_at[peer] = now

    def close(self, topics: SimulatedTopics, timeline: Timeline) -> None:
        self.published, self.copies = topics.published, topics.copies
        self.simulated_s, self.events = timeline.now, timeline.happened

    def figures(self) -> dict[str, float | int]:
        delays = sorted(delay for fork in self.forks.values() for delay in fork.delays_s())
        waits = sorted(self.witnessed_s)
        received = self.published_bytes * self.copies / max(1, self.published) / self.peers
        return {
            "forks": len(self.forks),
            "peers that had to learn": sum(len(fork.witnesses) for fork in self.forks.values()),
            "never learnt": sum(len(fork.witnesses) - len(fork.delays_s()) for fork in self.forks.values()),
            "known_p50_s": quantile(delays, 0.5),
            "known_p99_s": quantile(delays, 0.99),
            "known_max_s": quantile(delays, 1.0),
            "both branches honoured": sum(fork.honoured == 2 for fork in self.forks.values()),
            "one branch honoured": sum(fork.honoured == 1 for fork in self.forks.values()),
            "no branch honoured": sum(fork.honoured == 0 for fork in self.forks.values()),
            "proofs told for a fork": self.told / max(1, len(self.forks)),
            "honest sessions": self.sessions,
            "of these refused or lost": self.sessions - self.honoured,
            "witnessed_p50_s": quantile(waits, 0.5),
            "witnessed_p99_s": quantile(waits, 0.99),
            "messages": self.published,
            "received_byte_s": received / max(1.0, self.simulated_s),
            "calls_per_peer_min": 60.0 * self.asked / self.peers / max(1.0, self.simulated_s),
        }


def quantile(values: list[float], share: float) -> float:
    """Of sorted values; 0 when there are none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0
