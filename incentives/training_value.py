"""What an update was worth: s = -<grad L_val, delta>, the first-order Shapley value of the round, and its calibration.

To first order the held-out loss falls by the sum of -<g, w_i delta_i>, and a sum is shared out by its terms, so these
are the Shapley values exactly where the loss is linear. How far it is from that, leave-one-out tells: the loss without
each update, measured now and then, fits one factor between the two and says how well they agree.

Shapes: N parameters, K updates.
source: Wang et al., Data Shapley in One Training Run, arXiv:2406.11011; Ghorbani and Zou, Data Shapley,
arXiv:1904.02868
"""
# ruff: noqa: N803  names end in their shapes, as the legend above says

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float32]


def first_order(gradient_N: Values, updates: Sequence[Values], weights: Sequence[float]) -> list[float]:
    """Nats by which each update lowers the held-out loss, to first order. gradient: of that loss, before the round

    updates: (N,) each, what it adds to the parameters; weights: any positive numbers, such as tokens
    returns: NaN for an update that is not finite or of another length, which is worth nothing
    """
    total = sum(weights)
    if total <= 0:
        raise ValueError("the weights of a round add up to nothing")
    return [
        -float(np.dot(gradient_N.astype(np.float64), update.astype(np.float64))) * weight / total
        if update.shape == gradient_N.shape and bool(np.isfinite(update).all())
        else float("nan")
        for update, weight in zip(updates, weights, strict=True)
    ]


def leave_one_out(loss: Callable[[Values], float], updates: Sequence[Values], weights: Sequence[float]) -> list[float]:
    """By how much the held-out loss is higher when one update is missing and the others share its weight.

    loss: of the parameters moved by (N,)
    """
    total = np.sum([w * u.astype(np.float64) for w, u in zip(weights, updates, strict=True)], axis=0)
    mass = sum(weights)
    whole = loss((total / mass).astype(np.float32))
    missing = [
        (total - weight * update.astype(np.float64)) / max(mass - weight, 1e-30)
        for weight, update in zip(weights, updates, strict=True)
    ]
    return [loss(mean.astype(np.float32)) - whole for mean in missing]


@dataclass(frozen=True, slots=True)
class Calibration:
    """factor: nats of leave-one-out for a nat of first order; agreement: their correlation; updates: it rests on"""

    factor: float
    agreement: float
    updates: int

    def value(self, first: float) -> float:
        """Nats that an update is believed to be worth; 0 for what is not a number."""
        return self.factor * first if isfinite(first) else 0.0


def centred(scores: Sequence[float]) -> list[float]:
    """First order of leave-one-out itself: without an update the others move further, by its share of their mean.

    In a round of equal weights the loss without update i rises by (s_i - mean of s) * K / (K - 1), to first order.
    """
    count = len(scores)
    if count < 2:
        raise ValueError("leaving one out takes two updates")
    mean = sum(scores) / count
    return [(score - mean) * count / (count - 1) for score in scores]


def calibrated(scores: Sequence[float], measured: Sequence[float]) -> Calibration:
    """Least squares through the origin. scores: `centred` first-order values; measured: leave-one-out, in order

    raises: ValueError for fewer than two updates or scores that are all nought
    """
    x, y = np.asarray(scores, np.float64), np.asarray(measured, np.float64)
    square = float(x @ x)
    if len(x) < 2 or square == 0.0 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("nothing to calibrate with")
    norms = float(np.linalg.norm(x - x.mean()) * np.linalg.norm(y - y.mean()))
    agreement = float((x - x.mean()) @ (y - y.mean())) / norms if norms else 0.0
    return Calibration(float(x @ y) / square, agreement, len(x))
