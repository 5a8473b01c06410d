"""Which contributions to a shard may count: what no honest peer sends is left out before the mean is taken.

Pure functions of the contributions, so that everybody who holds them comes to the same verdict. Sums are not the same
to the last bit on all machines; `refusals` takes a margin, with which an auditor tells a lie from a rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoal.compression.aggregate import Contribution
from shoal.compression.update_codec import Values

BLOCK = 1 << 16  # columns taken at once
FIXED_POINT_BITS = 38


@dataclass(frozen=True, slots=True)
class Gates:
    """norm_factor: a norm above so many times the (lower) median norm is refused
    least_cosine, least_t: an update that points against the others is refused when its cosine to the sum of theirs is
    below the one and the t-statistic of the products below the other; chance alone reaches -4 once in 30,000 times
    """

    norm_factor: float = 10.0
    least_cosine: float = -0.1
    least_t: float = -4.0


PLAIN = Gates()
STRICT = Gates(norm_factor=4.0, least_cosine=0.0, least_t=-2.0)  # with a robust mean, where somebody expects liars


def gates_of(robust: str) -> Gates:
    return PLAIN if robust == "mean" else STRICT


def refusals(contributions: Sequence[Contribution], gates: Gates = PLAIN, margin: float = 0.0) -> dict[str, str]:
    """Contributor to the reason why it does not count.

    margin: relative; above zero only what is beyond every gate by so much is named, below zero also what is near one
    """
    contributions = sorted(contributions, key=lambda contribution: contribution.contributor)
    named = _not_finite(contributions)
    sound = [c for c in contributions if c.contributor not in named]
    named |= _too_large(sound, gates.norm_factor * (1 + margin))
    sound = [c for c in contributions if c.contributor not in named]
    return named | _against_the_others(sound, gates, margin)


def accepted(contributions: Sequence[Contribution], gates: Gates = PLAIN) -> list[Contribution]:
    refused = refusals(contributions, gates)
    return [c for c in contributions if c.contributor not in refused]


def norm(values: Values) -> float:
    """Of finite values; summed as integers, so the same to the last bit on every machine. Relative error 2^-38 * N."""
    largest = float(np.abs(values).max(initial=0))
    if largest == 0:
        return 0.0
    exponent = int(np.frexp(largest)[1])
    total = 0
    for start in range(0, len(values), BLOCK):
        part = np.ldexp(values[start : start + BLOCK].astype(np.float64), -exponent)
        total += int(np.ldexp(part * part, FIXED_POINT_BITS).astype(np.int64).sum())
    return math.ldexp(math.sqrt(total), exponent - FIXED_POINT_BITS // 2)


def _not_finite(contributions: Sequence[Contribution]) -> dict[str, str]:
    bad = [c.contributor for c in contributions if not np.isfinite(c.values).all()]
    return dict.fromkeys(bad, "values that are not finite")


def _too_large(contributions: Sequence[Contribution], factor: float) -> dict[str, str]:
    norms = {c.contributor: norm(c.values) for c in contributions}
    positive = sorted(size for size in norms.values() if size > 0)
    if not positive:
        return {}
    median = positive[(len(positive) - 1) // 2]
    limit = factor * median
    return {who: f"a norm {size / median:.0f} times the median" for who, size in norms.items() if size > limit}


def _against_the_others(contributions: Sequence[Contribution], gates: Gates, margin: float) -> dict[str, str]:
    """Those whose update opposes the sum of the others', each taken with norm one so that nobody outvotes the rest.

    Worst first, one at a time: a liar that is gone no longer makes an honest peer look like one. When that would leave
    half or fewer, nobody can tell who lies, and all count.
    """
    left = [c for c in contributions if (size := norm(c.values)) > 0 and np.isfinite(size)]
    scales = {c.contributor: 1.0 / norm(c.values) for c in left}
    enough = len(left) // 2 + 1
    named: dict[str, str] = {}
    while len(left) >= 3:
        agreements = _agreements(left, scales)
        opposed = {
            who: cosine
            for who, (cosine, t) in agreements.items()
            if cosine < gates.least_cosine - abs(gates.least_cosine) * margin and t < gates.least_t * (1 + margin)
        }
        if not opposed:
            return named
        worst = min(opposed, key=lambda who: (opposed[who], who))
        named[worst] = f"against the others, cosine {opposed[worst]:.2f}"
        left = [c for c in left if c.contributor != worst]
        if len(left) < enough:
            return {}
    return named


def _agreements(contributions: Sequence[Contribution], scales: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Contributor to cosine and t-statistic of its products with the sum of the others' unit vectors."""
    count = len(contributions)
    dots, squares, others = np.zeros(count), np.zeros(count), np.zeros(count)
    scale_n1 = np.array([scales[c.contributor] for c in contributions])[:, None]
    length = len(contributions[0].values)
    for start in range(0, length, BLOCK):
        units_nb = np.stack([c.values[start : start + BLOCK] for c in contributions]).astype(np.float64) * scale_n1
        rest_nb = units_nb.sum(axis=0) - units_nb
        products_nb = units_nb * rest_nb
        dots += products_nb.sum(axis=1)
        squares += np.square(products_nb).sum(axis=1)
        others += np.square(rest_nb).sum(axis=1)
    cosines = dots / np.sqrt(np.maximum(others, 1e-300))
    ts = dots / np.sqrt(np.maximum(squares, 1e-300))
    return {c.contributor: (float(cosine), float(t)) for c, cosine, t in zip(contributions, cosines, ts, strict=True)}
