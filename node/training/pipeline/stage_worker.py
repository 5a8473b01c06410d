"""The two kinds of trainers of a pipeline: with the data (stage 0), and with what comes from the stage before."""

from collections.abc import Callable

import anyio

from shoal.node.training import events
from shoal.node.training.data.assignment import Share
from shoal.node.training.data.windows import Batch
from shoal.node.training.limits_watch import LimitWatch
from shoal.node.training.strategies.outer_loop import OuterLoop
from shoal.node.training.strategies.strategy import Strategy
from shoal.node.training.worker import Keeper, Report, Worker, WorkerParts
from shoal.node.training.worker_steps import MOST_BROKEN, LossNotFinite, StepResult
from shoal.swarm.pipeline.stage_server import Gathered, StageServer
from shoal.swarm.pipeline.step_driver import StepDriver
from shoal.swarm.rounds.exchange import Exchange, OutOfStep

from .byte_compute import ByteCompute, HomeByteCompute
from .compute_thread import STEP

LEAVE_S = 0.2  # for the last words on open streams


def keep_time(strategy: Strategy, step: int) -> None:
    """Rounds of all stages are due after the same inner steps, of which some may have begun before this peer came.

    Else a replica that came late would be waited for by its stage, and wait itself for work that its stage holds up.
    step: of the pipeline, from 0; the strategy has not counted it yet
    """
    strategy.align(1 + strategy.schedule.left(step + 1))


class AttentiveWatch(LimitWatch):
    """While the limits say no, the other stages go on without this node."""

    def __init__(self, watch: LimitWatch, leave: Callable[[str], None]) -> None:
        self._watch, self._leave = watch, leave

    async def watch(self) -> None:
        await self._watch.watch()

    async def allowed(self, told: Callable[[str], None]) -> None:
        def heard(reason: str) -> None:
            if reason:
                self._leave(reason)
            told(reason)

        await self._watch.allowed(heard)


class StageWorker(Worker):
    """A replica of a stage above 0. It ends when its drivers say that the run is over, whatever its own rounds say."""

    def __init__(
        self,
        parts: WorkerParts,
        exchange: Exchange,
        keeper: Keeper,
        report: Report,
        watch: LimitWatch,
        server: StageServer,
        compute: ByteCompute,
    ) -> None:
        super().__init__(parts, exchange, keeper, report, AttentiveWatch(watch, server.away))
        self._server, self._compute = server, compute
        self._gathered: Gathered | None = None
        self._ended = ""
        self._idles = False

    async def run(self) -> events.Finished:
        try:
            return await super().run()
        finally:
            self._server.away("it has ended its training", final=True)
            with anyio.CancelScope(shield=True):
                await anyio.sleep(LEAVE_S)
            self._compute.close()

    def _over(self) -> str:
        return self._ended

    async def _turn(self, loop: OuterLoop) -> None:
        """raises: OutOfStep"""
        if self.progress.share(self.parts.me, self.strategy.round) is not None:
            if self.strategy.gradients:
                await self._compute.discard()
            self._gathered = await self._server.gather(self._idle)
            if self._gathered is None:
                self._ended = self._server.ended
                return
        await super()._turn(loop)

    def _idle(self, idle: bool) -> None:
        if idle != self._idles:
            self._idles = idle
            why = "no replica of stage 0 that is ready wants this stage's work; Ctrl-C stops"
            self._report(events.Waiting(why if idle else ""))

    async def _step(self, share: Share, round_: int) -> StepResult:
        gathered, steps, strategy = self._gathered, self._compute.steps, self.strategy
        assert gathered is not None
        keep_time(strategy, gathered.step)
        tokens = gathered.sequences * self._config.data.sequence
        result = await self._compute.thread.run(
            lambda: steps.settled(gathered.norm, gathered.loss, strategy.step, tokens, moves=not strategy.gradients),
            STEP,
        )
        self._server.advance()
        return result

    async def _catch_up(self, loop: OuterLoop, missed: OutOfStep) -> None:
        """raises: Unavailable, OutOfMemory"""
        self._server.away("it catches up with the other replicas of its stage")
        await super()._catch_up(loop, missed)


class DriverWorker(Worker):
    """A replica of stage 0: it reads the data and drives the others."""

    def __init__(
        self,
        parts: WorkerParts,
        exchange: Exchange,
        keeper: Keeper,
        report: Report,
        watch: LimitWatch,
        driver: StepDriver,
        home: HomeByteCompute,
    ) -> None:
        super().__init__(parts, exchange, keeper, report, AttentiveWatch(watch, driver.leave))
        self._driver, self._home = driver, home
        self._broken = 0
        home.steps.measured = self._measured

    async def run(self) -> events.Finished:
        try:
            finished = await super().run()
            await self._driver.end(finished.reason)
            return finished
        finally:
            self._driver.leave("it has ended its training")
            with anyio.CancelScope(shield=True):
                await anyio.sleep(LEAVE_S)
            self._home.close()

    async def _step(self, share: Share, round_: int) -> StepResult:
        """raises: LossNotFinite"""
        windows = self.progress.take(share, round_, self._config.batch.sequences)
        batch = self.parts.data.windows.batch(windows)
        steps, strategy = self._home.steps, self.strategy
        works = self._home.works(batch, steps.micro, self.parts.me, learns=True)
        done = await self._driver.learn(works)
        keep_time(strategy, done.step)
        result = await self._home.thread.run(
            lambda: steps.settled(done.norm, done.loss, strategy.step, batch.tokens, moves=not strategy.gradients), STEP
        )
        self._broken = 0 if result.tokens else self._broken + 1
        if self._broken >= MOST_BROKEN:
            raise LossNotFinite(
                f"loss or gradient are no numbers any more (loss {done.loss}, {self._broken} steps in a row); "
                f"lower inner.learning_rate, which is {steps.optimizer.settings.learning_rate:g}, or look at the data"
            )
        return result

    async def _measured(self, batch: Batch) -> float:
        """The loss of a batch through all stages, nothing learned."""
        total = 0.0
        for work in self._home.works(batch, max(1, self._home.steps.micro), self.parts.me, learns=False):
            total += await self._driver.measure(work) * work.sequences
        return total / len(batch.inputs)

    async def _catch_up(self, loop: OuterLoop, missed: OutOfStep) -> None:
        """raises: Unavailable, OutOfMemory"""
        self._driver.leave("it catches up with the other replicas of stage 0")
        await super()._catch_up(loop, missed)
