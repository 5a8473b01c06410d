"""Rotary position embedding taken off and put back: pairs (i, i + R/2) of the first R dimensions of a head.

source: Su et al., RoFormer, arXiv:2104.09864, in the half-split layout of transformers
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def rotation(inverse_frequencies: npt.NDArray[np.float64], positions: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Cosines and sines, each (T, R/2)."""
    angles = np.outer(positions.astype(np.float64), inverse_frequencies)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(heads_lthd: Floats, cosines: Floats, sines: Floats) -> Floats:
    """Turn by the angles; negative sines turn back. Dimensions from R on pass as they are."""
    half = cosines.shape[1]
    if half == 0:
        return heads_lthd
    turned = heads_lthd.copy()
    cosine, sine = cosines[:, None, :], sines[:, None, :]
    left, right = heads_lthd[..., :half], heads_lthd[..., half : 2 * half]
    turned[..., :half] = left * cosine - right * sine
    turned[..., half : 2 * half] = right * cosine + left * sine
    return turned
