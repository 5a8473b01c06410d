"""A training inside a running node: it agrees with the other trainers, then works until it is over or stopped."""

import platform
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.from_thread
import anyio.to_thread
import msgspec

import shoal
from shoal.node.node import Node
from shoal.swarm.errors import Unavailable
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.rounds.events import RoundOptions
from shoal.swarm.rounds.exchange import OutOfStep
from shoal.swarm.rounds.run_identity import run_id

from . import events
from .config import ConfigFile
from .limits_transport import ThrottledTransport
from .limits_watch import LimitWatch
from .worker_exchange import AttentiveExchange
from .worker_link import measured_uplink
from .worker_start import prepared

if TYPE_CHECKING:
    from .worker import Worker, WorkerParts
    from .worker_agreement import Agreement
    from .worker_keeper import RunKeeper
    from .worker_parts import Prepared

Report = Callable[[events.TrainingEvent], None]
LINGER_S = 2.0  # after the last round, for peers that still miss something of it


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """folder: for records and checkpoints; cache: for tokens and models; watch: the volunteer's limits"""

    file: ConfigFile
    folder: Path
    cache: Path
    resume: bool
    watch: LimitWatch


class Preparation:
    """Model and data, on a thread that is left behind when the training is stopped meanwhile."""

    def __init__(self) -> None:
        self._done = anyio.Event()
        self._placed = anyio.Event()
        self._stage = 0
        self._result: Prepared | None = None

    async def run(self, file: ConfigFile, cache: Path, report: Report) -> None:
        """raises: UsageError, OutOfMemory, Unavailable"""

        def progress(what: str, done: int, total: int) -> None:
            anyio.from_thread.run_sync(report, events.Progress(what, done, total))

        if file.config.pipeline.cut:
            await self._placed.wait()
            settings = msgspec.structs.replace(file.config.pipeline, stage=self._stage)
            file = msgspec.structs.replace(file, config=msgspec.structs.replace(file.config, pipeline=settings))
        work = partial(prepared, file, cache, progress)
        self._result = await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
        self._done.set()

    def take_stage(self, stage: int) -> None:
        """Which part of the model is to be prepared, for a run in stages."""
        self._stage = stage
        self._placed.set()

    async def result(self) -> "Prepared":
        await self._done.wait()
        assert self._result is not None
        return self._result


def trainer_of(options: TrainingOptions, report: Report, node: Node, transport: ThrottledTransport) -> "Trainer":
    """For the whole model, or for one stage of it."""
    if options.file.config.pipeline.cut:
        from .pipeline.member import StageTrainer

        return StageTrainer(options, report, node, transport)
    return Trainer(options, report, node, transport)


