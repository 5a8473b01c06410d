"""What participants of a run, or stretches of its data, were worth for the held-out text: Shapley and first order.

A group's worth is how much lower the held-out loss is with it than without anybody, in nats a token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np

from shoal.compression.update_codec import Values
from shoal.incentives.first_order_value import first_order_values
from shoal.incentives.rank_correlation import spearman
from shoal.incentives.shapley import Worth, monte_carlo_shapley
from shoal.swarm.errors import UsageError
from shoal.swarm.identifiers import PeerId

from .data.windows import Windows
from .evaluation import evaluate, gradient_over, outer_in_place
from .strategies.outer_loop import LiveParameters
from .valued_replay import Point
from .worker_steps import InnerSteps

Player = TypeVar("Player", int, PeerId)
TOLERANCE = 0.01  # of everybody's worth: where an order is cut short


@dataclass(frozen=True, slots=True)
class Valuation(Generic[Player]):
    """total: everybody's worth; agreement: rank correlation of the two values, nan for fewer than two players"""

    shapley: Worth[Player]
    first_order: dict[Player, float]
    total: float
    agreement: float


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """The held-out loss of any parameters. sequences: of the held-out text, from its beginning"""

    steps: InnerSteps
    parameters: LiveParameters
    held_out: Windows
    sequences: int

    def loss(self, values: Values) -> float:
        with outer_in_place(self.parameters, values):
            return evaluate(self.steps, self.held_out, self.sequences).loss

    def gradient(self, values: Values, text: Windows | None = None, windows: Sequence[int] | None = None) -> Values:
        """Of the held-out loss, or of the loss on some windows of another text."""
        with outer_in_place(self.parameters, values):
            if text is None or windows is None:
                return gradient_over(
                    self.steps, self.parameters, self.held_out, range(min(self.sequences, len(self.held_out)))
                )
            return gradient_over(self.steps, self.parameters, text, windows)


def value_participants(judge: Judge, points: Sequence[Point], seed: int, orders: int) -> Valuation[PeerId]:
    """By where each of these rounds would have led had only some of them taken part."""
    players = sorted({peer for point in points for peer in point.round.offers})
    before = sum(judge.loss(point.before) for point in points)

    def worth(group: frozenset[PeerId]) -> float:
        return before - sum(judge.loss(point.after(group)) for point in points) if group else 0.0

    first = first_order_values((judge.gradient(point.before), point.moves()) for point in points)
    return _compared(players, _valued(players, worth, seed, orders), first)


def value_stretches(
    judge: Judge, text: Windows, point: Point, stretches: int, sample: int, seed: int, orders: int
) -> Valuation[int]:
    """Stretches of the training text, of equal length, by one step along their gradients from one point of the run.

    sample: windows of each that its gradient is taken over; the step with all of them is as long as the round's was
    raises: UsageError for more stretches than windows
    """
    if not 1 <= stretches <= len(text):
        raise UsageError(f"{stretches} stretches of a text of {len(text)} sequences")
    draw = np.random.default_rng(seed)
    edges = np.linspace(0, len(text), stretches + 1).astype(int)
    gradients = []
    for start, stop in pairwise(edges):
        chosen = draw.choice(np.arange(start, stop), size=min(sample, stop - start), replace=False)
        gradients.append(judge.gradient(point.before, text, [int(index) for index in chosen]))
    length = float(np.linalg.norm(sum(point.moves().values())))
    rate = np.float32(length / max(1e-30, float(np.linalg.norm(np.sum(gradients, axis=0)))))
    before = judge.loss(point.before)

    def worth(group: frozenset[int]) -> float:
        if not group:
            return 0.0
        return before - judge.loss(point.before - rate * np.sum([gradients[i] for i in sorted(group)], axis=0))

    players = range(stretches)
    moves = {index: -rate * gradients[index] for index in players}
    first = first_order_values([(judge.gradient(point.before), moves)])
    return _compared(players, _valued(players, worth, seed, orders), first)


def _valued(
    players: Sequence[Player], worth: Callable[[frozenset[Player]], float], seed: int, orders: int
) -> Worth[Player]:
    return monte_carlo_shapley(players, worth, seed, orders=orders, tolerance=TOLERANCE, accuracy=TOLERANCE / 2)


def _compared(players: Sequence[Player], worths: Worth[Player], first: dict[Player, float]) -> Valuation[Player]:
    one, other = ([values[player] for player in players] for values in (worths.values, first))
    return Valuation(worths, first, sum(worths.values.values()), spearman(one, other))
