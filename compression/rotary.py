"""Rotary position embedding taken off and put back: pairs (i, i + R/2) of the first R dimensions of a head.

source: Su et al., RoFormer, arXiv:2104.09864, in the half-split layout of transformers
"""

import numpy as np
import numpy.typing as npt

STRIDE = 64

Floats = npt.NDArray[np.float32]


def rotation(inverse_frequencies: npt.NDArray[np.float64], first_position: int, tokens: int) -> tuple[Floats, Floats]:
    """Cosines and sines of `tokens` positions in a row, each (..., T, R/2) for frequencies (..., R/2).

    Every STRIDEth angle and the first STRIDE are evaluated; the others are their products, in float64.
    """
    coarse = first_position + np.arange(0, tokens, STRIDE, dtype=np.float64)
    fine = np.arange(STRIDE, dtype=np.float64)
    by_token = inverse_frequencies[..., None, :]
    coarse_turns = np.exp(1j * coarse[:, None] * by_token)[..., :, None, :]
    turns = coarse_turns * np.exp(1j * fine[:, None] * by_token)[..., None, :, :]
    *leading, half = inverse_frequencies.shape
    turns = turns.reshape(*leading, len(coarse) * STRIDE, half)[..., :tokens, :]
    return turns.real.astype(np.float32), turns.imag.astype(np.float32)


def halves_order(width: int, half: int) -> npt.NDArray[np.int64]:
    """Where the channels of a head stand whose pairs are neighbours (2 i, 2 i + 1), in the order of halves."""
    return np.concatenate([np.arange(0, 2 * half, 2), np.arange(1, 2 * half, 2), np.arange(2 * half, width)])


def rotate(heads_thd: Floats, cosines: Floats, sines: Floats) -> Floats:
    """Turn (..., T, H, D) by the angles (..., T, R/2) of its tokens; negative sines turn back. From R on all stays."""
    half = cosines.shape[-1]
    if half == 0:
        return heads_thd
    turned = np.empty_like(heads_thd)
    cosine, sine = cosines[..., None, :], sines[..., None, :]
    left, right = heads_thd[..., :half], heads_thd[..., half : 2 * half]
    np.multiply(left, cosine, out=turned[..., :half])
    turned[..., :half] -= right * sine
    np.multiply(right, cosine, out=turned[..., half : 2 * half])
    turned[..., half : 2 * half] += left * sine
    turned[..., 2 * half :] = heads_thd[..., 2 * half :]
    return turned
