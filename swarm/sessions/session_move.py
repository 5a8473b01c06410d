"""A hop that is about to leave is replaced while it still works: its cache goes to a successor, the chain is rewired.

A part of the session's machine, without I/O. Until the leaving hop has handed over, the session goes on as before, so
that a successor that fails costs no more than another try.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shoal.swarm.identifiers import PeerId

from .session_events import (
    CloseHop,
    Effect,
    HandOver,
    HopKey,
    KeepOn,
    OpenHop,
    Restore,
    SeekPeer,
    TellStranded,
)
from .session_hop import Hop, Patience


@dataclass(slots=True)
class Move:
    """One at a time in a session: the successor has to know its neighbours."""

    leaver: Hop
    patience: Patience
    began_s: float
    successor: Hop | None = None
    seeking: bool = False
    tries: int = 0
    handed_at_s: float | None = None
    restored: int | None = None  # positions

    @property
    def is_complete(self) -> bool:
        """All that the leaver has computed has arrived, and the successor goes on from there."""
        return self.handed_at_s is not None and self.restored is not None

    def is_late(self, now: float) -> bool:
        return self.successor is not None and now - self.began_s > self.patience.prefill_s

    @property
    def may_try_again(self) -> bool:
        return self.tries < self.patience.successor_tries and not self.leaver.hurried

    def seek(self, hops: Sequence[Hop], exclude: frozenset[PeerId], after_s: float = 0.0) -> Iterator[Effect]:
        self.tries += 1
        self.seeking = True
        before, after = neighbours(hops, self.leaver)
        taken = frozenset(exclude | {hop.peer for hop in hops})
        yield SeekPeer(
            self.leaver.key,
            self.leaver.span,
            taken,
            before.peer if before else None,
            after.peer if after else None,
            after_s,
        )

    def found(self, peer: PeerId, hops: Sequence[Hop], key: HopKey, now: float) -> Iterator[Effect]:
        self.seeking = False
        self.began_s = now
        self.successor = Hop(key, peer, self.leaver.span, restoring=True)
        before, after = neighbours(hops, self.leaver)
        upstream = before.peer if before else None
        restore = Restore(self.leaver.peer)
        yield OpenHop(key, peer, self.leaver.span, upstream, after.key if after else None, restore)

    def opened(self) -> Iterator[Effect]:
        assert self.successor is not None
        self.successor.opened = True
        yield HandOver(self.leaver.key, self.successor.key)

    def failed(self) -> Iterator[Effect]:
        """The successor is of no use; the leaver goes on."""
        if self.successor is not None:
            if self.successor.opened:
                yield KeepOn(self.leaver.key)
            yield CloseHop(self.successor.key)
            self.successor = self.restored = self.handed_at_s = None

    def stranded(self, text: str) -> Iterator[Effect]:
        self.leaver.stranded = True
        yield TellStranded(self.leaver.key, text)


def neighbours(hops: Sequence[Hop], hop: Hop) -> tuple[Hop | None, Hop | None]:
    """Before and after it in the chain; None stands for the driver."""
    at = hops.index(hop)
    return (hops[at - 1] if at else None), (hops[at + 1] if at + 1 < len(hops) else None)
