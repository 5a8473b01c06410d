"""Sequence packing: documents one after another, cut into windows of equal length, so that no position is padding.

Shapes: N tokens in all, S of a window, B windows of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal.swarm.errors import UsageError

from .token_store import Tokens

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """inputs, targets: (B, S); the target of a position is the next token

    positions: (B, S) counted from the beginning of each document, which attention then stays within; None: it does not
    """

    inputs: Ids
    targets: Ids
    positions: Ids | None

    @property
    def tokens(self) -> int:
        return int(self.inputs.size)


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """tokens: (N,); length: S; end: the id that closes a document; isolate: keep documents from seeing one another"""

    tokens: Tokens
    length: int
    end: int
    isolate: bool = False

    def __post_init__(self) -> None:
        if len(self) < 1:
            raise UsageError(f"the data has {len(self.tokens)} tokens, less than one sequence of {self.length}")

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.length

    def batch(self, indices: Sequence[int]) -> Batch:
        """raises: IndexError for a window that is not there"""
        if any(not 0 <= index < len(self) for index in indices):
            raise IndexError(f"windows {min(indices)} to {max(indices)} of {len(self)}")
        size = self.length
        rows = np.stack([self.tokens[i * size : i * size + size + 1] for i in indices]).astype(np.int64)
        inputs = np.ascontiguousarray(rows[:, :-1])
        positions = document_positions(inputs, self.end) if self.isolate else None
        return Batch(inputs, np.ascontiguousarray(rows[:, 1:]), positions)


def document_positions(inputs: Ids, end: int) -> Ids:
    """(B, S) how many tokens of the same document stand before each, within the window."""
    columns = np.arange(inputs.shape[1])
    starts = np.zeros(inputs.shape, np.int64)
    starts[:, 1:] = np.where(inputs[:, :-1] == end, columns[1:], 0)
    return np.asarray(columns - np.maximum.accumulate(starts, axis=1))
