"""Pseudo-random 32-bit integers by counter: the same on every machine, and any of them without those before it.

source: the finaliser of SplitMix64, Steele et al., Fast Splittable Pseudorandom Number Generators, 2014
"""

import numpy as np
import numpy.typing as npt

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def random_words(seed: int, counters: npt.NDArray[np.integer]) -> npt.NDArray[np.uint64]:
    """One integer below 2^32 per counter; any seed of 64 bits."""
    state = counters.astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(_mixed(seed))
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state >> np.uint64(32)


def _mixed(seed: int) -> int:
    state = (seed + GOLDEN) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)
