"""Whether a node that serves should hold other units instead, as the swarm is now. Pure; every decision says why."""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.records import NodeRecord
from shoal.swarm.units import Span

from .coverage import MOVE_GAIN, Coverage, Gain, Part, names, read_claims
from .placement import Budget, Placement, best_span


@dataclass(frozen=True, slots=True)
class Stay:
    reason: str


@dataclass(frozen=True, slots=True)
class Wish:
    """fills_gap: the model has a gap, and serves nobody until it is filled; free: how many nodes could move, too"""

    placement: Placement
    fills_gap: bool
    free: int


def wish_to_move(
    records: Iterable[NodeRecord],
    model: ModelId,
    budget: Budget,
    own: Span,
    generator: random.Random,
    me: PeerId,
    dtype: str | None = None,
    gain: float = MOVE_GAIN,
) -> Wish | Stay:
    """Where a node that holds `own` would be worth more, when everybody is where he said that he goes.

    It never leaves units that nobody else holds, except when the new span covers these too.
    """
    records = list(records)
    parts, _ = read_claims(records, model, dtype, me).agreed(budget.layers)
    held = Coverage(parts.values(), budget.layers)
    alone = held.uncovered(own)
    spans = [s for s in budget.longest() if all(s.start <= unit < s.stop for unit in alone)]
    kept = f"only this node holds {names(alone, budget.layers)}"
    if not spans:
        return Stay(kept if alone else "nothing fits into the memory budget")
    span = best_span(held, spans, generator)
    if own.covers(span):
        return Stay(kept if alone else "this is already the best place")
    found = held.gain(own, span, gain)
    if found is None:
        return Stay(kept if alone else "moving would gain too little")
    free = free_to_move({**read_claims(records, model, dtype, me).parts, me: Part(own)}, budget.layers)
    return Wish(Placement(span, found.reason), found.new_units > 0, free)


def holding_claim(
    records: Iterable[NodeRecord], model: ModelId, layers: int, me: PeerId, dtype: str | None = None
) -> Gain | None:
    """What the claim in our own record still gains beside those of others; None: another goes instead."""
    _, hold = read_claims(records, model, dtype).agreed(layers)
    return hold.get(me)


def relied_on(
    records: Iterable[NodeRecord],
    model: ModelId,
    own: Span,
    span: Span,
    me: PeerId,
    dtype: str | None = None,
) -> dict[int, list[PeerId]]:
    """For each unit that a move from `own` to `span` leaves, who else is said to hold it, or to be about to."""
    parts = read_claims(records, model, dtype, me).parts
    left = [unit for unit in range(own.start, own.stop) if not span.start <= unit < span.stop]
    return {unit: [p for p, part in parts.items() if part.span.start <= unit < part.span.stop] for unit in left}


def free_to_move(parts: Mapping[PeerId, Part], layers: int) -> int:
    """How many nodes hold nothing that only they hold, at least one."""
    holders = Coverage(parts.values(), layers).holders
    units = layers + 2
    free = (all(holders[u] > 1 for u in range(p.span.start, min(p.span.stop, units))) for p in parts.values())
    return max(1, sum(free))
