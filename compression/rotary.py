"""Rotary position embedding taken off and put back: pairs (i, i + R/2) of the first R dimensions of a head.

source: Su et al., RoFormer, arXiv:2104.09864, in the half-split layout of transformers
"""

import numpy as np
import numpy.typing as npt

STRIDE = 64

Floats = npt.NDArray[np.float32]


def rotation(inverse_frequencies: npt.NDArray[np.float64], first_position: int, tokens: int) -> tuple[Floats, Floats]:
    """Cosines and sines of `tokens` positions in a row, each (T, R/2).

    Every STRIDEth angle and the first STRIDE are evaluated; the others are their products, in float64.
    """
    coarse = first_position + np.arange(0, tokens, STRIDE, dtype=np.float64)
    turns = np.exp(1j * np.outer(coarse, inverse_frequencies))[:, None]
    turns = turns * np.exp(1j * np.outer(np.arange(STRIDE, dtype=np.float64), inverse_frequencies))
    turns = turns.reshape(-1, len(inverse_frequencies))[:tokens]
    return turns.real.astype(np.float32), turns.imag.astype(np.float32)


def rotate(heads_thd: Floats, cosines: Floats, sines: Floats) -> Floats:
    """Turn (..., T, H, D) by the angles of its tokens; negative sines turn back. Dimensions from R on stay."""
    half = cosines.shape[1]
    if half == 0:
        return heads_thd
    turned = np.empty_like(heads_thd)
    cosine, sine = cosines[:, None, :], sines[:, None, :]
    left, right = heads_thd[..., :half], heads_thd[..., half : 2 * half]
    np.multiply(left, cosine, out=turned[..., :half])
    turned[..., :half] -= right * sine
    np.multiply(right, cosine, out=turned[..., half : 2 * half])
    turned[..., half : 2 * half] += left * sine
    turned[..., 2 * half :] = heads_thd[..., 2 * half :]
    return turned
