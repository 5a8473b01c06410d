"""A virtual clock with a heap of what happens next: thousands of peers need no tasks and no waiting."""

import heapq
from collections.abc import Callable
from typing import Any, TypeVarTuple

Ts = TypeVarTuple("Ts")


class Timeline:
    """Calls happen in order of time; calls at the same time, in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0  # seconds
        self.happened = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._asked = 0

    def at(self, when: float, call: Callable[[*Ts], None], *arguments: *Ts) -> None:
        """raises: ValueError for a time that has passed"""
        if when < self.now:
            raise ValueError(f"{when} has passed, it is {self.now}")
        heapq.heappush(self._heap, (when, self._asked, call, arguments))
        self._asked += 1

    def after(self, delay_s: float, call: Callable[[*Ts], None], *arguments: *Ts) -> None:
        self.at(self.now + delay_s, call, *arguments)

    def run(self, until: float) -> None:
        """Everything up to and including `until`; calls may ask for more calls."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, call, arguments = heapq.heappop(heap)
            self.happened += 1
            call(*arguments)
        self.now = max(self.now, until)
