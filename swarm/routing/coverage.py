"""Who holds which part of a model, now and once those who move have moved, and how much that is at each unit."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.records import Hosted, NodeRecord
from shoal.swarm.units import Span, missing, whole

from .chain_choice import name_missing

T = TypeVar("T")
MOVE_GAIN = 1.5  # a node wants to move for balance only when the new place is this much better than its own
KEEP_GAIN = 1.2  # and goes on wanting it down to here: measured speeds swing with the load
_NEW_UNIT = 1e6  # outweighs every sum of 1 / r


@dataclass(frozen=True, slots=True)
class Part:
    """What one node holds. steps_per_s: through one unit, so that a node with few units does not count for more than
    it is; None when it is not known yet
    """

    span: Span
    steps_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Gain:
    """What the swarm has of a move. new_units: that nobody else holds"""

    new_units: int
    reason: str


class Coverage:
    """capacity[u]: how many typical nodes' worth of decode speed the swarm has at unit u; 0 is a gap."""

    def __init__(self, parts: Iterable[Part], layers: int) -> None:
        parts = tuple(parts)
        self.layers = layers
        self.holders = [0] * (layers + 2)
        self.capacity = [0.0] * (layers + 2)
        known = [part.steps_per_s for part in parts if part.steps_per_s is not None]
        typical = statistics.median(known) if known else 1.0
        for part in parts:
            rate = typical if part.steps_per_s is None else part.steps_per_s
            for unit in range(part.span.start, min(part.span.stop, layers + 2)):
                self.holders[unit] += 1
                self.capacity[unit] += min(max(rate / typical, 0.1), 10.0)
        self.gaps = missing(whole(layers), [part.span for part in parts])

    def value(self, span: Span) -> float:
        """One more holder of a unit that r typical nodes hold gains 1 / r of its capacity."""
        return sum(1 / c if c else _NEW_UNIT for c in self.capacity[span.start : span.stop])

    def uncovered(self, span: Span) -> list[int]:
        """The units of a span that nobody holds."""
        return [unit for unit in range(span.start, min(span.stop, self.layers + 2)) if not self.capacity[unit]]

    def gain(self, own: Span, span: Span, gain: float = MOVE_GAIN) -> Gain | None:
        """What is gained when a node that is not counted here goes from `own` to `span`; None: not enough.

        Nothing is enough for leaving a unit that nobody else holds. A gap is filled at once; for balance a node goes
        only where it is needed `gain` times as much, and only while nobody depends on it alone.
        """
        alone = self.uncovered(own)
        if own.covers(span) or any(not span.start <= unit < span.stop for unit in alone):
            return None
        new = [unit for unit in self.uncovered(span) if unit not in alone]
        if new:
            return Gain(len(new), f"nobody holds {names(new, self.layers)}")
        current, better = self.value(own), self.value(span)
        if alone or better < gain * current:
            return None
        times = better / max(current, 1e-9)
        return Gain(0, f"the need there is {times:.1f} times that of what it holds now")


@dataclass(frozen=True, slots=True)
class Claims:
    """The parts of a model as records tell them, and the moves that were announced and not begun."""

    parts: Mapping[PeerId, Part]
    claimed: Mapping[PeerId, Span]

    def agreed(self, layers: int) -> tuple[dict[PeerId, Part], dict[PeerId, Gain]]:
        """Where everybody will be, and which of the claims hold.

        Whoever knows the same records comes to the same result: claims are taken one after the other, those that fill
        most of a gap first, each as if the ones before it were carried out; one that gains nothing any more falls.
        """
        parts = dict(self.parts)
        base = Coverage(parts.values(), layers)

        def order(peer: PeerId) -> tuple[int, PeerId]:
            return -len(base.uncovered(self.claimed[peer])), peer

        hold: dict[PeerId, Gain] = {}
        for peer in sorted(self.claimed, key=order):
            others = Coverage(_without(parts, peer).values(), layers)
            gain = others.gain(parts[peer].span, self.claimed[peer], KEEP_GAIN)
            if gain is not None:
                hold[peer] = gain
                parts[peer] = Part(self.claimed[peer], parts[peer].steps_per_s)
        return parts, hold


def read_claims(records: Iterable[NodeRecord], model: ModelId, dtype: str | None, me: PeerId | None = None) -> Claims:
    """me: left out; dtype: when given, others do not count, since a chain has one dtype"""
    parts: dict[PeerId, Part] = {}
    claimed: dict[PeerId, Span] = {}
    for record in records:
        if record.peer == me:
            continue
        for held in record.hosted:
            if held.model == model and dtype in (None, held.dtype):
                parts[record.peer] = Part(held.span, steps_per_s(held))
        for coming in record.coming:
            if coming.model != model or dtype not in (None, coming.dtype):
                continue
            now = parts.get(record.peer)
            if coming.settled or now is None:
                parts[record.peer] = Part(coming.span, now.steps_per_s if now else None)
            else:
                claimed[record.peer] = coming.span
    return Claims(parts, claimed)


def steps_per_s(hosted: Hosted) -> float:
    return 1e3 * len(hosted.span) / max(hosted.step_ms, 0.01)


def names(units: Sequence[int], layers: int) -> str:
    """`embed, layers 4:8`."""
    runs: list[Span] = []
    for unit in units:
        if runs and runs[-1].stop == unit:
            runs[-1] = Span(runs[-1].start, unit + 1)
        else:
            runs.append(Span(unit, unit + 1))
    return name_missing(runs, layers)


def _without(given: Mapping[PeerId, T], peer: PeerId) -> dict[PeerId, T]:
    return {each: what for each, what in given.items() if each != peer}
