"""Shortest path over (unit boundary, peer): dynamic programming along the units.

At each boundary the search knows the cheapest way to have arrived there with each candidate as the last hop. The
next hop is entered from the few arrivals whose link to it was measured, and from the cheapest of all others, whose
link is the default: a boundary costs O(candidates * (log + neighbours)) and not candidates squared.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.swarm.identifiers import PeerId
from shoal.swarm.units import Span

Part = tuple[int, Span]  # index of a candidate, and what it computes


@dataclass(frozen=True, slots=True)
class Candidate:
    """One peer's hosted span, cut to the units that are needed: [start, stop)."""

    peer: PeerId
    start: int
    stop: int
    unit_ms: float
    penalty_ms: float


Pool = Sequence[tuple[int, Candidate]]  # candidates with their index in the caller's list


@dataclass(frozen=True, slots=True)
class Network:
    """Round trips in milliseconds. first_from, last_to: peers at the ends; None is the driver."""

    rtt_ms: Mapping[PeerId, Mapping[PeerId, float]]
    me_rtt_ms: Mapping[PeerId, float]
    default_ms: float
    first_from: PeerId | None = None
    last_to: PeerId | None = None

    def link_ms(self, one: PeerId, other: PeerId) -> float:
        """One way. The larger of two measurements: nobody can claim to be near alone."""
        there = self.rtt_ms.get(one, {}).get(other, -1.0)
        back = self.rtt_ms.get(other, {}).get(one, -1.0)
        rtt_ms = max(there, back)
        return (rtt_ms if rtt_ms >= 0 else self.default_ms) / 2

    def end_ms(self, end: PeerId | None, peer: PeerId) -> float:
        return self.me_rtt_ms.get(peer, self.default_ms) / 2 if end is None else self.link_ms(end, peer)


@dataclass(frozen=True, slots=True)
class Path:
    """parts: in order, without gap or overlap; a peer may occur twice, but never twice in a row."""

    cost_ms: float
    parts: tuple[Part, ...]


def cheapest_path(pool: Pool, need: Span, network: Network, limit: int | None) -> Path | None:
    """The cheapest path through `need`, of at most `limit` hops when given; None when there is none."""
    return _Search(pool, need, network, limit).run()


_State = tuple[int, int, Any]  # position in the pool, the boundary where this hop begins, the state before it


class _Search:
    """costs[level][q]: of having computed all units before the boundary, with q as the last hop.

    Without a limit of hops there is one level; with one, each further hop is one level up.
    """

    def __init__(self, pool: Pool, need: Span, network: Network, limit: int | None) -> None:
        self.pool = pool
        self.need = need
        self.network = network
        self.candidates = [candidate for _, candidate in pool]
        self.neighbours = _Neighbours(self.candidates, network)
        self.step_up = limit is not None
        levels = limit if limit is not None else 1
        self.costs = [[math.inf] * len(pool) for _ in range(levels)]
        self.states: list[list[_State | None]] = [[None] * len(pool) for _ in range(levels)]

    def run(self) -> Path | None:
        for boundary in range(self.need.start, self.need.stop):
            active = [q for q, c in enumerate(self.candidates) if c.start <= boundary < c.stop]
            if boundary == self.need.start:
                self._begin(active)
            else:
                first = 1 if self.step_up else 0
                for level in reversed(range(first, len(self.costs))):  # each is read by the one above, then moves on
                    self._enter(active, boundary, level)
            for row in self.costs:
                for q in active:
                    row[q] += self.candidates[q].unit_ms
        return self._end()

    def _begin(self, active: list[int]) -> None:
        for q in active:
            candidate = self.candidates[q]
            self.costs[0][q] = self.network.end_ms(self.network.first_from, candidate.peer) + candidate.penalty_ms
            self.states[0][q] = (q, self.need.start, None)

    def _enter(self, active: list[int], boundary: int, level: int) -> None:
        """Let hops begin at this boundary where that is cheaper than to have begun before it."""
        source = level - 1 if self.step_up else level
        arrived = [
            cost if c.stop >= boundary else math.inf
            for c, cost in zip(self.candidates, self.costs[source], strict=True)
        ]
        came_by = list(self.states[source])
        order = sorted((q for q, cost in enumerate(arrived) if cost < math.inf), key=arrived.__getitem__)
        if not order:
            return
        row, states, default_ms = self.costs[level], self.states[level], self.network.default_ms / 2
        least_ms = arrived[order[0]]
        for q in active:
            penalty_ms = self.candidates[q].penalty_ms
            if least_ms + penalty_ms >= row[q]:
                continue
            best, by = math.inf, -1
            measured, skipped = self.neighbours.of(q)
            for p, link_ms in measured:
                if arrived[p] + link_ms < best:
                    best, by = arrived[p] + link_ms, p
            for p in order:
                if p not in skipped:
                    if arrived[p] + default_ms < best:
                        best, by = arrived[p] + default_ms, p
                    break
            if best + penalty_ms < row[q]:
                row[q] = best + penalty_ms
                states[q] = (q, boundary, came_by[by])

    def _end(self) -> Path | None:
        best_ms = math.inf
        last: _State | None = None
        for row, states in zip(self.costs, self.states, strict=True):
            for q, candidate in enumerate(self.candidates):
                if candidate.stop < self.need.stop or row[q] == math.inf:
                    continue
                total_ms = row[q] + self.network.end_ms(self.network.last_to, candidate.peer)
                if total_ms < best_ms:
                    best_ms, last = total_ms, states[q]
        parts: list[Part] = []
        stop = self.need.stop
        while last is not None:
            q, start, before = last
            parts.append((self.pool[q][0], Span(start, stop)))
            stop, last = start, before
        return Path(best_ms, tuple(reversed(parts))) if parts else None


@dataclass(slots=True)
class _Neighbours:
    """Whom a candidate can follow over a measured link; looked up only for those that the search gets to."""

    candidates: Sequence[Candidate]
    network: Network
    _places: dict[PeerId, list[int]] = field(default_factory=dict)
    _measured_by: dict[PeerId, list[PeerId]] = field(default_factory=dict)
    _known: dict[int, tuple[list[tuple[int, float]], set[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for q, candidate in enumerate(self.candidates):
            self._places.setdefault(candidate.peer, []).append(q)
        for peer in self._places:
            for other in self.network.rtt_ms.get(peer, ()):
                if other in self._places:
                    self._measured_by.setdefault(other, []).append(peer)

    def of(self, q: int) -> tuple[list[tuple[int, float]], set[int]]:
        """The measured ones with the one-way time; and those that q cannot follow over the default link.

        The second holds the first and the candidates of the same peer, itself included: a peer never follows itself.
        """
        if q in self._known:
            return self._known[q]
        me = self.candidates[q]
        links: list[tuple[int, float]] = []
        skipped = set(self._places[me.peer])
        for other in {*self.network.rtt_ms.get(me.peer, ()), *self._measured_by.get(me.peer, ())} - {me.peer}:
            for p in self._places.get(other, ()):
                skipped.add(p)
                before = self.candidates[p]
                if before.start < me.stop and me.start <= before.stop:
                    links.append((p, self.network.link_ms(other, me.peer)))
        links.sort()  # the same choice among equals on every machine
        self._known[q] = links, skipped
        return links, skipped
