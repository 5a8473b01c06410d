"""Which units a node should hold: the contiguous span that the swarm lacks most.

Gaps come first: a model with a gap serves nobody. Then the units with the fewest holders, weighted by speed
(`coverage`). Nodes that are about to move count where they go. Pure; every decision says why.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shoal.swarm.errors import OutOfMemory
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.records import NodeRecord
from shoal.swarm.units import Span, describe, whole

from .coverage import Coverage, names, read_claims


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
    parts, _ = read_claims(records, model, dtype, me).agreed(budget.layers)
    held = Coverage(parts.values(), budget.layers)
    span = best_span(held, spans, generator)
    return Placement(span, _why(held, span))


def best_span(held: Coverage, spans: Sequence[Span], generator: random.Random) -> Span:
    """The most valuable; among equals the one that begins or ends where a gap does, so that gaps stay whole."""
    edges = {0, held.layers + 2} | {edge for gap in held.gaps for edge in (gap.start, gap.stop)}

    def merit(span: Span) -> tuple[float, int]:
        return round(held.value(span), 6), (span.start in edges) + (span.stop in edges)

    top = max(map(merit, spans))
    return generator.choice([span for span in spans if merit(span) == top])


def _why(held: Coverage, span: Span) -> str:
    new = held.uncovered(span)
    if len(new) == len(held.capacity):
        return "the first node of this model, and all of it fits"
    if new:
        return f"nobody holds {names(new, held.layers)}"
    fewest = min(held.holders[span.start : span.stop])
    return f"{describe(span, held.layers)} has the fewest holders ({fewest})"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"
