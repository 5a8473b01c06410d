"""One peer's training: inner steps on its share of the data, an exchange when one is due, until the run is over.

Everything with a network, a disk or a screen is given from outside: `exchange`, `keeper`, `report`, `watch`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import anyio
import anyio.to_thread

from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.exchange import Exchange, Offer, Outcome, OutOfStep

from . import events
from .config import TrainingConfig
from .data.assignment import Share
from .evaluation import HeldOut, evaluate, outer_in_place
from .limits_watch import LimitWatch, too_much_used
from .parameter_layout import ParameterLayout
from .strategies.outer_loop import LiveParameters, OuterLoop, RoundApplied, RoundLost
from .strategies.strategy import Strategy
from .worker_data import TrainingData
from .worker_exchange import WatchedExchange
from .worker_progress import DataProgress
from .worker_steps import InnerSteps, StepResult

Report = Callable[[events.TrainingEvent], None]


@dataclass(frozen=True, slots=True, eq=False)
class Applied:
    """A round that the outer parameters hold now. before, after: 32 bytes"""

    outcome: Outcome
    before: bytes
    after: bytes
    loss: float | None  # mean of the own inner steps since the last round
    offer: Offer  # this peer's own


class Keeper(Protocol):
    """What outlives the process: the record, checkpoints, the log of outcomes, and what others give us of theirs."""

    def applied(self, worker: "Worker", applied: Applied) -> None:
        """On the event loop, at once after a round. raises: OutOfMemory (disk full)"""

    def lost(self, round_: int) -> None:
        """On the event loop: a round came to nothing, and its work goes into the next one."""

    def evaluated(self, worker: "Worker", round_: int, found: HeldOut) -> None: ...

    async def rounds_done(self, worker: "Worker") -> None:
        """Between two inner steps, with no round half applied: save a checkpoint when one is due."""

    async def catch_up(self, worker: "Worker", loop: OuterLoop, missed: OutOfStep) -> str:
        """Bring strategy, parameters and progress to the group's state. returns: where from. raises: Unavailable"""


class StepWatcher(Protocol):
    """Sees the state before and after each inner step. Neither raises."""

    def before_step(self) -> None: ...

    def after_step(self) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class WorkerParts:
    """What is trained, with what, on what. clock: monotonic seconds"""

    config: TrainingConfig
    me: PeerId
    data: TrainingData
    steps: InnerSteps
    parameters: LiveParameters
    layout: ParameterLayout
    strategy: Strategy
    progress: DataProgress
    clock: Callable[[], float] = anyio.current_time


