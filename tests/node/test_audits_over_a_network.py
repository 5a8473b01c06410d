"""A session over real hops and engines, then its audit: the server shows its work, others redo it."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest
import torch
from node.engine_chain import CPU, local_model
from node.tiny_models import VOCABULARY, make_model, save_model
from simulation.session_world import OpenGate

from shoal.incentives.audit_evidence import ChunkEvidence
from shoal.incentives.audit_threshold import Finding, Threshold, rounding_floor
from shoal.incentives.work_statement import Served
from shoal.node import audit_calls
from shoal.node.audit_driver import AuditDriver, AuditOutcome, ServedSession
from shoal.node.audit_memory import AuditMemory
from shoal.node.audit_records import SessionRecords
from shoal.node.audit_service import AuditService
from shoal.node.engine import Engine
from shoal.node.model_source import LocalModel
from shoal.node.shard import Shard
from shoal.swarm.chain_plan import ChainPlan, PlannedHop
from shoal.swarm.compute import Compute
from shoal.swarm.driver import Driver
from shoal.swarm.generation import ServedModel, TokenRequest
from shoal.swarm.hop_server import HopServer
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.identity import Identity
from shoal.swarm.manifest import Manifest
from shoal.swarm.session_events import Plan
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.units import Span

MODEL = ModelId("ab" * 32)
WHOLE, FRONT, BACK = Span(0, 6), Span(0, 3), Span(3, 6)
PROMPT = tuple((7 * i + 3) % VOCABULARY for i in range(40))
NEW = 60
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
        self.transport = network.join(self.peer)
        self.records = SessionRecords(self.identity, lambda _: model.manifest, anyio.current_time)

    @property
    def peer(self) -> PeerId:
        return self.identity.peer_id

    @property
    def key(self) -> bytes:
        return self.identity.public_key

    def find(self, model: ModelId, dtype: str, span: Span) -> Compute:
        return self.compute

    def engine(self, model: ModelId) -> Engine | None:
        return self.compute

    async def threshold(self, served: Served, evidence: ChunkEvidence) -> Threshold:
        return LIMIT

    async def start(self) -> None:
        await HopServer(self.transport, OpenGate(), self, records=self.records).start()
        await AuditService(self.transport, OpenGate(), self.identity, self.records, self).start()


class Planner:
    """One chain, always."""

    def __init__(self, model: LocalModel, hops: Sequence[tuple[Peer, Span]]) -> None:
        self._model, self._hops = model, hops

    async def plan(self, request: TokenRequest, wanted: Plan, dtype: str | None) -> ChainPlan:
        hops = tuple(PlannedHop(each.peer, each.peer, span, ()) for each, span in self._hops)
        return ChainPlan(hops, "float32")

    def blame(self, peer: PeerId) -> None:
        raise AssertionError(f"{peer} was blamed")

    async def models(self) -> list[ServedModel]:
        return []

    async def manifest(self, model: ModelId) -> Manifest:
        return self._model.manifest

    async def text_files(self, model: ModelId) -> dict[str, bytes]:
        return {}


@asynccontextmanager
async def swarm(model: LocalModel, lazy: int | None, count: int = 5) -> AsyncIterator[tuple[MemoryNetwork, list[Peer]]]:
    async with MemoryNetwork(seed=1) as network:
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
        async with driver.generate(TokenRequest(MODEL, PROMPT, NEW)) as stream:
            opened = {}
            async for _ in stream:
                opened = opened or {link.at.peer: link.at.session for link in stream.links()}
        keys = {each.peer: (each.key, span) for each, span in hops}
        for peer, session in opened.items():
            key, span = keys[peer]
            about = Served(bytes.fromhex(MODEL), "float32", "float32", span)
            sessions.append(ServedSession(peer, key, session, about, len(PROMPT) + NEW - 1))
    holders = [(each.peer, each.key) for each, _ in hops]
    return AuditDriver(transport, OpenGate(), lambda _: holders, heard.append, AuditMemory(None)), sessions


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


def test_an_honest_newcomer_is_audited_in_every_chunk_and_found_sound(model: LocalModel) -> None:
    async def scenario() -> None:
        heard: list[AuditOutcome] = []
        async with swarm(model, None) as (network, peers):
            audits, sessions = await served(network, model, [(peers[0], FRONT), (peers[1], BACK)], heard)
            audits.holders = lambda _: [(p.peer, p.key) for p in peers]
            await ended(peers)
            for session in sessions:
                result = await audits.audit(session)
                assert result.judged >= 3
                assert result.case is not None
                assert not result.is_false
            assert {outcome.judgement.finding for outcome in heard} == {Finding.SOUND}
            assert all(audits.known.server(p.key).most == 0 for p in peers[:2])
            first = sessions[0]
            assert audits.known.server(first.key).sound == sum(o.subject == first.key for o in heard)

    run(scenario)


def test_a_hop_that_skips_a_layer_is_convicted_by_one_session(model: LocalModel) -> None:
    async def scenario() -> None:
        heard: list[AuditOutcome] = []
        async with swarm(model, lazy=1) as (network, peers):
            audits, sessions = await served(network, model, [(peers[0], FRONT), (peers[1], BACK)], heard)
            audits.holders = lambda _: [(p.peer, p.key) for p in (peers[0], *peers[2:])]
            await ended(peers)
            for session in sessions:
                await audits.audit(session)
            assert audits.known.server(peers[1].key).convicted
            assert not audits.known.server(peers[0].key).convicted
            against = [o for o in heard if o.subject == peers[1].key]
            assert {o.judgement.finding for o in against} == {Finding.GROSS}
            assert all(len(o.reports) == 4 for o in against)
            assert not any(s.convicted for s in audits.known.auditors.values())

    run(scenario)


def test_an_auditor_that_computes_falsely_harms_itself_only(model: LocalModel) -> None:
    """Peer 4 lacks a layer: whatever it replays looks false to it."""

    async def scenario() -> None:
        heard: list[AuditOutcome] = []
        async with swarm(model, lazy=4) as (network, peers):
            for attempt in range(8):  # until the draw has asked peer 4 first
                audits, sessions = await served(network, model, [(peers[0], WHOLE)], heard, f"driver{attempt}")
                audits.holders = lambda _: [(p.peer, p.key) for p in peers]
                await ended(peers)
                await audits.audit(sessions[0])
                assert not audits.known.server(peers[0].key).convicted
                if audits.known.auditor(peers[4].key).most > 0:
                    break
            assert audits.known.auditor(peers[4].key).most > 0
            assert {o.judgement.finding for o in heard} == {Finding.SOUND}
            assert {key for o in heard for key in o.judgement.dissenters} == {peers[4].key}

    run(scenario)


def test_work_is_signed_for_once_and_shown_to_its_driver_alone(model: LocalModel) -> None:
    async def scenario() -> None:
        async with swarm(model, None, 2) as (network, peers):
            _, sessions = await served(network, model, [(peers[0], WHOLE)], [])
            await ended(peers)
            records, name = peers[0].records, sessions[0].session
            first = records.statement(PeerId("driver"), name, bytes(32))
            assert records.statement(PeerId("driver"), name, bytes([1]) * 32) == first
            stranger = network.join(PeerId("stranger"))
            question = audit_calls.AskStatement(name, bytes(32))
            with pytest.raises(Exception, match="no session of yours"):
                await audit_calls.ask(stranger, OpenGate(), peers[0].peer, question, 5.0)

    run(scenario)
