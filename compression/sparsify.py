"""Which values of an update travel: a random part that both sides know, the largest of each chunk, or both.

The shares are exact fractions: of `count` values floor(count * share) are drawn, and the chunks together keep
floor(count * share) of the largest, each chunk within one of its part.
source: Wang et al., CocktailSGD, ICML 2023; Sarfi et al., SparseLoCo, arXiv:2508.15706 (top-k per chunk of 4096)
"""

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from .acceleration import wants_numba
from .hashing import random_words

CHUNK = 4096
INFINITE_BITS = 0x7F800000


def exact_share(share: float) -> Fraction:
    """.4 means two fifths, not the binary number beside it."""
    fraction = Fraction(share).limit_denominator(1_000_000)
    if not 0 < fraction <= 1:
        raise ValueError(f"a share of {share}")
    return fraction


def random_count(count: int, share: Fraction) -> int:
    return count * share.numerator // share.denominator


def random_positions(
    count: int, share: Fraction, seed: int, drawn: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.int64]:
    """One position from each of floor(count * share) stretches, all different; each position equally likely.

    drawn: only these stretches' positions
    """
    stretches = random_count(count, share)
    index = np.arange(stretches, dtype=np.int64) if drawn is None else drawn
    low = index * count // max(stretches, 1)
    high = (index + 1) * count // max(stretches, 1)
    jitter = (random_words(seed, index) * (high - low).astype(np.uint64)) >> np.uint64(32)
    # Stretches differ by one in length; turning the whole by a random amount makes all positions equal again.
    turn = int(random_words(~seed, np.zeros(1, np.int64))[0]) * count >> 32
    positions = low + jitter.astype(np.int64) + turn
    return np.where(positions < count, positions, positions - count)


def kept_per_chunk(count: int, share: Fraction) -> npt.NDArray[np.int64]:
    """How many values each chunk of CHUNK keeps; the last chunk may be short."""
    ends = np.minimum(np.arange(1, -(-count // CHUNK) + 1, dtype=np.int64) * CHUNK, count)
    kept_before = ends * share.numerator // share.denominator
    return np.diff(kept_before, prepend=0)


def top_k_positions(
    values_n: npt.NDArray[np.float32], share: Fraction, accelerate: bool | None = None
) -> npt.NDArray[np.int64]:
    """Positions of the largest magnitudes of each chunk, ascending; equal magnitudes go to the lower position.

    raises: ValueError for values that are not finite
    """
    kept = kept_per_chunk(len(values_n), share)
    if wants_numba(accelerate):
        from .sparsify_numba import select

        positions = np.empty(int(kept.sum()), np.int64)
        if not select(values_n.view(np.uint32), kept, positions):
            raise ValueError("an update with values that are not finite")
        return positions
    magnitudes = values_n.view(np.uint32) & np.uint32(0x7FFFFFFF)
    if magnitudes.size and int(magnitudes.max()) >= INFINITE_BITS:
        raise ValueError("an update with values that are not finite")
    whole = len(values_n) // CHUNK
    pieces = []
    for count in np.unique(kept[:whole]):
        rows = np.flatnonzero(kept[:whole] == count)
        mask = _largest(magnitudes[: whole * CHUNK].reshape(whole, CHUNK)[rows], int(count))
        row, column = np.nonzero(mask)
        pieces.append(rows[row] * CHUNK + column)
    if whole < len(kept):
        tail = _largest(magnitudes[None, whole * CHUNK :], int(kept[whole]))
        pieces.append(np.flatnonzero(tail) + whole * CHUNK)
    return np.sort(np.concatenate(pieces)) if pieces else np.empty(0, np.int64)


def _largest(magnitudes_rc: npt.NDArray[np.uint32], count: int) -> npt.NDArray[np.bool_]:
    width = magnitudes_rc.shape[1]
    if count == 0:
        return np.zeros(magnitudes_rc.shape, np.bool_)
    least_r1 = np.partition(magnitudes_rc, width - count, axis=1)[:, width - count, None]
    mask = magnitudes_rc >= least_r1
    crowded = np.flatnonzero(mask.sum(axis=1) > count)
    for row in crowded:
        above = magnitudes_rc[row] > least_r1[row]
        equal = np.flatnonzero(magnitudes_rc[row] == least_r1[row])
        mask[row] = above
        mask[row, equal[: count - int(above.sum())]] = True
    return mask