class Worker:
    def __init__(
        self, parts: WorkerParts, exchange: Exchange, keeper: Keeper, report: Report, watch: LimitWatch
    ) -> None:
        self.parts, self.strategy, self.progress = parts, parts.strategy, parts.progress
        self.held_out: HeldOut | None = None  # the last evaluation
        self.missed: OutOfStep | None = None  # to be caught up with before the next step
        self._config = parts.config
        self._exchange = WatchedExchange(exchange, self._outcome_came)
        self._keeper, self._report, self._watch = keeper, report, watch
        self._offered: dict[tuple[int, int], tuple[Offer, Outcome]] = {}  # by round and fragment, until applied
        self._losses: list[float] = []
        self._round_began = self._last_tokens_at = 0.0
        self._evaluated_at = -1
        self._rounds_seen = 0
        self._waits = False
        self.traffic: Callable[[], tuple[int, int]] | None = None  # bytes sent and received so far
        self._traffic_before = (0, 0)
        self.watcher: StepWatcher | None = None  # of each inner step, on its thread

    async def run(self) -> events.Finished:
        """Until the rounds of the config are done; cancel it to stop before.

        raises: LossNotFinite, OutOfMemory, UsageError; Unavailable when this peer cannot catch up with the group
        """
        self._round_began = self._last_tokens_at = self.parts.clock()
        reason = ""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch.watch)
            loop = OuterLoop(
                self.strategy,
                self._exchange,
                self.parts.parameters,
                tasks,
                self._round_ended,
                self._config.group.patience,
            )
            loop.resume()
            while not (reason := self._over()):
                await self._watch.allowed(lambda why: self._report(events.Waiting(why)))
                if self.missed is not None:
                    await self._catch_up(loop, self.missed)
                try:
                    await self._turn(loop)
                except OutOfStep as missed:
                    self.missed = missed
                await self._after_rounds()
            tasks.cancel_scope.cancel()
        return events.Finished(self.strategy.outer.rounds, self.progress.tokens, reason, "")

    async def _catch_up(self, loop: OuterLoop, missed: OutOfStep) -> None:
        """raises: Unavailable, OutOfMemory"""
        source = await self._keeper.catch_up(self, loop, missed)
        self.missed = None
        self._offered.clear()
        self._losses.clear()
        self._report(events.CaughtUp(self.strategy.round, source))

    def _over(self) -> str:
        """Why the run is over; "" while it is not."""
        rounds = self._config.rounds
        return f"all {rounds} rounds are done" if rounds and self.strategy.outer.rounds >= rounds else ""

    async def _turn(self, loop: OuterLoop) -> None:
        """One inner step on the own share, or one round without any for a peer that has none yet. raises: OutOfStep"""
        round_ = self.strategy.round
        share = self.progress.share(self.parts.me, round_)
        if share is None:
            await loop.arrive()
            return
        result = await self._step(share, round_)
        self.progress.tokens += result.tokens
        if result.tokens:
            self._losses.append(result.loss)
        now = self.parts.clock()
        tokens_s = result.tokens / max(1e-9, now - self._last_tokens_at)
        step = self.strategy.step + 1
        self._report(events.StepDone(step, round_, result.loss, tokens_s, self.progress.tokens))
        await loop.after_step(result.tokens)
        self._last_tokens_at = self.parts.clock()

    async def _step(self, share: Share, round_: int) -> StepResult:
        """raises: LossNotFinite, OutOfMemory"""
        windows = self.progress.take(share, round_, self._config.batch.sequences)
        batch = self.parts.data.windows.batch(windows)

        def run() -> StepResult:
            if self.watcher is not None:
                self.watcher.before_step()
            result = self.parts.steps.run(batch, self.strategy.step, moves=not self.strategy.gradients)
            if self.watcher is not None:
                self.watcher.after_step()
            return result

        return await anyio.to_thread.run_sync(run)

    def _outcome_came(self, offer: Offer, outcome: Outcome) -> None:
        self._offered[outcome.round, outcome.fragment] = offer, outcome

    def _round_ended(self, ended: RoundApplied | RoundLost) -> None:
        match ended:
            case RoundLost():
                self._keeper.lost(ended.round)
                self._report(events.RoundLost(ended.round, ended.reason))
                if ended.stalled and not self._waits:
                    self._waits = True
                    self._report(events.Waiting(f"round {ended.round}: {ended.reason}; trying again"))
            case RoundApplied():
                if self._waits:
                    self._waits = False
                    self._report(events.Waiting(""))
                self._round_applied(ended)

    def _round_applied(self, ended: RoundApplied) -> None:
        offer, outcome = self._offered.pop((ended.round, ended.fragment))
        self.progress.after(outcome)
        loss = sum(self._losses) / len(self._losses) if self._losses else None
        self._losses.clear()
        now = self.parts.clock()
        sent, received = self._passed(ended)
        self._keeper.applied(self, Applied(outcome, offer.state, ended.state, loss, offer))
        self._report(
            events.RoundDone(
                ended.round,
                ended.fragment,
                tuple(peer for peer, _ in ended.contributors),
                sum(tokens for _, tokens in ended.contributors),
                loss,
                ended.state.hex(),
                sent,
                received,
                max(0.0, now - self._round_began - ended.waited_s),
                ended.waited_s,
            )
        )
        self._round_began = now

    def _passed(self, ended: RoundApplied) -> tuple[int, int]:
        """Bytes sent and received since the last round."""
        if self.traffic is None:
            return ended.sent_bytes, ended.received_bytes
        before, self._traffic_before = self._traffic_before, self.traffic()
        return self._traffic_before[0] - before[0], self._traffic_before[1] - before[1]

    async def _after_rounds(self) -> None:
        """What is due when a round has been applied: evaluation, checkpoint."""
        rounds = self.strategy.outer.rounds
        if rounds == self._rounds_seen:
            return
        self._rounds_seen = rounds
        if too_much_used(self._config.limits):
            self.parts.steps.use_less(f"the {self._config.limits.memory} of limits.memory")
            self._report(events.Noticed(f"limits.memory is reached: {self.parts.steps.micro} sequences at a time now"))
        every, held_out = self._config.evaluation.every, self.parts.data.held_out
        if every and held_out is not None and (rounds % every == 0 or self._over()):
            round_ = self.progress.roster.round
            outer = self.strategy.outer.values.copy()

            def measured() -> HeldOut:
                with outer_in_place(self.parts.parameters, outer):
                    return evaluate(self.parts.steps, held_out, self._config.evaluation.sequences)

            self.held_out = await anyio.to_thread.run_sync(measured)
            self._keeper.evaluated(self, round_, self.held_out)
            self._report(events.Evaluated(round_, self.held_out.loss, self.held_out.perplexity))
        await self._keeper.rounds_done(self)
        self._last_tokens_at = self._round_began = self.parts.clock()
