"""Which units a node should hold: the contiguous span that the swarm lacks most, and when it is worth moving.

Gaps come first: a model with a gap serves nobody. Then the units with the fewest holders, weighted by speed: one more
holder of a unit that r typical nodes hold gains 1 / r of its capacity. Pure; every decision says why.
"""

import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shoal.swarm.errors import OutOfMemory
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.records import Hosted, NodeRecord
from shoal.swarm.units import Span, describe, missing, whole

from .chain_choice import name_missing

MOVE_GAIN = 1.5  # a node moves to rebalance only when the new place is this much better than its own
_NEW_UNIT = 1e6  # outweighs every sum of 1 / r


@dataclass(frozen=True, slots=True)
class Budget:
    """What a node can hold of one model, in bytes.

    unit_bytes: weights of each unit as they lie in memory, embed first and head last
    kv_bytes: KV cache to keep room for, per decoder layer
    tied_bytes: counted once when a span holds both embed and head (tied embeddings)
    """

    total_bytes: int
    unit_bytes: tuple[int, ...]
    kv_bytes: int = 0
    tied_bytes: int = 0

    @property
    def layers(self) -> int:
        return len(self.unit_bytes) - 2

    def cost(self, span: Span) -> int:
        inner = range(max(span.start, 1), min(span.stop, self.layers + 1))
        tied = self.tied_bytes if span == whole(self.layers) else 0
        return sum(self.unit_bytes[span.start : span.stop]) + self.kv_bytes * len(inner) - tied

    def longest(self) -> list[Span]:
        """For each first unit the longest span that fits, without those inside another."""
        units = len(self.unit_bytes)
        if self.cost(whole(self.layers)) <= self.total_bytes:
            return [whole(self.layers)]
        spans: list[Span] = []
        stop = 0
        for start in range(units):
            stop = max(stop, start)
            while stop < units and self.cost(Span(start, stop + 1)) <= self.total_bytes:
                stop += 1
            if stop > start and (not spans or stop > spans[-1].stop):
                spans.append(Span(start, stop))
        return spans


@dataclass(frozen=True, slots=True)
class Placement:
    span: Span
    reason: str


@dataclass(frozen=True, slots=True)
class Stay:
    reason: str


def choose_span(
    records: Iterable[NodeRecord],
    model: ModelId,
    budget: Budget,
    generator: random.Random,
    me: PeerId | None = None,
    dtype: str | None = None,
) -> Placement:
    """The span to load, given all live records.

    me: our own record, if there is one, does not count
    dtype: our arithmetic; when given, holders with another one do not count, since a chain has one dtype
    generator: breaks ties, so that nodes that start together spread out

    raises: OutOfMemory when not even one unit fits
    """
    spans = budget.longest()
    if not spans:
        least = min(range(len(budget.unit_bytes)), key=lambda unit: budget.cost(Span(unit, unit + 1)))
        need = budget.cost(Span(least, least + 1))
        raise OutOfMemory(
            f"the memory budget of {_mib(budget.total_bytes)} holds no part of the model: the smallest part "
            f"({describe(Span(least, least + 1), budget.layers)}) needs {_mib(need)}"
        )
    held = _Coverage(_hosted(records, model, me, dtype), budget.layers)
    span = held.best(spans, generator)
    return Placement(span, held.why(span))


