"""The 2-bit quantiser of SparseLoCo: bins of one and a half standard deviations, each decoded as its mean.

Bit-identical to a receiver that keeps 2-bit codes, a float32 table of four means and a float32 shift per group.
source: Sarfi et al., Communication Efficient LLM Pre-training with SparseLoCo, arXiv:2508.15706
"""

import numpy as np
import numpy.typing as npt

BINS = 4
RANGE_IN_SIGMAS = 6.0
GROUP = 4096


def lookup_quantise(
    values_k: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Codes (K,) below 4 and tables (groups, 4) float32 for runs of GROUP values; the last run may be short.

    A table entry is float32(mean of the bin's centred values) + float32(shift), added in float32, as the receiver
    of codes, table and shift would add them.
    """
    codes = np.empty(len(values_k), np.uint8)
    groups = -(-len(values_k) // GROUP)
    tables = np.zeros((groups, BINS), np.float32)
    for group in range(groups):
        part = slice(group * GROUP, min((group + 1) * GROUP, len(values_k)))
        codes[part], tables[group] = _quantise_group(values_k[part].astype(np.float64))
    return codes, tables


def lookup_values(codes: npt.NDArray[np.uint8], tables: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return tables[np.arange(len(codes)) // GROUP, codes]


def _ordered_sum(values: npt.NDArray[np.float64]) -> float:
    """A sum in the order of the values: a cumulative sum has no freedom, unlike a pairwise one."""
    return float(np.cumsum(values)[-1]) if len(values) else 0.0


def _quantise_group(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    shift = np.float32(_ordered_sum(values) / len(values))
    centred = values - np.float64(shift)
    variance = _ordered_sum(centred * centred) / max(len(values) - 1, 1)
    width = RANGE_IN_SIGMAS * np.sqrt(variance) / BINS
    codes = np.clip(np.rint(centred / (width if width > 0 else 1.0) + BINS // 2), 0, BINS - 1).astype(np.uint8)
    table = np.zeros(BINS, np.float32)
    for code in range(BINS):
        inside = centred[codes == code]
        if len(inside):
            table[code] = np.float32(_ordered_sum(inside) / len(inside)) + shift
    return codes, table
