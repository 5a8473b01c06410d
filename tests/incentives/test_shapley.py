"""Values of players: exact on games that are known, cheap by truncation, and compared by rank."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.incentives.first_order_value import first_order_values
from shoal.incentives.rank_correlation import spearman
from shoal.incentives.shapley import exact_shapley, monte_carlo_shapley


def gloves(group: frozenset[int]) -> float:
    """Players 0 and 1 hold a left glove, 2 a right one; a pair is worth one."""
    return min(len(group & {0, 1}), len(group & {2}))


def test_a_game_whose_values_stand_in_the_textbook() -> None:
    assert exact_shapley(range(3), gloves) == pytest.approx({0: 1 / 6, 1: 1 / 6, 2: 4 / 6})


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 7), st.integers(0, 10**6))
def test_drawn_orders_come_close_to_all_orders_and_share_everything_out(count: int, seed: int) -> None:
    draw = random.Random(seed)
    worths = {mask: draw.random() for mask in range(2**count)}

    def worth(group: frozenset[int]) -> float:
        return worths[sum(1 << player for player in group)]

    exact = exact_shapley(range(count), worth)
    found = monte_carlo_shapley(range(count), worth, seed, orders=600)
    assert sum(found.values.values()) == pytest.approx(worths[2**count - 1] - worths[0])
    for player in range(count):
        assert abs(found.values[player] - exact[player]) < 6 * found.errors[player] + 1e-9


def test_truncation_saves_evaluations_where_the_first_few_bring_nearly_everything() -> None:
    def worth(group: frozenset[int]) -> float:
        return 1 - 0.2 ** len(group)

    whole = monte_carlo_shapley(range(12), worth, 0, orders=60)
    cut = monte_carlo_shapley(range(12), worth, 0, orders=60, tolerance=0.02)
    assert cut.evaluations < whole.evaluations / 2
    assert max(abs(cut.values[p] - whole.values[p]) for p in range(12)) < 0.02


def test_it_stops_as_soon_as_it_is_accurate_enough() -> None:
    found = monte_carlo_shapley(range(5), lambda group: float(sum(group)), 0, orders=1000, accuracy=0.01)
    assert found.orders == 8
    assert found.values == pytest.approx(dict(zip(range(5), range(5), strict=True)))


def test_first_order_values_add_up_to_the_whole_move() -> None:
    draw = np.random.default_rng(0)
    gradients = draw.normal(size=(3, 50)).astype(np.float32)
    moves = draw.normal(size=(3, 4, 50)).astype(np.float32)
    found = first_order_values((g, dict(enumerate(m))) for g, m in zip(gradients, moves, strict=True))
    assert sum(found.values()) == pytest.approx(-float((gradients * moves.sum(1)).sum()), rel=1e-4)


def test_ranks_agree_disagree_and_share_places() -> None:
    assert spearman([1, 2, 3], [10, 20, 1000]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 1, 2], [5, 5, 9]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)
    assert math.isnan(spearman([1, 1], [1, 2]))
