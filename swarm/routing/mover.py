"""When a node changes its layers, as a machine without I/O: it looks, waits, claims a place, and goes.

What it sees has to last for a while: records come and go, and speeds swing. Then it claims the place in its record and
waits until everybody has heard; claims that speak against each other are settled by a rule that all know
(`coverage.Claims.agreed`), so that two nodes neither jump into one gap nor leave one behind.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.records import NodeRecord
from shoal.swarm.units import Span

from .coverage import KEEP_GAIN, MOVE_GAIN
from .moves import Stay, holding_claim, wish_to_move
from .placement import Budget, Placement


@dataclass(frozen=True, slots=True)
class MoveTiming:
    """Seconds."""

    look_s: float = 6.0  # between two looks, more or less
    gap_s: float = 5.0  # a gap has to last so long
    unbalanced_s: float = 60.0  # so has an imbalance
    settle_s: float = 12.0  # until everybody has heard of a claim
    rest_s: float = 300.0  # after a move, until the next for balance
    again_s: float = 30.0  # after a claim that fell or a move that failed, half to twice as long; then twice that, ...
    again_most_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Claim:
    """Announce that this node is about to go there."""

    placement: Placement


@dataclass(frozen=True, slots=True)
class Drop:
    """Take the claim back."""

    reason: str


@dataclass(frozen=True, slots=True)
class Go:
    placement: Placement


Verdict = Stay | Claim | Drop | Go


class Mover:
    """Of one node and the model that it holds a part of. After `Go` say `moved` or `failed`."""

    def __init__(
        self,
        me: PeerId,
        model: ModelId,
        dtype: str | None,
        generator: random.Random,
        timing: MoveTiming | None = None,
    ) -> None:
        self.timing = timing or MoveTiming()
        self.claimed: Placement | None = None
        self._me, self._model, self._dtype, self._random = me, model, dtype, generator
        self._claimed_at = 0.0
        self._for_gap = False
        self._since: float | None = None  # there is a reason to move
        self._gap_since: float | None = None
        self._tries = 0
        self._failures = 0  # one after the other
        self._balance_from = 0.0  # no move for balance before
        self._any_from = 0.0

    def next_look_s(self, now: float) -> float:
        """From now; with a claim, when everybody has heard of it."""
        if self.claimed is not None:
            return max(0.0, self._claimed_at + self.timing.settle_s - now) + 0.1
        return self.timing.look_s * self._random.uniform(0.5, 1.5)

    def look(self, records: Sequence[NodeRecord], budget: Budget, own: Span, now: float) -> Verdict:
        """records: of all who live, our own among them; own: what this node holds; now: monotonic seconds"""
        if self.claimed is not None:
            return self._with_claim(self.claimed, records, budget.layers, now)
        gain = MOVE_GAIN if self._since is None else KEEP_GAIN
        wish = wish_to_move(records, self._model, budget, own, self._random, self._me, self._dtype, gain)
        if isinstance(wish, Stay):
            self._forget()
            return wish
        self._since = now if self._since is None else self._since
        if not wish.fills_gap:
            self._gap_since = None
        elif self._gap_since is None:
            self._gap_since = now
        since, lasts_s = self._since, self.timing.unbalanced_s
        if self._gap_since is not None:
            since, lasts_s = self._gap_since, self.timing.gap_s
        if now < self._any_from or (now < self._balance_from and not wish.fills_gap):
            return Stay("it has moved, or tried to, a short while ago")
        if now - since < lasts_s:
            return Stay("it may be over in a moment")
        if self._random.random() >= 2.0**self._tries / wish.free:  # else all would claim at once
            self._tries += 1
            return Stay(f"{wish.free} nodes could move; leaving it to another for now")
        self.claimed, self._claimed_at, self._for_gap = wish.placement, now, wish.fills_gap
        return Claim(wish.placement)

    def _with_claim(self, placement: Placement, records: Sequence[NodeRecord], layers: int, now: float) -> Verdict:
        if now - self._claimed_at < self.timing.settle_s:
            return Stay("others may claim the same")
        gain = holding_claim(records, self._model, layers, self._me, self._dtype)
        self.claimed = None
        if gain is None or (self._for_gap and not gain.new_units):
            self._wait(now, self.timing.again_s)
            return Drop("another node goes, or it is needed no more")
        return Go(placement)

    def may_try(self, now: float) -> bool:
        """Whether the last failure lies far enough back, for a node that holds nothing."""
        return now >= self._any_from

    def moved(self, now: float) -> None:
        self._forget()
        self._failures = 0
        self._balance_from = now + self.timing.rest_s * self._random.uniform(1.0, 1.5)

    def failed(self, now: float) -> None:
        """Others come first for a while: maybe they can."""
        self._wait(now, min(self.timing.again_s * 2.0**self._failures, self.timing.again_most_s))
        self._failures += 1

    def _wait(self, now: float, wait_s: float) -> None:
        self._forget()
        self._any_from = now + wait_s * self._random.uniform(0.5, 2.0)

    def _forget(self) -> None:
        self._since = self._gap_since = None
        self._tries = 0
