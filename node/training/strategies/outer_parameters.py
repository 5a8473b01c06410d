"""What all replicas of a run hold alike: the outer parameters and their optimiser, moved by aggregates alone.

A trainer applies the outcome of each round here; a late joiner, an inference node that follows the run and an auditor
replay the same outcomes from the log and get the same bits.
"""

import hashlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from shoal.compression.update_codec import Values
from shoal.node.training.optimizers.outer import OuterOptimizer, OuterSettings, State
from shoal.swarm.rounds.exchange import Outcome, RunSpec, seed_of


class OuterParameters:
    """values: (N,) float32; rounds: how many outcomes were applied.

    raises: ValueError for parameters that do not fit the run or are not finite
    """

    def __init__(
        self, settings: OuterSettings, spec: RunSpec, initial: Values, undecayed: Sequence[tuple[int, int]] = ()
    ) -> None:
        self.spec = spec
        self._codec = spec.codec()
        edges = np.cumsum([0, *spec.fragments]).tolist()
        self.bounds: list[tuple[int, int]] = list(pairwise(edges))
        self.values = self._checked(initial)
        self.optimizer = OuterOptimizer(settings, self.bounds, undecayed)
        self.rounds = 0
        self._digests: dict[int, bytes] = {}  # by fragment, until it changes

    def fragment(self, fragment: int) -> Values:
        """A view. (F,)"""
        start, stop = self.bounds[fragment]
        return self.values[start:stop]

    def decoded(self, outcome: Outcome) -> Values:
        """(F,) the aggregate. raises: MalformedPayload, ValueError for an outcome that does not fit the run"""
        if not 0 <= outcome.fragment < len(self.bounds):
            raise ValueError(f"an outcome of fragment {outcome.fragment} of {len(self.bounds)}")
        shards = self.spec.sharding(outcome.fragment).bounds()
        if len(outcome.aggregates) != len(shards):
            raise ValueError(f"{len(outcome.aggregates)} aggregates for {len(shards)} shards")
        values = np.empty(shards[-1][1], np.float32)
        for shard, (payload, (start, stop)) in enumerate(zip(outcome.aggregates, shards, strict=True)):
            seed = seed_of(outcome.round, outcome.fragment, shard)
            values[start:stop] = self._codec.decode(payload, stop - start, seed)
        return values

    def apply(self, outcome: Outcome) -> None:
        """Every shard is decoded before anything changes. raises: MalformedPayload, ValueError"""
        update = self.decoded(outcome)
        self.optimizer.step(self.values, outcome.fragment, update)
        self._digests.pop(outcome.fragment, None)
        self.rounds += 1

    def hash(self) -> bytes:
        """32 bytes over the parameters and the optimiser's moments; only fragments that changed are hashed again."""
        for fragment, (start, stop) in enumerate(self.bounds):
            if fragment not in self._digests:
                digest = hashlib.sha256(self.values[start:stop].astype("<f4", copy=False).data)
                for moment in self.optimizer.moments.values():
                    digest.update(moment[start:stop].astype("<f4", copy=False).data)
                digest.update(self.optimizer.updates[fragment].to_bytes(8, "little"))
                self._digests[fragment] = digest.digest()
        return hashlib.sha256(b"".join(self._digests[fragment] for fragment in range(len(self.bounds)))).digest()

    def state(self) -> State:
        """Copies; the same at all replicas after the same round."""
        optimizer = {f"optimizer.{name}": value for name, value in self.optimizer.state().items()}
        return {"values": self.values.copy(), "rounds": self.rounds, **optimizer}

    def restore(self, state: State) -> None:
        """raises: ValueError for the state of another run; nothing is changed then"""
        values, rounds = state.get("values"), state.get("rounds")
        if not isinstance(values, np.ndarray) or not isinstance(rounds, int | np.ndarray) or int(rounds) < 0:
            raise ValueError("not a state of outer parameters")
        checked = self._checked(values)
        self.optimizer.restore(part_of(state, "optimizer."))
        self.values, self.rounds = checked, int(rounds)
        self._digests.clear()

    def _checked(self, values: Values) -> Values:
        if values.dtype != np.float32 or values.shape != (sum(self.spec.fragments),):
            raise ValueError(f"{values.dtype} {values.shape} for the {sum(self.spec.fragments)} parameters of the run")
        if not np.isfinite(values).all():
            raise ValueError("parameters that are not finite")
        return np.array(values, np.float32)


def part_of(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
