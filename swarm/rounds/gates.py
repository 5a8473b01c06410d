"""Which contributions to a shard may count: what no honest peer sends is left out before the mean is taken.

Pure functions of the contributions, so that everybody who holds them comes to the same verdict. Sums are not the same
to the last bit on all machines; `refusals` takes a margin, with which an auditor tells a lie from a rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal.compression.aggregate import Contribution
from shoal.compression.sparse_update import SparseUpdate
from shoal.compression.update_codec import Values

BLOCK = 1 << 16  # columns taken at once
Places = npt.NDArray[np.int64] | slice
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
    sent = {c.contributor: _Sent.of(c) for c in sorted(contributions, key=lambda c: c.contributor)}
    named = {who: "values that are not finite" for who, part in sent.items() if not part.finite}
    sound = {who: part for who, part in sent.items() if who not in named}
    named |= _too_large(sound, gates.norm_factor * (1 + margin))
    pointing = {who: part for who, part in sound.items() if who not in named and part.size > 0}
    length = contributions[0].count if contributions else 0
    return named | _against_the_others(pointing, length, gates, margin)


def accepted(contributions: Sequence[Contribution], gates: Gates = PLAIN) -> list[Contribution]:
    refused = refusals(contributions, gates)
    return [c for c in contributions if c.contributor not in refused]


def placed(contribution: Contribution) -> tuple[Places, Values]:
    """Where a sparse update is not zero, and what is there; everywhere for a dense one."""
    update = contribution.update
    if isinstance(update, SparseUpdate):
        return update.at, update.values
    at = places(update)
    return at, update[at]


def places(values: Values) -> Places:
    positions = np.flatnonzero(values != 0)
    return positions if 4 * len(positions) < len(values) else slice(None)


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


@dataclass(frozen=True, slots=True, eq=False)
class _Sent:
    """One update without its zeros. size: its norm, 0 unless finite"""

    at: Places
    values: Values
    finite: bool
    size: float

    @classmethod
    def of(cls, contribution: Contribution) -> "_Sent":
        at, values = placed(contribution)
        finite = bool(np.isfinite(values).all())
        return cls(at, values, finite, norm(values) if finite else 0.0)

    def unit(self) -> npt.NDArray[np.float64]:
        return self.values.astype(np.float64) / self.size


def _too_large(sent: dict[str, _Sent], factor: float) -> dict[str, str]:
    positive = sorted(part.size for part in sent.values() if part.size > 0)
    if not positive:
        return {}
    median = positive[(len(positive) - 1) // 2]
    return {
        who: f"a norm {part.size / median:.0f} times the median"
        for who, part in sent.items()
        if part.size > factor * median
    }


def _against_the_others(sent: dict[str, _Sent], count: int, gates: Gates, margin: float) -> dict[str, str]:
    """Those whose update opposes the sum of the others', each taken with norm one so that nobody outvotes the rest.

    Worst first, one at a time: a liar that is gone no longer makes an honest peer look like one. When that would leave
    half or fewer, nobody can tell who lies, and all count.
    """
    if len(sent) < 3:
        return {}
    units = {who: part.unit() for who, part in sent.items()}
    total = np.zeros(count, np.float64)
    for who, unit in units.items():
        total[sent[who].at] += unit
    enough = len(units) // 2 + 1
    named: dict[str, str] = {}
    while len(units) >= 3:
        square = float(np.dot(total, total))
        agreements = {who: _agreement(total[sent[who].at], square, unit) for who, unit in units.items()}
        opposed = {
            who: cosine
            for who, (cosine, t) in agreements.items()
            if cosine < gates.least_cosine - abs(gates.least_cosine) * margin and t < gates.least_t * (1 + margin)
        }
        if not opposed:
            return named
        worst = min(opposed, key=lambda who: (opposed[who], who))
        named[worst] = f"against the others, cosine {opposed[worst]:.2f}"
        total[sent[worst].at] -= units.pop(worst)
        if len(units) < enough:
            return {}
    return named


def _agreement(total: npt.NDArray[np.float64], square: float, unit: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Cosine and t-statistic of the products with the sum of the others.

    total: where the update is not zero; square: of the norm of all of it
    """
    products = unit * (total - unit)
    dot = float(products.sum())
    others = square - 2 * dot - float(np.dot(unit, unit))
    return dot / math.sqrt(max(others, 1e-300)), dot / math.sqrt(max(float(np.dot(products, products)), 1e-300))
