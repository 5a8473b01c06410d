"""Measured round trips to peers, smoothed: one slow sample does not change a route, a lasting change does."""

import math
from collections.abc import Iterable

from .identifiers import PeerId
from .records import MAX_NEIGHBOURS

WEIGHT = 0.25  # of a new sample
_CAPACITY = 4096


class LatencyBook:
    """Exponential moving averages in milliseconds."""

    def __init__(self) -> None:
        self._rtt_ms: dict[PeerId, float] = {}
        self._measured_at: dict[PeerId, float] = {}

    def measured(self, peer: PeerId, rtt_ms: float, now: float) -> None:
        """raises: ValueError when it is no duration"""
        if not 0 <= rtt_ms < math.inf:
            raise ValueError(f"a round trip of {rtt_ms} ms")
        before = self._rtt_ms.get(peer)
        self._rtt_ms[peer] = rtt_ms if before is None else before + WEIGHT * (rtt_ms - before)
        self._measured_at.pop(peer, None)
        self._measured_at[peer] = now  # last in insertion order
        if len(self._measured_at) > _CAPACITY:
            self.forget(next(iter(self._measured_at)))

    def forget(self, peer: PeerId) -> None:
        self._rtt_ms.pop(peer, None)
        self._measured_at.pop(peer, None)

    def rtt_ms(self) -> dict[PeerId, float]:
        return dict(self._rtt_ms)

    def nearest(self, peers: Iterable[PeerId], count: int = MAX_NEIGHBOURS) -> dict[PeerId, float]:
        """For a node's record: the nearest of these peers that were measured."""
        known = sorted((self._rtt_ms[peer], peer) for peer in set(peers) if peer in self._rtt_ms)
        return {peer: round(rtt_ms, 2) for rtt_ms, peer in known[:count]}

    def stalest(self, peers: Iterable[PeerId], count: int, now: float, older_than_s: float = 0.0) -> list[PeerId]:
        """Whom to measure next: never measured first, then the oldest measurement."""
        ages = sorted((self._measured_at.get(peer, -math.inf), peer) for peer in set(peers))
        return [peer for at, peer in ages if now - at >= older_than_s][:count]
