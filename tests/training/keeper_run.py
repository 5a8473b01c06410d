"""Trainers with real folders whose rounds happen in one process and whose calls go over a network in memory."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from swarm.bundles import member
from training.tiny_run import tiny_config

from shoal.node.training import events
from shoal.node.training.config import ConfigFile
from shoal.node.training.limits import LimitSettings
from shoal.node.training.limits_watch import LimitWatch
from shoal.node.training.local_exchange import LocalGroup
from shoal.node.training.worker import Worker
from shoal.node.training.worker_keeper import RunKeeper, RunPlace
from shoal.node.training.worker_network import serve_joiners
from shoal.node.training.worker_parts import parts_of, run_spec
from shoal.node.training.worker_start import prepared as prepared_run
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.run_identity import run_id
from shoal.swarm.transports.memory import MemoryNetwork


@dataclass
class Trainer:
    worker: Worker
    keeper: RunKeeper
    told: list[Any]
    news: anyio.Event = field(default_factory=anyio.Event)

    def tell(self, event: object) -> None:
        self.told.append(event)
        self.news.set()

    async def happened(self) -> None:
        """Returns after the next event."""
        self.news = anyio.Event()
        await self.news.wait()

    @property
    def state(self) -> bytes:
        return self.worker.strategy.outer.hash()


class Run:
    """Trainers of one run; each has a folder, a place in the network and a part in the group."""

    def __init__(self, folder: Path, network: MemoryNetwork, file: ConfigFile) -> None:
        self.folder, self.network, self.file = folder, network, file
        self.group: LocalGroup | None = None
        self.trainers: dict[PeerId, Trainer] = {}

    async def start(self, name: PeerId, *, resume: bool = False) -> Trainer:
        prepared = prepared_run(self.file, self.folder / "cache")
        spec = run_spec(prepared, self.file.config)
        if self.group is None:
            self.group = LocalGroup(spec, ())
        calls = member(self.network.join(name))
        parts = parts_of(prepared, self.file.config, spec, name)
        told: list[Any] = []
        place = RunPlace(self.folder / name, spec, run_id(spec))
        keeper = RunKeeper(place, parts, self.file.config.output, told.append, calls, self._others)
        if resume:
            await keeper.resume()
        keeper.begin({}, {})
        await serve_joiners(calls, keeper)

        def tell(event: events.TrainingEvent) -> None:
            self.trainers[name].tell(event)

        worker = Worker(parts, self.group.exchange_of(name), keeper, tell, LimitWatch(LimitSettings()))
        self.trainers[name] = Trainer(worker, keeper, told)
        return self.trainers[name]

    async def _others(self) -> list[PeerId]:
        return [name for name in self.trainers if self.network.is_alive(name)]

    async def train(self, names: Sequence[PeerId], rounds: int) -> None:
        """Until each of them has applied so many rounds in all, then as a kill of all of them."""
        assert self.group is not None
        for name in names:
            self.group.join(name)

        async def until(name: PeerId) -> None:
            trainer = self.trainers[name]
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(trainer.worker.run)
                while trainer.worker.strategy.outer.rounds < rounds:
                    await trainer.happened()
                tasks.cancel_scope.cancel()
            assert self.group is not None
            self.group.leave(name)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for name in names:
                    tasks.start_soon(until, name)


@asynccontextmanager
async def run_of(folder: Path, **changes: Any) -> AsyncIterator[Run]:  # noqa: ANN401
    changes = {"rounds": 0, "evaluation": {"every": 0}, "output": {"checkpoint_every": 3}, **changes}
    async with MemoryNetwork() as network:
        run = Run(folder, network, tiny_config(folder, **changes))
        yield run
        for trainer in run.trainers.values():
            trainer.keeper.close()