class Trainer:
    """One training on a running node. round_options: None for the usual patience"""

    round_options: RoundOptions | None = None

    def __init__(self, options: TrainingOptions, report: Report, node: Node, transport: ThrottledTransport) -> None:
        self._options, self._report, self._node, self._transport = options, report, node, transport
        self._calls = MemberCalls(transport, node.setup.gate)
        self._parts: WorkerParts | None = None  # once there is something to be saved

    async def run(self, preparation: Preparation, stopping: anyio.CancelScope) -> events.Finished:
        """stopping: cancelled when the training shall end; what it has is saved then. raises: ShoalError"""
        finished: events.Finished | None = None
        with stopping:
            ready = await self._prepared(preparation)
            finished = await self._train(ready, await self._agreed(ready))
        rounds = self._parts.strategy.outer.rounds if self._parts else 0
        tokens = self._parts.progress.tokens if self._parts else 0
        return finished or events.Finished(rounds, tokens, "stopped", str(self._options.folder))

    async def _prepared(self, preparation: Preparation) -> "Prepared":
        return await preparation.result()

    @asynccontextmanager
    async def _working(
        self, parts: "WorkerParts", exchange: AttentiveExchange, keeper: "RunKeeper"
    ) -> AsyncIterator["Worker"]:
        """The worker, and around it what it needs on the network."""
        from .credit.credited_run import credited
        from .worker import Worker

        around = credited(self._node, self._calls, parts, exchange, keeper, self._options.folder)
        async with around as (kept, watcher):
            worker = Worker(parts, exchange, kept, self._report, self._options.watch)
            worker.watcher = watcher
            yield worker

    async def _agreed(self, ready: "Prepared") -> "Agreement":
        """The run as all peers that are there mean it. raises: VersionMismatch"""
        from .worker_agreement import Agreement
        from .worker_plan import planned, resolved, step_seconds

        agreement = Agreement(self._calls, self._node.transport.me, self._options.file, ready)
        there = await other_nodes(self._node)
        uplink = await measured_uplink(self._node.calls, there)
        heeded = agreement.heed(await agreement.ask(there))
        if self._options.file.auto and not heeded:
            step_s = await anyio.to_thread.run_sync(step_seconds, ready)
            agreement.settle(resolved(self._options.file, ready, step_s, uplink))
        await agreement.serve()
        agreement.heed(await agreement.ask(await other_nodes(self._node)))
        self._report(planned(ready, agreement.config, agreement.spec, uplink))
        return agreement

    async def _train(self, ready: "Prepared", agreement: "Agreement") -> events.Finished:
        from .worker_keeper import RunKeeper, RunPlace
        from .worker_network import serve_joiners
        from .worker_parts import parts_of
        from .worker_rounds import running_rounds

        config, spec = agreement.config, agreement.spec
        self._parts = parts = parts_of(ready, config, spec, self._node.transport.me)
        place = RunPlace(self._options.folder, spec, run_id(spec))
        keeper = RunKeeper(place, parts, config.output, self._report, self._calls, self._peers(agreement))
        try:
            if self._options.resume:
                await keeper.resume()
            else:
                keeper.refuse_older()
            keeper.begin(agreement.settings, _versions())
            agreement.round = lambda: keeper.standing()[1]
            await serve_joiners(self._calls, keeper, config.limits.upload_bit_s)
            behind = self._behind(agreement)
            first = parts.strategy.round
            rounds = running_rounds(self._node, self._transport, spec, first, self._report, behind, self.round_options)
            async with rounds as exchange, self._working(parts, exchange, keeper) as worker:
                worker.missed = await behind()
                worker.traffic = self._transport.traffic.so_far
                finished = await worker.run()
                await anyio.sleep(LINGER_S)
        finally:
            with anyio.CancelScope(shield=True):
                await self._close(keeper)
        return replace(finished, path=str(self._options.folder))

    async def _close(self, keeper: "RunKeeper") -> None:
        """What was learned is kept, as far as whole rounds go."""
        try:
            if keeper.unsaved:
                await keeper.save()
        finally:
            keeper.close()
            if self._parts is not None:
                self._parts.steps.close()

    def _behind(self, agreement: "Agreement") -> Callable[[], Awaitable[OutOfStep | None]]:
        async def behind() -> OutOfStep | None:
            return agreement.behind(await agreement.ask(await other_nodes(self._node)))

        return behind

    def _peers(self, agreement: "Agreement") -> Callable[[], Awaitable[list[PeerId]]]:
        async def peers() -> list[PeerId]:
            answers = await agreement.ask(await other_nodes(self._node))
            return [peer for peer, answer in answers.items() if answer.spec == agreement.spec]

        return peers


async def other_nodes(node: Node) -> list[PeerId]:
    """The nodes of the swarm that are there, nearest first."""
    try:
        records = await node.directory.nodes()
    except Unavailable:
        records = []
    rtt = node.pinger.book.rtt_ms()
    others = [record.peer for record in records if record.peer != node.transport.me]
    return sorted(others, key=lambda peer: rtt.get(peer, float("inf")))


def _versions() -> dict[str, str]:
    import torch
    import transformers

    found = {"shoal": shoal.__version__, "torch": str(torch.__version__), "transformers": transformers.__version__}
    return {**found, "python": platform.python_version(), "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
