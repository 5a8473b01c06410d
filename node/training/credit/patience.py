"""How long a judge waits for whom between two rounds, as a machine without I/O.

Every trainer has an allowance of waiting. What is waited for it is taken off, and it comes back slowly, so that one
that is late again and again costs the judge a fiftieth of its time at most; beyond that it loses its own claims.
"""

from collections.abc import Iterable

from shoal.swarm.identifiers import PeerId

MOST_S = 5.0  # between two rounds
ALLOWANCE_S = 10.0  # of a trainer that was never waited for
COMES_BACK = 0.02  # seconds of it, each second


class Patience:
    """now: monotonic seconds, everywhere"""

    def __init__(self) -> None:
        self._left: dict[PeerId, tuple[float, float]] = {}  # seconds, and when it was so
        self._awaited: set[PeerId] = set()
        self._began_s = 0.0

    def left_s(self, peer: PeerId, now: float) -> float:
        """That may still be waited for it."""
        left, at = self._left.get(peer, (ALLOWANCE_S, now))
        if peer in self._awaited:
            return left - (now - at)
        return min(ALLOWANCE_S, left + COMES_BACK * max(0.0, now - at))

    def begin(self, late: Iterable[PeerId], now: float) -> None:
        """A wait for these begins."""
        for peer in late:
            self._left[peer] = self.left_s(peer, now), now
            self._awaited.add(peer)
        self._began_s = now

    def limit_s(self, now: float) -> float:
        """How much longer it is worth waiting; 0 or less: no longer."""
        most = max((self.left_s(peer, now) for peer in self._awaited), default=0.0)
        return min(most, self._began_s + MOST_S - now)

    def came(self, peer: PeerId, now: float) -> None:
        """What it was to show is here, or will never be."""
        self._left[peer] = max(0.0, self.left_s(peer, now)), now
        self._awaited.discard(peer)

    def end(self, now: float) -> set[PeerId]:
        """The wait is over. returns: who did not come"""
        late = set(self._awaited)
        for peer in late:
            self.came(peer, now)
        return late
