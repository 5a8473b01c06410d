"""Sessions in virtual time over slow peers, with a fast one that computes prompts for them."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
from simulation.session_world import MODEL, MODEL_ID, OpenGate, Volunteer, World

from shoal.compression.kv_levels import CHUNK_TOKENS
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.kv.chunk_store import ChunkStore
from shoal.swarm.prefixes.prefixes import Prefixes
from shoal.swarm.routing.chain_plan import ChainPlan, PlannedHop, PrefillPlan
from shoal.swarm.sessions.compute import Compute
from shoal.swarm.sessions.generation import Exactness, Route, TokenRequest
from shoal.swarm.sessions.hop_server import HopServer
from shoal.swarm.sessions.session_events import Plan
from shoal.swarm.simulated.compute import SimulatedCompute
from shoal.swarm.simulated.model import WIDTH
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.transports.memory_link import Conditions
from shoal.swarm.units import Span, parse

PROMPT = tuple((7 * i + i * i // 5) % 40 + 1 for i in range(10 * CHUNK_TOKENS + 9))
NEW = 12
EXPECTED = MODEL.expected_tokens(PROMPT, NEW)
SLOW_S, FAST_S = 0.002, 0.0001  # of a position, in each unit
MOVED_S = 0.00001
NEAR = Conditions(latency_s=(0.003, 0.008))
CHUNK_BYTES = CHUNK_TOKENS * MODEL.layers * WIDTH  # of all layers


@dataclass
class PrefillWorld(World):
    """prefillers: the second chain, by name and layers; expected: with what the planner believes of their speed"""

    prefillers: tuple[tuple[str, str], ...] = ()
    expected: bool = True
    audit_share: float = 0.0

    async def add(
        self, name: str, layers: str, position_s: float, wrapped: Callable[[Compute], Compute] = lambda c: c
    ) -> Volunteer:
        span, peer = parse(layers, MODEL.layers), PeerId(name)
        compute = SimulatedCompute(
            MODEL, (span,), 1 << 16, 0.0005, position_s, profile=b"p" * 32, moved_position_s=MOVED_S
        )
        volunteer = Wrapped(peer, compute, span, wrapped(compute))
        self.volunteers[name] = volunteer
        self.transports[peer] = self.network.join(peer)
        prefixes = Prefixes(
            ChunkStore(),
            self.transports[peer],
            OpenGate(),
            None,
            lambda _: compute,
            audit_share=self.audit_share,
            seed=1,
        )
        self.servers[name] = HopServer(self.transports[peer], OpenGate(), volunteer, prefixes=prefixes)
        await self.servers[name].start()
        return volunteer

    async def plan(self, request: TokenRequest, wanted: Plan, dtype: str | None) -> ChainPlan:
        kept = {name: volunteer for name, volunteer in self.volunteers.items() if name not in self.fast}
        every, self.volunteers = self.volunteers, kept
        try:
            made = await super().plan(request, wanted, dtype)
        finally:
            self.volunteers = every
        if not wanted.whole or not request.may_prefill_apart or not self.prefillers:
            return made
        hops = tuple(
            PlannedHop(PeerId(name), name, _without_head(parse(layers, MODEL.layers)), (f"/memory/{name}",))
            for name, layers in self.prefillers
            if PeerId(name) not in self.blamed
        )
        if len(hops) < len(self.prefillers):
            return made
        if not self.expected:
            return ChainPlan(made.hops, made.dtype, PrefillPlan(hops))
        fast, slow = (CHUNK_TOKENS * len(Span(0, MODEL.layers)) * pace for pace in (FAST_S, SLOW_S))
        return ChainPlan(
            made.hops,
            made.dtype,
            PrefillPlan(hops, 0.3, fast, slow / len(made.hops), exact=request.exactness != "fast"),
        )

    @property
    def fast(self) -> set[str]:
        """Who prefills and nothing else."""
        return {name for name in self.volunteers if name.startswith("fast")}

    async def ask(
        self,
        prompt: Sequence[int] = PROMPT,
        count: int = NEW,
        *,
        exactness: Exactness = "replay",
        prefill: str = "auto",
        local_layers: int = 0,
    ) -> tuple[list[int], Route]:
        assert self.driver is not None
        request = TokenRequest(
            MODEL_ID, tuple(prompt), count, exactness=exactness, prefill=prefill, local_layers=local_layers
        )
        with anyio.fail_after(1000.0):
            async with self.driver.generate(request) as stream:
                got = [choice.id async for choice in stream]
        return got, stream.route

    async def settled_but(self, name: str) -> None:
        """Nobody but this one, which may be gone, holds a session any more."""
        with anyio.fail_after(120.0):
            while [peer for peer in self.busy() if peer != name]:  # noqa: ASYNC110  there is no hook to wait for
                await anyio.sleep(0.1)

    def computed(self, name: str) -> int:
        return self.volunteers[name].compute.computed_positions


@dataclass
class Wrapped(Volunteer):
    served: Compute

    def find(self, model: ModelId, dtype: str, span: Span) -> Compute:
        super().find(model, dtype, span)
        return self.served


def _without_head(span: Span) -> Span:
    return Span(span.start, min(span.stop, MODEL.layers + 1))


@asynccontextmanager
async def prefill_world(
    *layout: tuple[str, str],
    prefillers: tuple[tuple[str, str], ...] = (("fast", "all"),),
    conditions: Conditions = NEAR,
    seed: int = 0,
    expected: bool = True,
    wrapped: Callable[[Compute], Compute] = lambda compute: compute,
    audit_share: float = 0.0,
) -> AsyncIterator[PrefillWorld]:
    """layout: (name, layers) of the slow peers; wrapped: what stands around the computing of those that prefill"""
    async with MemoryNetwork(seed, conditions) as network, anyio.create_task_group() as tasks:
        made = PrefillWorld(network, tasks, prefillers=prefillers, expected=expected, audit_share=audit_share)
        for name, layers in layout:
            await made.add(name, layers, SLOW_S)
        for name, layers in dict(prefillers).items():
            if name not in made.volunteers:
                await made.add(name, layers, FAST_S, wrapped)
        made.start_driver()
        yield made
        tasks.cancel_scope.cancel()
