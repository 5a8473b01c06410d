"""Peers that train an array instead of a network, over the real strategies, codecs and exchange of one process."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial

import anyio
import numpy as np
from training.local_exchange import peers, run_spec

from shoal.compression.update_codec import Values
from shoal.node.training.local_exchange import LocalGroup
from shoal.node.training.strategies.outer_loop import OuterLoop, RoundApplied, RoundLost
from shoal.node.training.strategies.settings import StrategySettings
from shoal.node.training.strategies.strategy import Strategy
from shoal.swarm.rounds.exchange import Outcome, OutOfStep, RunSpec

Gradient = Callable[[int, int, Values], Values]  # peer, inner step from 0, parameters -> (N,)
TOKENS = 256


class ArrayParameters:
    """`LiveParameters` of an array."""

    def __init__(self, values: Values) -> None:
        self.values = values.copy()
        self.gradient = np.zeros_like(values)

    def read(self, start: int = 0, stop: int | None = None) -> Values:
        return self.values[start:stop].copy()

    def gradients(self, start: int = 0, stop: int | None = None) -> Values:
        return self.gradient[start:stop].copy()

    def write(self, start: int, values: Values) -> None:
        self.values[start : start + len(values)] = values


@dataclass
class Replica:
    """One peer: what it holds and what was reported to it; after each step, its live and its outer parameters."""

    index: int
    strategy: Strategy
    parameters: ArrayParameters
    rate: float  # of the inner SGD
    reports: list[RoundApplied | RoundLost] = field(default_factory=list)
    live: list[Values] = field(default_factory=list)
    outer: list[Values] = field(default_factory=list)

    def applied(self) -> list[tuple[int, bytes]]:
        return [(report.round, report.state) for report in self.reports if isinstance(report, RoundApplied)]


def spec_of(settings: StrategySettings, fragments: Collection[int], shards: int = 2, quorum: int = 1) -> RunSpec:
    return run_spec(tuple(fragments), settings.preset, shards, quorum, settings.reducer_decay)


def replicas(settings: StrategySettings, spec: RunSpec, initial: Values, count: int, rate: float) -> list[Replica]:
    return [Replica(index, Strategy(settings, spec, initial), ArrayParameters(initial), rate) for index in range(count)]


def train(
    group: LocalGroup,
    trained: list[Replica],
    gradient: Gradient,
    steps: int,
    tokens: Callable[[int], int] = lambda _: 1,
) -> None:
    """Every replica takes these steps, at the same time as the others. tokens: of a step, by peer"""
    anyio.run(partial(_train_all, group, trained, gradient, steps, tokens))


async def _train_all(
    group: LocalGroup, trained: list[Replica], gradient: Gradient, steps: int, tokens: Callable[[int], int]
) -> None:
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group_tasks:
            for replica in trained:
                group_tasks.start_soon(_train, group, replica, gradient, steps, tokens(replica.index))


async def _train(group: LocalGroup, replica: Replica, gradient: Gradient, steps: int, tokens: int) -> None:
    async with anyio.create_task_group() as tasks:
        exchange = group.exchange_of(peers(replica.index + 1)[-1])
        loop = OuterLoop(
            replica.strategy, exchange, replica.parameters, tasks, replica.reports.append, patience=2, retry_s=0
        )
        loop.resume()
        for _ in range(steps):
            parameters = replica.parameters
            parameters.gradient = gradient(replica.index, replica.strategy.step, parameters.values)
            if not replica.strategy.gradients:
                parameters.values -= np.float32(replica.rate) * parameters.gradient
            try:
                await loop.after_step(tokens)
            except OutOfStep as behind:
                missed = [outcome for outcome in group.outcomes if outcome.round >= replica.strategy.round - 1]
                loop.catch_up([(outcome, _holds(outcome, replica.index)) for outcome in missed], behind.round)
            replica.live.append(parameters.values.copy())
            replica.outer.append(replica.strategy.outer.values.copy())
        tasks.cancel_scope.cancel()


def _holds(outcome: Outcome, index: int) -> bool:
    return any(peer == peers(index + 1)[-1] for peer, _ in outcome.contributors)


def dyadic_gradient(peer: int, step: int, values: Values) -> Values:
    """Small multiples of 1/4 that depend on all three: sums and means over four peers of equal weight are exact."""
    drawn = np.random.default_rng([peer, step]).integers(-4, 5, len(values)).astype(np.float32)
    return np.asarray(drawn + np.sign(values) * np.float32(0.25), np.float32)


def noisy_gradient(peer: int, step: int, values: Values) -> Values:
    """Of a quadratic with its minimum at 1, with noise."""
    noise = np.random.default_rng([peer, step]).standard_normal(len(values)).astype(np.float32)
    return (values - np.float32(1)) + np.float32(0.3) * noise
