"""Trainers that only pretend to compute, over any transport: what the shell's tests and benchmarks share."""

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import numpy as np

from shoal.swarm.errors import ShoalError
from shoal.swarm.identifiers import PeerId, SwarmId
from shoal.swarm.rounds.events import Fact, Job, JobResult, RoundOptions
from shoal.swarm.rounds.exchange import Offer, Outcome, RunSpec, seed_of
from shoal.swarm.rounds.meeting import Attendee, OpenMeeting
from shoal.swarm.rounds.round_exchange import RoundExchange, on_a_thread
from shoal.swarm.transport import Transport

QUICK = RoundOptions(beat_s=0.2, resend_s=0.6, nudge_s=1.5, leader_silence_s=2.0, owner_silence_s=2.0, founding_s=0.5)


def run_spec(count: int = 3 * 4096, shards: int = 3, **changes: object) -> RunSpec:
    plain: dict[str, object] = {
        "name": "reading",
        "model": "m" * 64,
        "data": "d" * 64,
        "strategy": "sparse",
        "fragments": (count,),
        "preset": "sparse",
        "shards": shards,
        "quorum": 2,
        "grace_s": 2.0,
        "deadline_s": 20.0,
    }
    return RunSpec(**{**plain, **changes})  # type: ignore[arg-type]


class AnyoneMayCome:
    swarm = SwarmId("5a" * 32)
    certificate = b""

    def admit(self, peer: PeerId, certificate: bytes) -> None:
        return


async def at_once(job: Job) -> JobResult:
    """Instead of on a thread: a virtual clock would jump while it waits for one."""
    return job.run()


@dataclass
class Trainer:
    """parameters are moved by aggregates alone; outcomes in order; facts as they were reported"""

    transport: Transport
    exchange: RoundExchange
    spec: RunSpec
    facts: list[Fact]
    round: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    errors: list[ShoalError] = field(default_factory=list)
    compute_s: float = 1.0  # inner steps of a round
    parameters: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = np.zeros(sum(self.spec.fragments), np.float32)

    @property
    def state(self) -> bytes:
        return hashlib.sha256(self.parameters.tobytes()).digest()

    def offer(self) -> Offer:
        common = np.random.default_rng(self.round)
        own = np.random.default_rng([self.round, *self.transport.me.encode()[-4:]])
        fragment = self.round % len(self.spec.fragments)
        count = self.spec.fragments[fragment]
        update = common.standard_normal(count, np.float32) + own.standard_normal(count, np.float32)
        codec, bounds = self.spec.codec(), self.spec.sharding(fragment).bounds()
        payloads = tuple(
            codec.encode(update[start:stop], seed_of(self.round, fragment, shard))
            for shard, (start, stop) in enumerate(bounds)
        )
        return Offer(self.round, fragment, payloads, 1000, self.state)

    async def train(self, rounds: int) -> None:
        """Up to and without round `rounds`; what goes wrong is kept, and ends it unless the round was skipped."""
        while self.round < rounds:
            await anyio.sleep(self.compute_s)
            try:
                outcome = await self.exchange.exchange(self.offer())
            except ShoalError as error:
                self.errors.append(error)
                if type(error).__name__ != "RoundSkipped":
                    return
                self.round += 1
                continue
            self.outcomes.append(outcome)
            codec = self.spec.codec()
            for shard, (start, stop) in enumerate(self.spec.sharding(outcome.fragment).bounds()):
                seed = seed_of(outcome.round, outcome.fragment, shard)
                self.parameters[start:stop] += codec.decode(outcome.aggregates[shard], stop - start, seed)
            self.round = outcome.round + 1


@asynccontextmanager
async def trainer(
    transport: Transport,
    meeting: OpenMeeting,
    spec: RunSpec,
    *,
    on_threads: bool = False,
    first_round: int = 0,
    options: RoundOptions = QUICK,
    **changes: Callable[..., object],
) -> AsyncIterator[Trainer]:
    facts: list[Fact] = []
    exchange = RoundExchange(
        transport,
        AnyoneMayCome(),
        meeting.of(Attendee(transport.me, transport.addresses)),
        spec,
        first_round=first_round,
        options=options,
        on_fact=facts.append,
        **{"run_job": on_a_thread if on_threads else at_once, **changes},  # type: ignore[arg-type]
    )
    async with exchange:
        yield Trainer(transport, exchange, spec, facts, first_round)
