"""What each player adds to a group, by Monte-Carlo Shapley values with truncation.

A player's Shapley value is what it adds to those before it, in the mean over all orders. Orders are drawn; within one,
once the group so far is worth as much as everybody together, to within a tolerance, the rest is taken to add nothing.

source: Ghorbani and Zou, Data Shapley: Equitable Valuation of Data for Machine Learning, arXiv:1904.02868
"""

import math
import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Generic, TypeVar

Player = TypeVar("Player", bound=Hashable)
LEAST_ORDERS = 8  # before a small error counts


@dataclass(frozen=True, slots=True)
class Worth(Generic[Player]):
    """values: sum to what everybody is worth, to within the truncation; errors: standard errors of the mean

    evaluations: groups whose worth was computed
    """

    values: dict[Player, float]
    errors: dict[Player, float]
    orders: int
    evaluations: int


def monte_carlo_shapley(
    players: Sequence[Player],
    worth_of: Callable[[frozenset[Player]], float],
    seed: int,
    *,
    orders: int = 200,
    tolerance: float = 0.0,
    accuracy: float = 0.0,
) -> Worth[Player]:
    """worth_of: a group's worth, the same each time; a group is asked for once

    tolerance: share of everybody's worth within which an order is cut short
    accuracy: stop when every standard error is below this share of everybody's worth; 0: draw all orders
    Orders come in pairs, each with its reverse, which lowers the variance.
    """
    known: dict[frozenset[Player], float] = {}

    def worth(group: frozenset[Player]) -> float:
        if group not in known:
            known[group] = worth_of(group)
        return known[group]

    draw = random.Random(seed)
    nothing, everything = worth(frozenset()), worth(frozenset(players))
    total = abs(everything - nothing)
    samples: dict[Player, list[float]] = {player: [] for player in players}
    done = 0
    while done < orders:
        order = list(players)
        draw.shuffle(order)
        for each in (order, order[::-1]):
            group, before = frozenset[Player](), nothing
            for player in each:
                if tolerance and abs(everything - before) <= tolerance * total:
                    samples[player].append(0.0)
                    continue
                group |= {player}
                after = worth(group)
                samples[player].append(after - before)
                before = after
            done += 1
        if accuracy and done >= LEAST_ORDERS and max(map(_error, samples.values()), default=0) <= accuracy * total:
            break
    values = {player: sum(added) / max(1, len(added)) for player, added in samples.items()}
    return Worth(values, {player: _error(added) for player, added in samples.items()}, done, len(known))


def exact_shapley(players: Sequence[Player], worth_of: Callable[[frozenset[Player]], float]) -> dict[Player, float]:
    """Over all 2 ** n groups: for a few players."""
    known = {
        frozenset(group): worth_of(frozenset(group))
        for size in range(len(players) + 1)
        for group in combinations(players, size)
    }
    count = len(players)
    weights = [1 / (count * math.comb(count - 1, size)) for size in range(count)]
    return {
        player: sum(
            weights[len(group)] * (known[group | {player}] - worth)
            for group, worth in known.items()
            if player not in group
        )
        for player in players
    }


def _error(samples: Sequence[float]) -> float:
    """Standard error of the mean; an order and its reverse count as one sample."""
    pairs = [(a + b) / 2 for a, b in zip(samples[::2], samples[1::2], strict=False)]
    if len(pairs) < 2:
        return math.inf
    mean = sum(pairs) / len(pairs)
    return math.sqrt(sum((value - mean) ** 2 for value in pairs) / (len(pairs) - 1) / len(pairs))
