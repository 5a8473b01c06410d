"""First rung of the failover ladder: each hop's cache is kept somewhere else while the session runs.

A part of the session's machine, without I/O. Losing a standby costs nothing but the wait for another one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from shoal.compression.kv_levels import CHUNK_TOKENS
from shoal.swarm.identifiers import PeerId

from .generation import Exactness
from .session_events import CloseHop, Effect, HopKey, KeepHere, OpenHold, PrepareLink, SeekPeer, SendSnapshots
from .session_hop import Hop, Patience, Standby


@dataclass(slots=True)
class Standbys:
    """exactness: "replay" wants none; here: the driver keeps the caches itself"""

    exactness: Exactness
    here: bool
    patience: Patience
    avoided: set[PeerId] = field(default_factory=set)

    def tend(
        self, hops: Sequence[Hop], positions: int, exclude: frozenset[PeerId], now: float, new_key: Iterator[HopKey]
    ) -> Iterator[Effect]:
        """Look for what is missing, as soon as there is a chunk to keep."""
        if self.exactness == "replay" or positions < CHUNK_TOKENS:
            return
        for at, hop in enumerate(hops):
            if hop.standby or hop.seeking or hop.leaving or now < hop.standby_after_s:
                continue
            if self.here:
                hop.standby = Standby(next(new_key), None, holding=True)
                hop.standby_after_s = now + self.patience.standby_retry_s
                yield KeepHere(hop.standby.key, hop.key)
                yield SendSnapshots(hop.key, hop.standby.key)
            elif hop.standby_tries < self.patience.standby_tries:
                hop.standby_tries += 1
                hop.seeking = True
                taken = exclude | self.avoided | {each.peer for each in hops}
                before = hops[at - 1].peer if at else None
                after = hops[at + 1].peer if at + 1 < len(hops) else None
                yield SeekPeer(hop.key, hop.span, frozenset(taken), before, after, 0.0)

    def found(self, hop: Hop, peer: PeerId | None, now: float, new_key: Iterator[HopKey]) -> Iterator[Effect]:
        hop.seeking = False
        hop.standby_after_s = now + self.patience.standby_retry_s
        if peer is not None and not hop.leaving:
            hop.standby = Standby(next(new_key), peer)
            yield OpenHold(hop.standby.key, peer, hop.span, hop.key)

    def opened(self, hops: Sequence[Hop], key: HopKey) -> Iterator[Effect]:
        for hop in hops:
            if hop.standby and hop.standby.key == key and not hop.standby.holding:
                hop.standby.holding = True
                yield SendSnapshots(hop.key, key)
                yield from self.connect(hops)

    @staticmethod
    def connect(hops: Sequence[Hop]) -> Iterator[Effect]:
        """Whoever is before a standby can reach it at once, and it whoever is behind."""
        for at, hop in enumerate(hops):
            if hop.standby is not None and hop.standby.peer is not None and hop.standby.holding:
                yield PrepareLink(hops[at - 1].key if at else None, hop.standby.key)
                if at + 1 < len(hops):
                    yield PrepareLink(hop.standby.key, hops[at + 1].key)

    @staticmethod
    def kept(hops: Sequence[Hop], key: HopKey, held: int) -> None:
        for hop in hops:
            if hop.standby is not None and hop.standby.key == key:
                hop.standby.held = max(0, held)

    def lost(self, hops: Sequence[Hop], key: HopKey) -> Iterator[Effect]:
        """The standby of this key has failed; others are not affected."""
        for hop in hops:
            if hop.standby and hop.standby.key == key:
                if hop.standby.peer is not None:
                    self.avoided.add(hop.standby.peer)
                yield from self.end(hop)

    def is_standby(self, hops: Sequence[Hop], key: HopKey) -> bool:
        return any(hop.standby is not None and hop.standby.key == key for hop in hops)

    def end(self, hop: Hop) -> Iterator[Effect]:
        if hop.standby is not None:
            yield CloseHop(hop.standby.key)
            hop.standby = None
