"""A simulated volunteer that trains: the real machine and codecs, and a trainer that only pretends to compute.

Its parameters are a real vector, moved by the aggregates alone, so that "all replicas are equal" is about bits.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from shoal.compression.update_codec import Values
from shoal.swarm.identifiers import PeerId

from .events import Finish, Job, JobResult, RoundOptions
from .exchange import Offer, Outcome, RunSpec, seed_of
from .machine import RoundMachine
from .reducing import ReduceJob, Reduction


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """values: (N,) float32, never written to; state: the hash of them"""

    values: Values
    state: bytes

    @classmethod
    def initial(cls, count: int) -> "Parameters":
        return cls.of(np.zeros(count, np.float32))

    @classmethod
    def of(cls, values: Values) -> "Parameters":
        return cls(values, hashlib.sha256(values.tobytes()).digest())


class Replicas:
    """Applies aggregates; as replicas are equal, each step is computed once for all."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._known: dict[tuple[bytes, int, tuple[bytes, ...]], Parameters] = {}

    def apply(self, parameters: Parameters, outcome: Outcome) -> Parameters:
        key = (parameters.state, outcome.round, outcome.aggregates)
        if key not in self._known:
            codec, values = self._spec.codec(), parameters.values.copy()
            for shard, (start, stop) in enumerate(self._spec.sharding(outcome.fragment).bounds()):
                seed = seed_of(outcome.round, outcome.fragment, shard)
                values[start:stop] += codec.decode(outcome.aggregates[shard], stop - start, seed)
            self._known[key] = Parameters.of(values)
        return self._known[key]


def tampered(job: Job, result: JobResult) -> JobResult:
    """What a lying owner makes of its work: the opposite of the aggregate, with a residual that says nothing."""
    if not isinstance(job, ReduceJob) or not isinstance(result, Reduction) or result.payload is None:
        return result
    seed = seed_of(job.round, job.fragment, job.shard)
    codec = job.spec.codec()
    values = codec.decode(result.payload, len(job.feedback.residual), seed)
    return replace(result, payload=codec.encode(-values, seed))


class SimulatedTrainer:
    """alive, round and parameters are what the simulation looks at; finished: outcome or error of each exchange."""

    def __init__(
        self,
        peer: PeerId,
        spec: RunSpec,
        options: RoundOptions,
        replicas: Replicas,
        round_: int,
        parameters: Parameters,
        compute_s: float,
        seed: int,
        now: float,
        tamper: Callable[[Job, JobResult], JobResult] | None = None,
    ) -> None:
        self.peer = peer
        self.spec = spec
        self.alive = True
        self.round = round_
        self.parameters = parameters
        self.compute_s = compute_s
        self.finished: list[Finish] = []
        self.named_liars: set[PeerId] = set()
        self.machine = RoundMachine(peer, spec, round_, options, random.Random(seed), now)
        self._replicas = replicas
        self._seed = seed
        self._tamper = tamper

    def offer(self) -> Offer:
        """An update that shares a direction with everybody's of the round, and has a part of its own."""
        fragment = self.round % len(self.spec.fragments)
        count = self.spec.fragments[fragment]
        common = np.random.default_rng(self.round).standard_normal(count, np.float32)
        own = np.random.default_rng((self.round, self._seed)).standard_normal(count, np.float32)
        update = common + own
        codec = self.spec.codec()
        payloads = tuple(
            codec.encode(update[start:stop], seed_of(self.round, fragment, shard))
            for shard, (start, stop) in enumerate(self.spec.sharding(fragment).bounds())
        )
        return Offer(self.round, fragment, payloads, 1000 + self._seed % 1000, self.parameters.state)

    def run(self, job: Job) -> JobResult:
        result = job.run()
        return result if self._tamper is None else self._tamper(job, result)

    def apply(self, outcome: Outcome) -> None:
        self.parameters = self._replicas.apply(self.parameters, outcome)
        self.round = outcome.round + 1
