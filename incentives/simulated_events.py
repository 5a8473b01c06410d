"""Virtual time: what is to happen, in the order of its time."""

import heapq
from collections.abc import Callable


class EventQueue:
    def __init__(self, now_s: float) -> None:
        self.now = now_s
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = 0

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        """Of two at one time the one that was asked for first comes first."""
        self._numbers += 1
        heapq.heappush(self._events, (when_s, self._numbers, what))

    def run_until(self, end_s: float) -> None:
        while self._events and self._events[0][0] < end_s:
            self.now, _, what = heapq.heappop(self._events)
            what()
        self.now = end_s
