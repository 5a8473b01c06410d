"""A stage of a pipeline inside a running node: `worker_member.Trainer` with a place in a row."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import msgspec

from shoal.node.node import Node
from shoal.node.training import events
from shoal.node.training.limits_transport import ThrottledTransport
from shoal.node.training.worker_data import check_files
from shoal.node.training.worker_member import Preparation, Report, Trainer, TrainingOptions, other_nodes
from shoal.swarm.errors import UsageError
from shoal.swarm.rounds.events import RoundOptions
from shoal.swarm.rounds.meeting import Attendee
from shoal.swarm.rounds.run_identity import run_key

from .settings import stage_run
from .stage_choice import StageChooser

if TYPE_CHECKING:
    from shoal.node.training.worker import Worker, WorkerParts
    from shoal.node.training.worker_exchange import AttentiveExchange
    from shoal.node.training.worker_keeper import RunKeeper
    from shoal.node.training.worker_parts import Prepared
    from shoal.swarm.pipeline.step_driver import Redone

    from .stage_start import PreparedStage


class StageTrainer(Trainer):
    """The node's stage is known once it is up; only then the model is loaded.

    A round of one stage that waits holds all stages up, so a dead replica is forgotten sooner than elsewhere.
    """

    round_options = RoundOptions(unlisted_s=20.0, forget_s=20.0)

    def __init__(self, options: TrainingOptions, report: Report, node: Node, transport: ThrottledTransport) -> None:
        super().__init__(options, report, node, transport)
        self._pipeline = options.file.config.pipeline
        self._name = options.file.config.name
        self._chooser = StageChooser(node, self._name, self._pipeline.stages)
        self._ready: PreparedStage | None = None

    async def run(self, preparation: Preparation, stopping: anyio.CancelScope) -> events.Finished:
        """raises: ShoalError"""
        try:
            return await super().run(preparation, stopping)
        finally:
            self._chooser.leave()

    async def _prepared(self, preparation: Preparation) -> "Prepared":
        """raises: UsageError, VersionMismatch"""
        from .identity import check_identity, serve_identity
        from .stage_export import PipelineNote, write_note
        from .stage_start import PreparedStage

        file = self._options.file
        given = None if self._pipeline.stage == "auto" else self._pipeline.stage
        allowed = range(self._pipeline.stages) if self._has_data() else range(1, self._pipeline.stages)
        stage, reason = await self._chooser.choose(given, allowed)
        preparation.take_stage(stage)
        ready = await preparation.result()
        assert isinstance(ready, PreparedStage)
        self._ready = ready
        units = ready.plan.describe(stage)
        self._report(events.StageChosen(stage, ready.plan.count, units, reason))
        settings = msgspec.structs.replace(self._pipeline, stage=stage)
        config = msgspec.structs.replace(file.config, name=stage_run(self._name, stage), pipeline=settings)
        folder = self._options.folder / f"stage-{stage}"
        self._options = replace(self._options, file=msgspec.structs.replace(file, config=config), folder=folder)
        write_note(folder, PipelineNote(self._name, ready.plan.count, str(file.config.model), ready.model.config))
        await serve_identity(self._calls, ready)
        await check_identity(self._calls, await other_nodes(self._node), ready)
        return ready

    def _has_data(self) -> bool:
        try:
            check_files(self._options.file.config, self._options.file.base)
        except UsageError:
            return False
        return True

    @asynccontextmanager
    async def _working(
        self, parts: "WorkerParts", exchange: "AttentiveExchange", keeper: "RunKeeper"
    ) -> AsyncIterator["Worker"]:
        from shoal.swarm.pipeline.messages import Hop, protocol_of
        from shoal.swarm.pipeline.roll_call import RollCall
        from shoal.swarm.pipeline.stage_server import MAX_TENSOR_BYTES, StageServer
        from shoal.swarm.pipeline.step_driver import StepDriver
        from shoal.swarm.pipeline.work_links import WorkLinks
        from shoal.swarm.pipeline.work_server import serve_home

        from .byte_compute import ByteCompute, HomeByteCompute
        from .identity import pipeline_id, pipeline_settings
        from .stage_steps import StageSteps
        from .stage_worker import DriverWorker, StageWorker

        ready, config, watch = self._ready, parts.config, self._options.watch
        assert ready is not None
        assert isinstance(ready.steps, StageSteps)
        pipeline, protocol = pipeline_id(pipeline_settings(ready)), protocol_of(self._name)
        gate, transport, report = self._node.setup.gate, self._transport, self._report
        kind = HomeByteCompute if ready.stage == 0 else ByteCompute
        hidden = int(ready.model.config.get("hidden_size") or ready.model.config.get("n_embd") or 1)
        compute = kind(
            ready.steps,
            config.data.sequence,
            hidden,
            config.pipeline.wire,
            config.batch.sequences,
            ready.model.vocabulary,
        )
        async with anyio.create_task_group() as tasks:
            links = WorkLinks(transport, gate, protocol, pipeline, MAX_TENSOR_BYTES, tasks)
            if isinstance(compute, HomeByteCompute):
                roll = RollCall(transport, gate, ready.plan, pipeline, protocol, self._replicas, self._waits)
                in_flight = config.pipeline.in_flight or 2 * ready.plan.count
                me = Hop(transport.me, transport.addresses)
                driver = StepDriver(me, roll, links, compute, config.pipeline.deadline_s, in_flight, self._redone)
                await serve_home(transport, gate, protocol, pipeline, MAX_TENSOR_BYTES, driver.head)
                tasks.start_soon(roll.run, tasks)
                yield DriverWorker(parts, exchange, keeper, report, watch, driver, compute)
            else:
                server = StageServer(transport, gate, ready.plan, ready.stage, pipeline, protocol, compute, links)
                await server.serve()
                yield StageWorker(parts, exchange, keeper, report, watch, server, compute)
            tasks.cancel_scope.cancel()

    async def _replicas(self, stage: int) -> Sequence[Attendee]:
        """raises: Unavailable"""
        records = await self._node.directory.trainers(run_key(stage_run(self._name, stage)))
        return [Attendee(record.peer, record.addresses) for record in records]

    def _waits(self, reason: str) -> None:
        self._report(events.Waiting(reason))

    def _redone(self, redone: "Redone") -> None:
        self._report(
            events.MicrobatchRedone(
                redone.step, redone.microbatch, redone.culprit, redone.stage, redone.reason, redone.pause_s
            )
        )