def should_move(
    records: Iterable[NodeRecord],
    model: ModelId,
    budget: Budget,
    own: Span,
    generator: random.Random,
    me: PeerId,
    dtype: str | None = None,
    gain: float = MOVE_GAIN,
) -> Placement | Stay:
    """Whether a node that holds `own` should hold another span instead.

    It never leaves units that nobody else holds, except when the new span covers these too. It moves into a gap at
    once, and for balance only when that is `gain` times better. Among n nodes that could all move, each does so with
    probability 1 / n a call, so that they do not all jump into one gap.
    """
    listed = list(records)
    others = _hosted(listed, model, me, dtype)
    held = _Coverage(others, budget.layers)
    ours_alone = [unit for unit in range(own.start, own.stop) if not held.capacity[unit]]
    spans = [s for s in budget.longest() if all(s.start <= unit < s.stop for unit in ours_alone)]
    alone = _names(ours_alone, budget.layers)
    if not spans:
        return Stay(f"only this node holds {alone}" if alone else "nothing fits into the memory budget")
    span = held.best(spans, generator)
    if span == own or own.covers(span):
        return Stay(f"only this node holds {alone}" if alone else "this is already the best place")
    current, better = held.value(own), held.value(span)
    free = _nodes_free_to_move(listed, model, me, dtype, budget.layers)
    gaps = missing(whole(budget.layers), [h.span for h in others] + [own])
    if any(span.intersects(gap) for gap in gaps):
        reason = f"nobody holds {name_missing(gaps, budget.layers)}"
    elif better >= gain * current:
        reason = f"{describe(span, budget.layers)} has {better / max(current, 1e-9):.1f} times the need of here"
    else:
        return Stay("moving would gain too little")
    if generator.random() >= 1 / free:
        return Stay(f"{free} nodes could move; leaving it to another for now")
    return Placement(span, reason)


class _Coverage:
    """capacity[u]: how many typical nodes' worth of decode speed the swarm has at unit u; 0 is a gap."""

    def __init__(self, hosted: Sequence[Hosted], layers: int) -> None:
        self.layers = layers
        self.holders = [0] * (layers + 2)
        self.capacity = [0.0] * (layers + 2)
        rates = [_steps_per_s(h) for h in hosted]
        typical = statistics.median(rates) if rates else 1.0
        for h, rate in zip(hosted, rates, strict=True):
            for unit in range(h.span.start, min(h.span.stop, layers + 2)):
                self.holders[unit] += 1
                self.capacity[unit] += min(max(rate / typical, 0.1), 10.0)
        self.gaps = missing(whole(layers), [h.span for h in hosted])

    def value(self, span: Span) -> float:
        return sum(1 / c if c else _NEW_UNIT for c in self.capacity[span.start : span.stop])

    def best(self, spans: Sequence[Span], generator: random.Random) -> Span:
        """The most valuable; among equals the one that begins or ends where a gap does, so that gaps stay whole."""
        edges = {0, self.layers + 2} | {edge for gap in self.gaps for edge in (gap.start, gap.stop)}

        def merit(span: Span) -> tuple[float, int]:
            return round(self.value(span), 6), (span.start in edges) + (span.stop in edges)

        top = max(map(merit, spans))
        return generator.choice([span for span in spans if merit(span) == top])

    def why(self, span: Span) -> str:
        new = [unit for unit in range(span.start, span.stop) if not self.capacity[unit]]
        if len(new) == len(self.capacity):
            return "the first node of this model, and all of it fits"
        if new:
            return f"nobody holds {_names(new, self.layers)}"
        fewest = min(self.holders[span.start : span.stop])
        return f"{describe(span, self.layers)} has the fewest holders ({fewest})"


def _hosted(records: Iterable[NodeRecord], model: ModelId, me: PeerId | None, dtype: str | None) -> list[Hosted]:
    return [h for r in records if r.peer != me for h in r.hosted if h.model == model and dtype in (None, h.dtype)]


def _steps_per_s(hosted: Hosted) -> float:
    """Speed per unit, so that a node with few units does not count for more than it is."""
    return 1e3 * len(hosted.span) / max(hosted.step_ms, 0.01)


def _nodes_free_to_move(
    records: Sequence[NodeRecord], model: ModelId, me: PeerId, dtype: str | None, layers: int
) -> int:
    """How many nodes, this one included, hold nothing that only they hold."""
    holders = [0] * (layers + 2)
    spans: list[tuple[PeerId, range]] = []
    for record in records:
        for h in _hosted([record], model, None, dtype):
            units = range(h.span.start, min(h.span.stop, layers + 2))
            spans.append((record.peer, units))
            for unit in units:
                holders[unit] += 1
    free = {peer for peer, units in spans if all(holders[unit] > 1 for unit in units)}
    return len(free | {me})


def _names(units: Sequence[int], layers: int) -> str:
    runs: list[Span] = []
    for unit in units:
        if runs and runs[-1].stop == unit:
            runs[-1] = Span(runs[-1].start, unit + 1)
        else:
            runs.append(Span(unit, unit + 1))
    return name_missing(runs, layers)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"
