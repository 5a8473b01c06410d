"""How much of this node's uplink other peers may take with prefixes: no I/O, time comes in.

A prefix is worth nothing when it comes slowly, so it goes at the speed of the link; what a peer takes over minutes is
bounded, and so is what all take together. One peer never has so many streams that none is left to the others.
"""

from collections import Counter
from collections.abc import Callable

from shoal.swarm.errors import Refused
from shoal.swarm.identifiers import PeerId

MOST_STREAMS = 8  # of peers that fetch at a time
MOST_OF_A_PEER = 3  # of them
PEER_SHARE = 0.5  # of what is given to all
BURST_S = 128.0  # of the rate may go at once: 1 GiB at 8 MiB/s
MOST_REMEMBERED = 4096  # peers


class Allowance:
    """A bucket of bytes that fills at a steady rate, BURST_S of it at most."""

    def __init__(self, byte_s: float, now: float) -> None:
        self._byte_s = byte_s
        self._held = byte_s * BURST_S
        self._at = now

    def wait_s(self, now: float) -> float:
        """0 while something is left, else until there is again."""
        self._held = min(self._byte_s * BURST_S, self._held + max(0.0, now - self._at) * self._byte_s)
        self._at = now
        return 0.0 if self._held > 0 else -self._held / self._byte_s + 1.0

    @property
    def is_full(self) -> bool:
        return self._held >= self._byte_s * BURST_S

    def spend(self, count: int) -> None:
        """It may go into debt by one chunk."""
        self._held -= count


class GivingLimits:
    """byte_s: that all peers together may take, over time; 0 gives nothing away"""

    def __init__(self, byte_s: float, clock: Callable[[], float]) -> None:
        self.byte_s = byte_s
        self._clock = clock
        self._streams: Counter[PeerId] = Counter()
        self._all = Allowance(max(byte_s, 1.0), clock())
        self._peers: dict[PeerId, Allowance] = {}

    def enter(self, peer: PeerId) -> None:
        """One more stream; `leave` ends it. raises: Refused"""
        if not self.byte_s:
            raise Refused("this node gives no chunks away")
        if self._streams[peer] >= MOST_OF_A_PEER:
            raise Refused(f"this node gives you chunks over {MOST_OF_A_PEER} streams already, and no more to one peer")
        if self._streams.total() >= MOST_STREAMS:
            raise Refused(f"this node gives chunks over {MOST_STREAMS} streams already, and no more at a time")
        self._streams[peer] += 1

    def leave(self, peer: PeerId) -> None:
        self._streams[peer] -= 1
        if not self._streams[peer]:
            del self._streams[peer]

    def check(self, peer: PeerId) -> None:
        """Before a chunk is given. raises: Refused with how long to wait"""
        now = self._clock()
        for whose, allowance in (("to you", self._of(peer, now)), ("to all peers", self._all)):
            wait_s = allowance.wait_s(now)
            if wait_s > 0:
                raise Refused(f"this node has given {whose} as many chunks as it gives for now: ask in {wait_s:.0f} s")

    def spend(self, peer: PeerId, count: int) -> None:
        self._of(peer, self._clock()).spend(count)
        self._all.spend(count)

    def _of(self, peer: PeerId, now: float) -> Allowance:
        known = self._peers.get(peer)
        if known is None:
            if len(self._peers) >= MOST_REMEMBERED:  # who has taken nothing for a while is as good as new
                for each in self._peers.values():
                    each.wait_s(now)
                self._peers = {name: each for name, each in self._peers.items() if not each.is_full}
            known = self._peers[peer] = Allowance(max(self.byte_s, 1.0) * PEER_SHARE, now)
        return known
