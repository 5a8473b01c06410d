"""A seeded permutation of any length, as a function: any element without those before it, and no table in memory.

source: format-preserving encryption by cycle walking over a balanced Feistel network, Black and Rogaway, Ciphers with
Arbitrary Finite Domains, 2002
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from shoal.compression.hashing import random_words

_ROUNDS = 4


def shuffled(indices: Iterable[int] | npt.NDArray[np.integer], count: int, seed: int) -> list[int]:
    """Where the permutation of range(count) sends these. raises: ValueError outside of the range"""
    given = np.asarray(list(indices), np.int64)
    if count < 1 or (len(given) and (given.min() < 0 or given.max() >= count)):
        raise ValueError(f"no such elements of a permutation of {count}")
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    values = given.astype(np.uint64)
    outside = np.ones(len(values), bool)
    while outside.any():  # the network permutes a range up to four times as large; walk on until back inside
        values[outside] = _permuted(values[outside], half, seed)
        outside = values >= count
    return [int(value) for value in values]


def _permuted(values: npt.NDArray[np.uint64], half: int, seed: int) -> npt.NDArray[np.uint64]:
    """Of range(4**half)."""
    mask = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & mask
    for turn in range(_ROUNDS):
        left, right = right, left ^ (random_words(seed * _ROUNDS + turn, right) & mask)
    return (left << np.uint64(half)) | right
