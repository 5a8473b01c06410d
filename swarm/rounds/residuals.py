"""The error feedback of the shards that this peer owns, and what it shows of it to those who check.

A residual is cut into units of one chunk each; the tree over their hashes has its root in every decision, so an owner
cannot make up afterwards what it had left over.
"""

from dataclasses import dataclass, field

import numpy as np

from shoal.compression.error_feedback import ErrorFeedback
from shoal.compression.update_codec import Codec, Values

from . import hash_tree
from .exchange import CHUNK, RunSpec

Place = tuple[int, int]  # fragment, shard
LOCAL_PRESETS = ("none", "fp16", "int8", "fp4", "sparse")  # a chunk is encoded without regard to the others


def unit_values(codec: Codec, count: int) -> int:
    """How many values of a shard can be checked by themselves: a chunk, or all where the codec knows no chunks."""
    return CHUNK if codec.name in LOCAL_PRESETS else count


def unit_leaves(residual: Values, unit: int) -> list[bytes]:
    little = residual.astype("<f4", copy=False)
    return [hash_tree.leaf_hash(little[i : i + unit].tobytes()) for i in range(0, len(little), unit)]


def residual_root(residual: Values, unit: int) -> bytes:
    return hash_tree.root(unit_leaves(residual, unit))


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One shard's residual before and after a round."""

    before: ErrorFeedback
    after: ErrorFeedback


@dataclass(slots=True)
class Residuals:
    """current: what the next round starts from; steps: of rounds that may still be audited."""

    spec: RunSpec
    current: dict[Place, ErrorFeedback] = field(default_factory=dict)
    steps: dict[tuple[int, int], Step] = field(default_factory=dict)  # by round and shard

    def of(self, fragment: int, shard: int) -> ErrorFeedback:
        """Empty for a shard that this peer did not own before."""
        start, stop = self.spec.sharding(fragment).bounds()[shard]
        known = self.current.get((fragment, shard))
        return known if known is not None else ErrorFeedback.empty(stop - start, self.spec.reducer_decay)

    def adopt(self, round_: int, fragment: int, shard: int, step: Step) -> None:
        self.current[fragment, shard] = step.after
        self.steps[round_, shard] = step

    def drop(self, fragment: int, shard: int) -> None:
        """Another peer owns it now."""
        self.current.pop((fragment, shard), None)

    def forget(self, before_round: int) -> None:
        self.steps = {key: step for key, step in self.steps.items() if key[0] >= before_round}

    def show(
        self, round_: int, shard: int, unit: int, unit_count: int
    ) -> tuple[bytes, tuple[bytes, ...], tuple[bytes, ...]] | None:
        """The unit's values before the round and the paths of that unit before and after it."""
        step = self.steps.get((round_, shard))
        if step is None or unit * unit_count >= len(step.before.residual):
            return None
        values = step.before.residual[unit * unit_count : (unit + 1) * unit_count]
        before, after = (unit_leaves(side.residual, unit_count) for side in (step.before, step.after))
        return (
            np.ascontiguousarray(values, "<f4").tobytes(),
            hash_tree.path(before, unit),
            hash_tree.path(after, unit),
        )
