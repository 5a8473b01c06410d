"""From the contributions to one shard to the mean of it, with some contributors lying when the run expects that.

`mean` is the token-weighted mean of what passes the gates. `trimmed` drops the extremes of each coordinate; `clipped`
shortens what lies far from the centre. Both also hold for sparse updates, in which most values of most peers are zero:
a plain trimmed mean would drop nearly everything there, since zero is always in the middle.
source: Yin et al., Byzantine-Robust Distributed Learning, arXiv:1803.01498 (coordinate-wise trimmed mean);
Karimireddy et al., Learning from History, arXiv:2012.10333 (centred clipping)
"""

import math
import statistics
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shoal.compression.aggregate import Contribution
from shoal.compression.update_codec import Values

from .exchange import RunSpec
from .gates import BLOCK, accepted, gates_of, norm, placed

TRIMMED_SHARE = 0.3  # of the values of a coordinate, at each end
CLIPPING_STEPS = 3
HEAVIEST = 2.0  # with a robust mean nobody weighs more than so many times the median
ROBUST = ("mean", "trimmed", "clipped")


def reduce_contributions(spec: RunSpec, contributions: Sequence[Contribution]) -> Values:
    """(N,) float32, whatever the order of the contributions.

    raises: ValueError when none is left, for a repeated contributor or lengths that differ
    """
    return robust_mean(spec.robust, accepted(contributions, gates_of(spec.robust)))


def robust_mean(robust: str, contributions: Sequence[Contribution]) -> Values:
    """Of contributions that passed the gates. raises: ValueError"""
    match robust:
        case "mean":
            return _weighted_mean(contributions)
        case "trimmed":
            return _trimmed(*_checked(contributions))
        case "clipped":
            return _clipped(*_checked(contributions))
        case _:
            raise ValueError(f"no robust mean {robust!r}; there are {', '.join(ROBUST)}")


def _weighted_mean(contributions: Sequence[Contribution]) -> Values:
    """`aggregate.weighted_mean` to the last bit; of sparse updates only what is not zero is touched.

    raises: ValueError
    """
    _check(contributions)
    ordered = sorted(contributions, key=lambda contribution: contribution.contributor)
    total = np.zeros(ordered[0].count, np.float64)
    for contribution in ordered:
        at, values = placed(contribution)
        total[at] += values.astype(np.float64) * contribution.tokens
    total /= sum(c.tokens for c in contributions)
    return total.astype(np.float32)


def _check(contributions: Sequence[Contribution]) -> None:
    """raises: ValueError"""
    if not contributions:
        raise ValueError("a mean over no contributions")
    if len({c.contributor for c in contributions}) != len(contributions):
        raise ValueError("a contributor that counts twice")
    if any(c.tokens <= 0 or c.count != contributions[0].count for c in contributions):
        raise ValueError("a contribution without weight or of another length")


def _checked(contributions: Sequence[Contribution]) -> tuple[list[Values], npt.NDArray[np.float64]]:
    """Values in the order of the contributors, and weights that sum to one. raises: ValueError"""
    _check(contributions)
    ordered = sorted(contributions, key=lambda contribution: contribution.contributor)
    heaviest = HEAVIEST * statistics.median(c.tokens for c in ordered)
    weights = [min(float(c.tokens), heaviest) for c in ordered]
    return [c.values for c in ordered], np.array(weights) / math.fsum(weights)


def _trimmed(values: Sequence[Values], weight_n: npt.NDArray[np.float64]) -> Values:
    """Of each coordinate the peers that sent it: without the outer 30 % at each end, scaled by the weight that sent it.

    Of three or four values one is dropped at each end, so a coordinate with three senders bears one liar; below three
    nothing can be told.
    """
    result = np.empty(values[0].shape, np.float32)
    for start in range(0, len(result), BLOCK):
        value_nb = np.stack([v[start : start + BLOCK] for v in values]).astype(np.float64)
        sent_nb = value_nb != 0
        sent_b = sent_nb.sum(axis=0)
        ranked_nb = np.argsort(np.where(sent_nb, value_nb, np.inf), axis=0, kind="stable")
        rank_n1 = np.arange(len(values))[:, None]
        dropped_b = np.maximum(0, np.minimum((sent_b - 1) // 2, np.ceil(TRIMMED_SHARE * sent_b).astype(np.int64)))
        kept_nb = (rank_n1 >= dropped_b) & (rank_n1 < sent_b - dropped_b)
        weight_nb = weight_n[ranked_nb] * kept_nb
        total_b = (np.take_along_axis(value_nb, ranked_nb, axis=0) * weight_nb).sum(axis=0)
        share_b = (weight_n[:, None] * sent_nb).sum(axis=0)
        kept_weight_b = weight_nb.sum(axis=0)
        result[start : start + BLOCK] = total_b / np.where(kept_weight_b > 0, kept_weight_b, 1) * share_b
    return result


def _clipped(values: Sequence[Values], weight_n: npt.NDArray[np.float64]) -> Values:
    """From zero, steps to the mean of the differences, each shortened to the median length."""
    centre = np.zeros(values[0].shape, np.float64)
    for _ in range(CLIPPING_STEPS):
        lengths = [norm((v - centre).astype(np.float32)) for v in values]
        radius = statistics.median(lengths)
        step = np.zeros_like(centre)
        for value, weight, length in zip(values, weight_n, lengths, strict=True):
            step += (value - centre) * (weight * (min(1.0, radius / length) if length > 0 else 1.0))
        centre += step
    return centre.astype(np.float32)
