"""The training that runs in a node, if one does: started by `shoal train`, by itself or through the node's API."""

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import structlog
from anyio.streams.memory import MemoryObjectSendStream

from shoal.swarm.errors import SwarmUnreachable, UsageError

from .training import events
from .training.config import run_folder
from .training.config_file import read_config
from .training.limits_rate import Throttle
from .training.limits_transport import ThrottledTransport
from .training.limits_watch import LimitWatch

if TYPE_CHECKING:
    from .node import Node
    from .training.worker_member import Preparation, Report, TrainingOptions

log = structlog.get_logger(__name__)


class Trainings:
    """At most one at a time. `api.training.TrainingHost`. tasks: of the node, where those of the API run"""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self.node: Node  # set once it is there
        self._tasks = tasks
        self._transport: ThrottledTransport | None = None  # kept: a daemon takes each protocol once
        self._watch: LimitWatch | None = None

    async def train(self, options: "TrainingOptions", report: "Report", preparation: "Preparation") -> events.Finished:
        """Until it is over or the node stops. raises: ShoalError, alone or in a group"""
        return await self._train(options, report, preparation, anyio.CancelScope())

    async def start(self, config: str, resume: bool) -> AsyncIterator[dict[str, Any]]:
        """A training in this node: its events as JSON objects, the last one `finished` or `error`.

        Whoever no longer reads them ends the training. raises: UsageError before it begins
        """
        from .training.worker_data import check_files
        from .training.worker_member import TrainingOptions

        file = read_config(Path(config))
        if not file.config.pipeline.cut:
            check_files(file.config, file.base)
        self._refuse_second()
        home = self.node.options.home
        options = TrainingOptions(file, run_folder(file, home.root), home.cache, resume, LimitWatch(file.config.limits))
        self._watch = options.watch
        send, receive = anyio.create_memory_object_stream[dict[str, Any]](math.inf)
        stopping = anyio.CancelScope()
        self._tasks.start_soon(self._run, options, send, stopping)

        async def told() -> AsyncIterator[dict[str, Any]]:
            try:
                async for event in receive:
                    yield event
            finally:
                stopping.cancel()

        return told()

    def pause(self, paused: bool) -> None:
        """raises: SwarmUnreachable when none runs"""
        if self._watch is None:
            raise SwarmUnreachable("no training is running here")
        self._watch.paused = paused

    def _refuse_second(self) -> None:
        if self._watch is not None:
            raise UsageError("a training is running here already; end it first, or use another --home")

    async def _run(
        self, options: "TrainingOptions", send: MemoryObjectSendStream[dict[str, Any]], stopping: anyio.CancelScope
    ) -> None:
        """A training that the API asked for; its failure is told and is not the node's."""
        from .cli.failures import described
        from .training.worker_member import Preparation

        def report(event: events.TrainingEvent) -> None:
            send.send_nowait(events.as_json(event))

        with send:
            try:
                async with anyio.create_task_group() as tasks:
                    preparation = Preparation()
                    tasks.start_soon(preparation.run, options.file, options.cache, report)
                    finished = await self._train(options, report, preparation, stopping)
                    tasks.cancel_scope.cancel()
                report(finished)
            except Exception as error:
                log.exception("training_failed")
                code, message = described(error)
                send.send_nowait({"event": "error", "message": message, "exit_code": code})
            finally:
                self._watch = None

    async def _train(
        self, options: "TrainingOptions", report: "Report", preparation: "Preparation", stopping: anyio.CancelScope
    ) -> events.Finished:
        from .training.worker_member import trainer_of

        if self._transport is None:
            self._transport = ThrottledTransport(self.node.transport, Throttle(None))
        self._transport.throttle = Throttle.of(options.file.config.limits.upload)
        self._watch = options.watch
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._cancel_when_stopped, stopping)
                trainer = trainer_of(options, report, self.node, self._transport)
                finished = await trainer.run(preparation, stopping)
                tasks.cancel_scope.cancel()
            return finished
        finally:
            self._transport.clear()
            self._watch = None

    async def _cancel_when_stopped(self, scope: anyio.CancelScope) -> None:
        await self.node.stop.wait()
        scope.cancel()
