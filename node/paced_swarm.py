"""Two holders of each half of a model in one process, or whom one names: real engines, and the simulator's network in
real time.

For tests and benchmarks of what travels between holders: each link is paced and delayed as asked, and one of the
holders can be killed, or made to leave, in the middle of an answer.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, cast

import anyio
import torch

from shoal.compression.kv_levels import CHUNK_TOKENS
from shoal.compression.kv_profile import KvProfile
from shoal.swarm.identifiers import ModelId, PeerId, SessionId
from shoal.swarm.kv.cache_keeper import CacheKeeper
from shoal.swarm.kv.cache_streams import CacheReceiver
from shoal.swarm.manifest import Manifest
from shoal.swarm.records import Hosted, NodeRecord
from shoal.swarm.routing.chain_choice import plan_chain
from shoal.swarm.routing.chain_plan import ChainPlan, PlannedHop, PrefillPlan
from shoal.swarm.routing.prefill_choice import PrefillChoice, choose_prefill
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Compute, Done, Work
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


class Slowed:
    """An engine on a machine that takes `factor` times as long as this one, to compute and to code."""

    def __init__(self, engine: Engine, factor: float) -> None:
        self._engine = engine
        self._factor = factor

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  all else is the engine's
        return getattr(self._engine, name)

    async def run(self, work: Work) -> Done:
        done = await self._engine.run(work)
        await anyio.sleep((self._factor - 1) * done.compute_s)
        return replace(done, compute_s=self._factor * done.compute_s)

    async def import_kv(
        self, session: SessionId, start: int, chunks: Sequence[bytes], history: tuple[int, ...] = ()
    ) -> int:
        began_s = anyio.current_time()
        held = await self._engine.import_kv(session, start, chunks, history)
        await anyio.sleep((self._factor - 1) * (anyio.current_time() - began_s))
        return held


class Holder:
    """`hop_server.Hosting` of one engine."""

    def __init__(self, engine: Compute) -> None:
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
        layout: Mapping[str, Span] | None = None,
        slowed: Mapping[str, float] | None = None,
        prefillers: Collection[str] = (),
    ) -> None:
        """layout: names and spans of the holders; slowed: who takes how many times as long as this machine would;
        prefillers: of those, who computes prompts only
        """
        self.model = model
        self.slowed = {PeerId(name): factor for name, factor in (slowed or {}).items()}
        self._prefillers = frozenset(map(PeerId, prefillers))
        self._link_byte_s = mbit_s * 125e3
        self._rtt_ms = rtt_ms
        latency_s = rtt_ms / 2e3
        self._conditions = Conditions(latency_s=(latency_s, latency_s), bandwidth_byte_s=mbit_s * 125e3)
        layers = model.manifest.layers
        front, back = Span(0, 1 + layers // 2), Span(1 + layers // 2, layers + 2)
        layout = layout or {**dict.fromkeys(FRONTS, front), **dict.fromkeys(BACKS, back)}
        self._spans = {PeerId(name): span for name, span in layout.items()}
        shards = {s: Shard.load(model, s, "float32", torch.device("cpu")) for s in dict.fromkeys(layout.values())}
        self._engines = {
            peer: Engine(shards[span], kv_tokens, kv_profile=profile) for peer, span in self._spans.items()
        }
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
        self._servers[peer] = HopServer(transport, OpenGate(), Holder(self._served(peer)), receiver=receiver)
        await self._servers[peer].start()

    async def generate(
        self,
        prompt: tuple[int, ...],
        count: int,
        exactness: Exactness = "replay",
        kill_at: int | None = None,
        drain_at: int | None = None,
        victim: int = 0,
        prefill: str = "never",
        sampling: Sampling = Sampling(),  # noqa: B008  frozen
    ) -> tuple[list[int], Route]:
        """kill_at: after so many tokens, and when the standbys have all of the prompt's chunks
        drain_at: after so many tokens; victim: who is killed or leaves, by its place in the chain
        """
        tokens: list[int] = []
        gone: PeerId | None = None
        request = TokenRequest(self.model.model_id, prompt, count, sampling, exactness=exactness, prefill=prefill)
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

    def _served(self, peer: PeerId) -> Compute:
        engine = self._engines[peer]
        return cast("Compute", Slowed(engine, self.slowed[peer])) if peer in self.slowed else engine

    # The planner

    def records(self) -> list[NodeRecord]:
        manifest, records = self.model.manifest, []
        most = manifest.max_context
        for peer, span in self._spans.items():
            engine, factor = self._engines[peer], self.slowed.get(peer, 1.0)
            hosted = Hosted(
                self.model.model_id,
                manifest.name,
                manifest.layers,
                span,
                "float32",
                factor * engine.step_ms,
                0,
                engine.free_tokens,
                most,
                prefill_ms=factor * engine.prefill_ms,
                kv_bytes=engine.kv_bytes,
            )
            records.append(
                NodeRecord(
                    peer,
                    SWARM,
                    peer,
                    "0",
                    1,
                    (f"/memory/{peer}",),
                    (hosted,),
                    dict.fromkeys(self._spans, self._rtt_ms),
                    0.0,
                    1e12,
                    link_byte_s=self._link_byte_s,
                )
            )
        return records

    def prefill_choice(self, chain: Sequence[tuple[PeerId, Span]], request: TokenRequest) -> PrefillChoice | None:
        return choose_prefill(
            self.records(),
            self.model.model_id,
            "float32",
            chain,
            len(request.ids) - 1,
            exact=request.exactness != "fast",
            named=request.prefiller,
            me_rtt_ms=dict.fromkeys(self._spans, self._rtt_ms),
        )

    async def plan(self, request: TokenRequest, wanted: Plan, dtype: str | None) -> ChainPlan:
        records = self.records()
        chain = plan_chain(
            records,
            request.model,
            span=wanted.span,
            dtype=dtype,
            exclude=wanted.exclude | self._prefillers,
            max_hops=wanted.hops_left,
            first_from=wanted.before,
            last_to=wanted.after,
        )
        hops = tuple(_at(hop.peer, hop.span) for hop in chain.hops)
        choice = None
        if wanted.whole and request.may_prefill_apart:
            choice = self.prefill_choice([(hop.peer, hop.span) for hop in chain.hops], request)
        if choice is None or not (request.prefiller or choice.is_worth_it):
            return ChainPlan(hops, chain.dtype)
        apart = tuple(_at(hop.peer, hop.span) for hop in choice.hops)
        return ChainPlan(
            hops, chain.dtype, PrefillPlan(apart, choice.first_s, choice.chunk_s, choice.own_chunk_s, choice.exact)
        )

    def blame(self, peer: PeerId) -> None:
        return

    async def models(self) -> list[ServedModel]:
        return []

    async def manifest(self, model: ModelId) -> Manifest:
        return self.model.manifest

    async def text_files(self, model: ModelId) -> dict[str, bytes]:
        return {}


def _at(peer: PeerId, span: Span) -> PlannedHop:
    return PlannedHop(peer, peer, span, (f"/memory/{peer}",))
