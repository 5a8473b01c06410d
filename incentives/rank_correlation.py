"""How well two valuations agree on the order of those that they value.

source: Spearman, The Proof and Measurement of Association between Two Things, 1904
"""

import math
from collections.abc import Sequence


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """In [-1, 1]; equal values share the mean of their ranks; nan when either has no order at all.

    raises: ValueError for lengths that differ
    """
    if len(one) != len(other):
        raise ValueError(f"{len(one)} values against {len(other)}")
    return _pearson(_ranks(one), _ranks(other))


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    at = 0
    while at < len(order):
        end = at
        while end < len(order) and values[order[end]] == values[order[at]]:
            end += 1
        for index in order[at:end]:
            ranks[index] = (at + end - 1) / 2
        at = end
    return ranks


def _pearson(one: Sequence[float], other: Sequence[float]) -> float:
    mean_one, mean_other = (sum(values) / max(1, len(values)) for values in (one, other))
    a, b = [v - mean_one for v in one], [v - mean_other for v in other]
    scale = math.sqrt(sum(v * v for v in a) * sum(v * v for v in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / scale if scale else math.nan
