"""What the owner of a shard does with its contributors' updates: mean, own error feedback, one payload for all.

Every replica, the owner too, applies the values decoded from those bytes, so all replicas hold the same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .error_feedback import ErrorFeedback, Sent, send
from .sparse_update import SparseUpdate
from .update_codec import Codec, Values


@dataclass(frozen=True, eq=False)
class Contribution:
    """contributor: any total order, such as a peer id; tokens: the weight, above zero."""

    contributor: str
    tokens: int
    update: Values | SparseUpdate

    @cached_property
    def values(self) -> Values:
        """Zeros and all."""
        return self.update.dense() if isinstance(self.update, SparseUpdate) else self.update

    @property
    def count(self) -> int:
        return self.update.count if isinstance(self.update, SparseUpdate) else len(self.update)


def weighted_mean(contributions: Sequence[Contribution]) -> Values:
    """Mean over those that contributed, weighted by tokens; summed in the order of the contributors, in float64.

    The order in which updates arrived does not change a bit of the result.
    raises: ValueError for no contribution, a repeated contributor, a weight of zero or lengths that differ
    """
    if not contributions:
        raise ValueError("a mean over no contributions")
    ordered = sorted(contributions, key=lambda contribution: contribution.contributor)
    if len({contribution.contributor for contribution in ordered}) != len(ordered):
        raise ValueError("a contributor that counts twice")
    if any(c.tokens <= 0 or c.values.shape != ordered[0].values.shape for c in ordered):
        raise ValueError("a contribution without weight or of another length")
    total = np.zeros(ordered[0].values.shape, np.float64)
    for contribution in ordered:
        total += contribution.values.astype(np.float64) * contribution.tokens
    return (total / sum(c.tokens for c in ordered)).astype(np.float32)


def aggregate(codec: Codec, feedback: ErrorFeedback, contributions: Sequence[Contribution], seed: int = 0) -> Sent:
    """The aggregate of a shard as bytes for every replica, and the owner's feedback for the next round.

    raises: ValueError
    """
    return send(codec, feedback, weighted_mean(contributions), seed)
