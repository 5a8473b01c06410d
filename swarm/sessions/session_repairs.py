"""What has become of a session's hops since the last token: who was lost or left, and who stands in.

A part of the session's machine, without I/O. The next token ends the pause, and the route is told.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from shoal.swarm.errors import OutOfMemory, Refused, ShoalError, VersionMismatch
from shoal.swarm.identifiers import PeerId
from shoal.swarm.units import Span

from .session_events import Effect, HopFailed, Repaired
from .session_hop import Hop
from .session_move import Move


@dataclass(slots=True)
class Repairs:
    """failures: of the whole session"""

    failures: int = 0
    refusal: ShoalError | None = None  # of the last hop that would not open
    _lost: list[tuple[PeerId, Span, str]] = field(default_factory=list)
    _moved: list[tuple[Move, Hop]] = field(default_factory=list)  # with who took over
    _broke_at_s: float = 0.0

    def lost(self, hop: Hop, reason: str, since_s: float) -> None:
        """since_s: the beginning of the pause, if this is the first of it"""
        self.failures += 1
        if not self._lost:
            self._broke_at_s = since_s
        self._lost.append((hop.peer, hop.span, reason))

    def moved(self, move: Move, successor: Hop) -> None:
        self._moved.append((move, successor))

    def refused(self, event: HopFailed) -> None:
        self.refusal = _refusal(event) or self.refusal

    def explained(self, error: ShoalError) -> ShoalError:
        """What to tell the user when nobody is left: a hop's refusal, or the error with what became of the last peer
        that was lost, as nobody is left because somebody failed."""
        if self.refusal is not None:
            return self.refusal
        if not self._lost:
            return error
        peer, _, reason = self._lost[-1]
        return type(error)(f"{error} ({peer} failed: {reason})")

    def told(self, hops: Sequence[Hop], now: float) -> Iterator[Effect]:
        """A token has come: report all of it, once."""
        for peer, span, reason in self._lost:
            by = [hop for hop in hops if hop.span.intersects(span)]
            loaded = max((hop.loaded for hop in by), default=0)
            yield Repaired(peer, span, reason, now - self._broke_at_s, tuple(hop.peer for hop in by), loaded)
        self._lost.clear()
        for move, by_hop in self._moved:
            pause_s = now - (move.handed_at_s or now)
            leaver = move.leaver
            yield Repaired(leaver.peer, leaver.span, "left", pause_s, (by_hop.peer,), by_hop.loaded, planned=True)
        self._moved.clear()


def _refusal(event: HopFailed) -> ShoalError | None:
    """What to tell the user when a hop would not open and nobody else is left."""
    match event.kind:
        case "no_room" | "too_long":
            return OutOfMemory(event.text)
        case "refused":
            return Refused(event.text)
        case "version":
            return VersionMismatch(event.text)
        case _:
            return None
