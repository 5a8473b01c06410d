"""Measured round trips to peers, smoothed: one slow sample does not change a route, a lasting change does."""

import math
from collections.abc import Iterable

from shoal.swarm.identifiers import PeerId
from shoal.swarm.records import MAX_NEIGHBOURS

WEIGHT = 0.25  # of a new sample
UNANSWERED_MS = 2000.0  # what a peer counts with that did not answer: a chain through it is the last resort
_CAPACITY = 4096


class LatencyBook:
    """Exponential moving averages in milliseconds."""

    def __init__(self) -> None:
        self._rtt_ms: dict[PeerId, float] = {}
        self._measured_at: dict[PeerId, float] = {}
        self._unanswered: set[PeerId] = set()

    def measured(self, peer: PeerId, rtt_ms: float, now: float) -> None:
        """raises: ValueError when it is no duration"""
        if not 0 <= rtt_ms < math.inf:
            raise ValueError(f"a round trip of {rtt_ms} ms")
        before = None if peer in self._unanswered else self._rtt_ms.get(peer)
        self._unanswered.discard(peer)
        self._keep(peer, rtt_ms if before is None else before + WEIGHT * (rtt_ms - before), now)

    def unanswered(self, peer: PeerId, now: float) -> None:
        """It was asked in vain: it counts as slow, so that nobody waits for it again, until it answers."""
        self._unanswered.add(peer)
        self._keep(peer, UNANSWERED_MS, now)

    def _keep(self, peer: PeerId, rtt_ms: float, now: float) -> None:
        self._rtt_ms[peer] = rtt_ms
        self._measured_at.pop(peer, None)
        self._measured_at[peer] = now  # last in insertion order
        if len(self._measured_at) > _CAPACITY:
            self.forget(next(iter(self._measured_at)))

    def forget(self, peer: PeerId) -> None:
        self._rtt_ms.pop(peer, None)
        self._measured_at.pop(peer, None)
        self._unanswered.discard(peer)

    def rtt_ms(self) -> dict[PeerId, float]:
        return dict(self._rtt_ms)

    def nearest(self, peers: Iterable[PeerId], count: int = MAX_NEIGHBOURS) -> dict[PeerId, float]:
        """For a node's record: the nearest of these peers that were measured."""
        answered = set(peers) & self._rtt_ms.keys() - self._unanswered
        known = sorted((self._rtt_ms[peer], peer) for peer in answered)
        return {peer: round(rtt_ms, 2) for rtt_ms, peer in known[:count]}

    def stalest(self, peers: Iterable[PeerId], count: int, now: float, older_than_s: float = 0.0) -> list[PeerId]:
        """Whom to measure next: never measured first, then the oldest measurement."""
        ages = sorted((self._measured_at.get(peer, -math.inf), peer) for peer in set(peers))
        return [peer for at, peer in ages if now - at >= older_than_s][:count]
