"""How many sessions a peer may open: a token bucket each and one for all, so that a flood is refused for next to
nothing, before a signature is checked or a page is written."""

from collections import OrderedDict

MOST_PEERS = 4096  # whose buckets are kept; the longest unseen is forgotten, and begins anew with a full one


class OpenLimiter:
    def __init__(
        self,
        each_a_second: float = 50.0,  # a gateway asks for all its users
        each_burst: float = 400.0,
        all_a_second: float = 500.0,
        all_burst: float = 2000.0,
    ) -> None:
        self._each = (each_a_second, each_burst)
        self._all = (all_a_second, all_burst)
        self._total: tuple[float, float] | None = None  # left, when
        self._peers: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allow(self, peer: str, now: float) -> bool:
        """now: seconds that never go back"""
        left = _filled(self._peers.get(peer), now, *self._each)
        total = _filled(self._total, now, *self._all)
        granted = left >= 1.0 and total >= 1.0
        self._peers[peer] = (left - granted, now)
        self._peers.move_to_end(peer)
        if len(self._peers) > MOST_PEERS:
            self._peers.popitem(last=False)
        self._total = (total - granted, now)
        return granted


def _filled(bucket: tuple[float, float] | None, now: float, a_second: float, most: float) -> float:
    if bucket is None:
        return most
    left, when = bucket
    return min(most, left + (now - when) * a_second)
