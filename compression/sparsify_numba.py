"""The selection of the largest magnitudes of each chunk, compiled."""

import numpy as np
import numpy.typing as npt

from .acceleration import compiled

U = np.uint64
u32 = np.uint32


@compiled
def select(bits_n: npt.NDArray[np.uint32], kept: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> bool:
    """bits: of the float32 values; without the sign they order as magnitudes do. False: some value is not finite.

    Per chunk: a histogram of exponent and four mantissa bits finds the bin of the smallest kept magnitude, a sort of
    that bin alone finds it exactly, and a last pass collects.
    """
    histogram = np.zeros(4096, np.uint16)
    candidates = np.empty(4097, np.uint32)
    written = U(0)
    count = U(bits_n.shape[0])
    for index in range(kept.shape[0]):
        first = U(index) * U(4096)
        last = min(count, first + U(4096))
        wanted = kept[U(index)]
        histogram[:] = 0
        highest = u32(0)
        position = first
        while position < last:
            bits = bits_n[position] & u32(0x7FFFFFFF)
            highest = max(highest, bits)
            histogram[U(bits >> u32(19))] += np.uint16(1)
            position += U(1)
        if highest >= u32(0x7F800000):
            return False
        if wanted == 0:
            continue
        bin_ = highest >> u32(19)
        above = np.int64(0)
        while above + np.int64(histogram[U(bin_)]) < wanted:
            above += np.int64(histogram[U(bin_)])
            bin_ -= u32(1)
        low = bin_ << u32(19)
        high = (bin_ + u32(1)) << u32(19)
        found = U(0)
        position = first
        while position < last:
            bits = bits_n[position] & u32(0x7FFFFFFF)
            candidates[found] = bits
            found += U(low <= bits) & U(bits < high)
            position += U(1)
        inside = np.sort(candidates[: np.int64(found)])
        least = inside[np.int64(found) - (wanted - above)]
        ties = wanted - above
        for rank in range(np.int64(found)):
            if inside[rank] > least:
                ties -= 1
        position = first
        while position < last:
            bits = bits_n[position] & u32(0x7FFFFFFF)
            tie = bits == least and ties > 0
            if bits > least or tie:
                positions[written] = np.int64(position)
                written += U(1)
                ties -= np.int64(tie)
            position += U(1)
    return True
