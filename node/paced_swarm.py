"""Two holders of each half of a model in one process: real engines, and the simulator's network in real time.

For tests and benchmarks of what travels between holders: each link is paced and delayed as asked, and one of the
holders can be killed, or made to leave, in the middle of an answer.
"""

from collections.abc import Awaitable, Callable
from typing import Self

import anyio
import torch

from shoal.compression.kv_levels import CHUNK_TOKENS
from shoal.compression.kv_profile import KvProfile
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.kv.cache_keeper import CacheKeeper
from shoal.swarm.kv.cache_streams import CacheReceiver
from shoal.swarm.manifest import Manifest
from shoal.swarm.records import Hosted, NodeRecord
from shoal.swarm.routing.chain_choice import plan_chain
from shoal.swarm.routing.chain_plan import ChainPlan, PlannedHop
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Compute
from shoal.swarm.sessions.driver import Driver
from shoal.swarm.sessions.generation import Exactness, Route, ServedModel, TokenRequest
from shoal.swarm.sessions.hop_server import HopServer
from shoal.swarm.sessions.session_events import Plan
from shoal.swarm.simulated.peer import SWARM
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.transports.memory_link import Conditions
from shoal.swarm.units import Span

from .engine import Engine
from .model_source import LocalModel
from .shard import Shard

FRONTS, BACKS = ("front 1", "front 2"), ("back 1", "back 2")


class OpenGate:
    swarm = SWARM
    certificate = b""

    def admit(self, peer: PeerId, certificate: bytes) -> None:
        return


class Holder:
    """`hop_server.Hosting` of one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def find(self, model: ModelId, dtype: str, span: Span) -> Compute:
        return self.engine


class PacedSwarm:
    """It is the driver's planner too; planning takes no time here."""

    def __init__(
        self,
        model: LocalModel,
        mbit_s: float = 1e6,
        rtt_ms: float = 0.0,
        kv_tokens: int = 4096,
        profile: KvProfile | None = None,
    ) -> None:
        self.model = model
        latency_s = rtt_ms / 2e3
        self._conditions = Conditions(latency_s=(latency_s, latency_s), bandwidth_byte_s=mbit_s * 125e3)
        layers = model.manifest.layers
        halves = (Span(0, 1 + layers // 2), Span(1 + layers // 2, layers + 2))
        self._spans: dict[PeerId, Span] = {}
        self._engines: dict[PeerId, Engine] = {}
        for names, span in zip((FRONTS, BACKS), halves, strict=True):
            shard = Shard.load(model, span, "float32", torch.device("cpu"))
            for name in names:
                self._spans[PeerId(name)] = span
                self._engines[PeerId(name)] = Engine(shard, kv_tokens, kv_profile=profile)
        self._servers: dict[PeerId, HopServer] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for engine in self._engines.values():
            engine.stop()

    async def running(self, work: Callable[[], Awaitable[None]]) -> None:
        async with MemoryNetwork(0, self._conditions) as self._network, anyio.create_task_group() as tasks:
            for peer, engine in self._engines.items():
                await engine.prepare_kv(self._spans[peer])  # slow the first time, and a session is short
                await self._join(peer)
            transport = self._network.join(PeerId("driver"))
            self._driver = Driver(transport, OpenGate(), self, tasks)
            await work()
            tasks.cancel_scope.cancel()

    async def _join(self, peer: PeerId) -> None:
        transport = self._network.join(peer)
        receiver = CacheReceiver(transport, OpenGate(), CacheKeeper())
        self._servers[peer] = HopServer(transport, OpenGate(), Holder(self._engines[peer]), receiver=receiver)
        await self._servers[peer].start()

    async def generate(
        self,
        prompt: tuple[int, ...],
        count: int,
        exactness: Exactness = "replay",
        kill_at: int | None = None,
        drain_at: int | None = None,
        victim: int = 0,
        sampling: Sampling = Sampling(),  # noqa: B008  frozen
    ) -> tuple[list[int], Route]:
        """kill_at: after so many tokens, and when the standbys have all of the prompt's chunks
        drain_at: after so many tokens; victim: who is killed or leaves, by its place in the chain
        """
        tokens: list[int] = []
        gone: PeerId | None = None
        request = TokenRequest(self.model.model_id, prompt, count, sampling, exactness=exactness)
        async with anyio.create_task_group() as tasks, self._driver.generate(request) as stream:
            async for choice in stream:
                tokens.append(choice.id)
                if gone is not None:
                    continue
                if kill_at is not None and len(tokens) >= kill_at:
                    if exactness == "replay" or self._is_kept(len(prompt) // CHUNK_TOKENS * CHUNK_TOKENS):
                        gone = stream.chain[victim]
                        self._network.kill(gone)
                elif drain_at is not None and len(tokens) >= drain_at:
                    gone = stream.chain[victim]
                    tasks.start_soon(self._drain, gone)
        if kill_at is not None and gone is not None:
            await self._join(gone)
        with anyio.fail_after(30.0):
            while any(engine.sessions for engine in self._engines.values()):  # noqa: ASYNC110  no hook to wait for
                await anyio.sleep(0.02)
        return tokens, stream.route

    async def _drain(self, peer: PeerId) -> None:
        await self._servers[peer].drain(30.0, lambda _: None)
        self._servers[peer].stay()

    def _is_kept(self, positions: int) -> bool:
        """Whether both hops' standbys have so much."""
        keepers = [server.receiver.keeper for server in self._servers.values()]
        held = [keeper.held(name) for keeper in keepers for name in keeper.names()]
        return len(held) == 2 and min(held) >= positions

    # The planner

    async def plan(self, request: TokenRequest, wanted: Plan, dtype: str | None) -> ChainPlan:
        manifest = self.model.manifest
        most, records = manifest.max_context, []
        for peer, span in self._spans.items():
            engine = self._engines[peer]
            free = engine.free_tokens
            hosted = Hosted(
                self.model.model_id, manifest.name, manifest.layers, span, "float32", engine.step_ms, 0, free, most
            )
            records.append(NodeRecord(peer, SWARM, peer, "0", 1, (f"/memory/{peer}",), (hosted,), {}, 0.0, 1e12))
        chain = plan_chain(
            records,
            request.model,
            span=wanted.span,
            dtype=dtype,
            exclude=wanted.exclude,
            max_hops=wanted.hops_left,
            first_from=wanted.before,
            last_to=wanted.after,
        )
        hops = tuple(PlannedHop(hop.peer, hop.peer, hop.span, (f"/memory/{hop.peer}",)) for hop in chain.hops)
        return ChainPlan(hops, chain.dtype)

    def blame(self, peer: PeerId) -> None:
        return

    async def models(self) -> list[ServedModel]:
        return []

    async def manifest(self, model: ModelId) -> Manifest:
        return self.model.manifest

    async def text_files(self, model: ModelId) -> dict[str, bytes]:
        return {}
