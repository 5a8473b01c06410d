"""A few peers with engines on a network in memory, whose hops keep their work and who compute others' again."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest
import torch
from node.engine_chain import CPU, local_model
from node.tiny_models import VOCABULARY, make_model, save_model
from simulation.session_world import SWARM, OpenGate

from shoal.incentives.audit_evidence import ChunkEvidence
from shoal.incentives.audit_threshold import Threshold, rounding_floor
from shoal.incentives.work_statement import Served
from shoal.node.audit_driver import AuditDriver, AuditOutcome, ServedSession
from shoal.node.audit_memory import AuditMemory
from shoal.node.audit_records import SessionRecords
from shoal.node.audit_service import AuditService
from shoal.node.engine import Engine
from shoal.node.model_source import LocalModel
from shoal.node.shard import Shard
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.identity import Identity
from shoal.swarm.manifest import Manifest
from shoal.swarm.records import Hosted, NodeRecord
from shoal.swarm.routing.chain_plan import ChainPlan, PlannedHop
from shoal.swarm.sampling import Sampling, decoded, encoded
from shoal.swarm.sessions.compute import Compute
from shoal.swarm.sessions.driver import Driver
from shoal.swarm.sessions.generation import ServedModel, TokenRequest
from shoal.swarm.sessions.hop_server import HopServer
from shoal.swarm.sessions.messages import Open
from shoal.swarm.sessions.session_events import Plan
from shoal.swarm.sessions.work_records import WorkRecord
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.transports.memory_link import Conditions
from shoal.swarm.units import Span

MODEL = ModelId("ab" * 32)
WHOLE, FRONT, BACK = Span(0, 6), Span(0, 3), Span(3, 6)
PROMPT = tuple((7 * i + 3) % VOCABULARY for i in range(40))
NEW = 60
SPELT_OUT = decoded(encoded(Sampling()))  # as commands and the HTTP API ask, who name every value
NEAR = Conditions(latency_s=(0.0, 0.001))
LIMIT = Threshold(rounding_floor("float32", "float32"), 1000, 0.0)


class Missing:
    """A layer that is not computed."""

    def forward(self, x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return x


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = tmp_path_factory.mktemp("audits")
    save_model(make_model("llama"), folder / "model")
    return local_model(folder / "model", folder / "cache")


class Peer:
    """A node that serves, keeps its work, and computes again what others did. lazy: without one layer"""

    def __init__(self, number: int, model: LocalModel, network: MemoryNetwork, *, lazy: bool = False) -> None:
        self.identity = Identity(bytes([60 + number]) * 32)
        shard = Shard.load(model, WHOLE, "float32", CPU)
        if lazy:
            shard.layers[3] = Missing()
        self.compute = Engine(shard, 1024)
        self.lying: Compute | None = None
        self.transport = network.join(self.peer)
        self.records = SessionRecords(self.identity, lambda _: model.manifest, anyio.current_time)

    @property
    def peer(self) -> PeerId:
        return self.identity.peer_id

    @property
    def key(self) -> bytes:
        return self.identity.public_key

    def find(self, model: ModelId, dtype: str, span: Span) -> Compute:
        return self.lying or self.compute

    def engine(self, model: ModelId) -> Engine | None:
        return self.compute

    async def threshold(self, served: Served, evidence: ChunkEvidence) -> Threshold:
        return LIMIT

    async def start(self) -> None:
        await HopServer(self.transport, OpenGate(), self, records=self).start()
        self.service = AuditService(self.transport, OpenGate(), self.identity, self.records, self)
        await self.service.start()

    def begin(self, request: Open, driver: PeerId) -> WorkRecord | None:
        """`WorkRecords`"""
        return self.records.begin(request, driver)

    def record(self) -> NodeRecord:
        hosted = Hosted(MODEL, "tiny", 4, WHOLE, "float32", 1.0, 0, 4096, 256)
        return NodeRecord(self.peer, SWARM, self.peer[-4:], "0", 1, (), (hosted,), {}, 0.0, 0.0)


class Planner:
    """Always the first hops that are left. blames: whether any may fail"""

    def __init__(self, model: LocalModel, hops: Sequence[tuple[Peer, Span]], *, blames: bool = False) -> None:
        self._model, self._hops, self._blames = model, hops, blames

    async def plan(self, request: TokenRequest, wanted: Plan, dtype: str | None) -> ChainPlan:
        chosen, at = [], wanted.span.start
        while at < wanted.span.stop:
            each, span = next((e, s) for e, s in self._hops if e.peer not in wanted.exclude and s.start == at)
            chosen.append(PlannedHop(each.peer, each.peer, span, ()))
            at = span.stop
        return ChainPlan(tuple(chosen), "float32")

    def blame(self, peer: PeerId) -> None:
        assert self._blames, f"{peer} was blamed"

    async def models(self) -> list[ServedModel]:
        return []

    async def manifest(self, model: ModelId) -> Manifest:
        return self._model.manifest

    async def text_files(self, model: ModelId) -> dict[str, bytes]:
        return {}


@asynccontextmanager
async def swarm(model: LocalModel, lazy: int | None, count: int = 5) -> AsyncIterator[tuple[MemoryNetwork, list[Peer]]]:
    async with MemoryNetwork(1, NEAR) as network:
        peers = [Peer(number, model, network, lazy=number == lazy) for number in range(count)]
        try:
            for each in peers:
                await each.start()
            yield network, peers
        finally:
            for each in peers:
                each.compute.stop()


async def served(
    network: MemoryNetwork,
    model: LocalModel,
    hops: Sequence[tuple[Peer, Span]],
    heard: list[AuditOutcome],
    name: str = "driver",
) -> tuple[AuditDriver, list[ServedSession]]:
    """One generation through these hops; what its driver then knows."""
    transport = network.join(PeerId(name))
    sessions = []
    async with anyio.create_task_group() as tasks:
        driver = Driver(transport, OpenGate(), Planner(model, hops), tasks, seed=3)
        async with driver.generate(TokenRequest(MODEL, PROMPT, NEW, SPELT_OUT)) as stream:
            async for _ in stream:
                pass
        keys = {each.peer: (each.key, span) for each, span in hops}
        for hop in stream.used().hops:
            key, span = keys[hop.peer]
            about = Served(bytes.fromhex(MODEL), "float32", "float32", span)
            sessions.append(ServedSession(hop.peer, key, hop.session, about, len(PROMPT) + NEW - 1))
    holders = [(each.peer, each.key) for each, _ in hops]
    return AuditDriver(transport, OpenGate(), lambda *_: holders, heard.append, AuditMemory(None)), sessions


def run(scenario: Callable[[], object]) -> None:
    async def bounded() -> None:
        with anyio.fail_after(60):
            await scenario()  # type: ignore[misc]

    anyio.run(bounded)


async def ended(peers: Sequence[Peer]) -> None:
    """The hops have heard that the session is over."""
    with anyio.fail_after(10):
        while any(each.compute.sessions for each in peers):  # noqa: ASYNC110  the engine has no event for it
            await anyio.sleep(0.01)
