"""A pipeline in one process: real stages, streams and steps over a network in memory, without outer rounds."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import anyio
import numpy as np
import torch
from swarm.bundles import OpenGate
from torch import nn
from training.tiny_run import CONFIG, tiny_model

from shoal.node import model_source
from shoal.node.training.config import BatchSettings
from shoal.node.training.data.windows import Batch
from shoal.node.training.model_export import export_model
from shoal.node.training.optimizers.inner import InnerOptimizer
from shoal.node.training.optimizers.inner_settings import InnerSettings
from shoal.node.training.pipeline.byte_compute import ByteCompute, HomeByteCompute
from shoal.node.training.pipeline.stage_loading import is_tied, load_stage
from shoal.node.training.pipeline.stage_steps import StageSteps
from shoal.node.training.worker_compiler import uncompiled
from shoal.node.training.worker_model import find_model, load_module
from shoal.node.training.worker_steps import InnerSteps
from shoal.swarm.identifiers import PeerId
from shoal.swarm.pipeline.messages import Hop, protocol_of
from shoal.swarm.pipeline.roll_call import RollCall
from shoal.swarm.pipeline.stage_plan import StagePlan, even_plan
from shoal.swarm.pipeline.stage_server import MAX_TENSOR_BYTES, StageServer
from shoal.swarm.pipeline.step_driver import Redone, StepDriver, Stepped
from shoal.swarm.pipeline.work_links import WorkLinks
from shoal.swarm.pipeline.work_server import serve_home
from shoal.swarm.rounds.meeting import Attendee
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.transports.memory_link import Conditions

Kind = TypeVar("Kind", bound=ByteCompute)
PIPELINE, PROTOCOL = "p" * 64, protocol_of("test")
LENGTH = 16
QUICK = Conditions(latency_s=(0.0005, 0.001))


def weighted_model(folder: Path, **changes: object) -> Path:
    """A folder with weights; the unsplit model drawn by transformers."""
    model = tiny_model(folder / "bare")
    (model / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    files = find_model(str(model), "random", folder)
    module = load_module(files, 3)
    parameters = {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}
    export_model(parameters, files.texts, folder / "model")
    return folder / "model"


def unsplit(model: Path, cache: Path, inner: InnerSettings, settings: BatchSettings) -> InnerSteps:
    module = load_module(find_model(str(model), "weights", cache), 0)
    with uncompiled():
        optimizer = InnerOptimizer(inner, module.named_parameters())
    return InnerSteps(module, optimizer, settings, torch.device("cpu"))


def drawn_batch(step: int, rows: int) -> Batch:
    ids = np.random.default_rng(step).integers(0, 256, (rows, LENGTH + 1))
    return Batch(ids[:, :-1].astype(np.int64).copy(), ids[:, 1:].astype(np.int64).copy(), None)


def parameters_of(model: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}


@dataclass
class Replica:
    """One peer of a stage above 0, which takes steps for as long as it lives."""

    peer: PeerId
    server: StageServer
    compute: ByteCompute
    steps_taken: int = 0

    async def train(self) -> None:
        while True:
            gathered = await self.server.gather()
            if gathered is None:
                return
            steps = self.compute.steps
            steps.settled(gathered.norm, gathered.loss, gathered.step, gathered.sequences, moves=True)
            self.server.advance()
            self.steps_taken += 1


@dataclass
class Driver:
    peer: PeerId
    driver: StepDriver
    home: HomeByteCompute
    redone: list[Redone]

    async def step(self, batch: Batch, micro: int) -> Stepped:
        works = self.home.works(batch, micro, self.peer, learns=True)
        done = await self.driver.learn(works)
        self.home.steps.settled(done.norm, done.loss, done.step, done.sequences, moves=True)
        return done


@dataclass
class Pipeline:
    """A network with as many replicas as `start` and `drive` are asked for."""

    model: Path
    cache: Path
    inner: InnerSettings
    settings: BatchSettings
    stages: int
    tasks: Any
    network: MemoryNetwork
    wire: str = "float32"
    deadline_s: float = 20.0
    in_flight: int = 6
    present: dict[int, list[Attendee]] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config = json.loads((self.model / "config.json").read_text())
        self.plan: StagePlan = even_plan(self.config["num_hidden_layers"], self.stages, tied=is_tied(self.config))

    def compute(self, stage: int, kind: type[Kind]) -> Kind:
        module = load_stage(self.config, self.plan, stage, model_source.resolve(str(self.model), self.cache), 0)
        with uncompiled():
            optimizer = InnerOptimizer(self.inner, module.model.named_parameters())
        steps = StageSteps(module, optimizer, self.settings, torch.device("cpu"))
        most = self.settings.sequences
        return kind(steps, LENGTH, self.config["hidden_size"], self.wire, most, self.config["vocab_size"])

    async def start(
        self, stage: int, name: str, change: Callable[[StageServer], None] = lambda _: None, listed: bool = True
    ) -> Replica:
        transport = self.network.join(PeerId(name))
        links = WorkLinks(transport, OpenGate(), PROTOCOL, PIPELINE, MAX_TENSOR_BYTES, self.tasks)
        compute = self.compute(stage, ByteCompute)
        server = StageServer(transport, OpenGate(), self.plan, stage, PIPELINE, PROTOCOL, compute, links)
        change(server)
        await server.serve()
        replica = Replica(PeerId(name), server, compute)
        self.tasks.start_soon(replica.train)
        if listed:
            self.present.setdefault(stage, []).append(Attendee(PeerId(name), ()))
        return replica

    async def drive(self, name: str) -> Driver:
        transport = self.network.join(PeerId(name))
        links = WorkLinks(transport, OpenGate(), PROTOCOL, PIPELINE, MAX_TENSOR_BYTES, self.tasks)
        home, redone = self.compute(0, HomeByteCompute), list[Redone]()

        async def finder(stage: int) -> Sequence[Attendee]:
            return self.present.get(stage, [])

        roll = RollCall(transport, OpenGate(), self.plan, PIPELINE, PROTOCOL, finder, self.waiting.append)
        me = Hop(PeerId(name), ())
        driver = StepDriver(me, roll, links, home, self.deadline_s, self.in_flight, redone.append)
        await serve_home(transport, OpenGate(), PROTOCOL, PIPELINE, MAX_TENSOR_BYTES, driver.head)
        self.tasks.start_soon(roll.run, self.tasks)
        return Driver(PeerId(name), driver, home, redone)


@asynccontextmanager
async def pipeline(
    model: Path,
    cache: Path,
    stages: int,
    inner: InnerSettings,
    settings: BatchSettings,
    **more: Any,  # noqa: ANN401  of Pipeline
) -> AsyncIterator[Pipeline]:
    torch.set_num_threads(1)
    with anyio.fail_after(60):
        async with MemoryNetwork(seed=1, conditions=QUICK) as network, anyio.create_task_group() as tasks:
            yield Pipeline(model, cache, inner, settings, stages, tasks, network, **more)
            tasks.cancel_scope.cancel()
