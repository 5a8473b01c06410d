"""Sessions in virtual time whose hops keep, give and fetch prefixes; the board is a dictionary."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from simulation.session_world import MODEL, MODEL_ID, WIDE_AREA, OpenGate, Volunteer, World

from shoal.compression.kv_levels import CHUNK_TOKENS
from shoal.swarm.identifiers import PeerId
from shoal.swarm.kv.chunk_store import ChunkStore
from shoal.swarm.prefixes.announcement import NAME_BYTES, Announcement
from shoal.swarm.prefixes.prefix_chain import Address
from shoal.swarm.prefixes.prefixes import Prefixes
from shoal.swarm.sessions.generation import Route, TokenRequest
from shoal.swarm.sessions.hop_server import HopServer
from shoal.swarm.simulated.compute import SimulatedCompute
from shoal.swarm.simulated.peer import SWARM
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.transports.memory_link import Conditions
from shoal.swarm.units import parse

PROMPT = tuple((7 * i + i * i // 5) % 40 + 1 for i in range(10 * CHUNK_TOKENS + 9))


@dataclass
class Board:
    """`prefixes.PrefixBoard` of one peer, over the dictionary of all. find_s: what a look-up takes"""

    me: PeerId
    said: dict[Address, dict[PeerId, list[Address]]]
    find_s: float = 0.1

    async def announce(self, chunks: list[Address]) -> None:
        self.said.setdefault(chunks[0], {})[self.me] = chunks

    async def find(self, root: Address) -> list[Announcement]:
        await anyio.sleep(self.find_s)
        return [
            Announcement(peer, SWARM, root, b"".join(chunk[:NAME_BYTES] for chunk in chunks), 1e12, b"")
            for peer, chunks in self.said.get(root, {}).items()
        ]

    def way_to(self, peer: PeerId) -> tuple[tuple[str, ...], float]:
        return (f"/memory/{peer}",), 0.03


@dataclass
class PrefixWorld(World):
    said: dict[Address, dict[PeerId, list[Address]]] = field(default_factory=dict)
    prefixes: dict[str, Prefixes] = field(default_factory=dict)
    audit_share: float = 0.0

    async def add(self, name: str, layers: str, *, unit_step_s: float, position_s: float) -> Volunteer:

        span, peer = parse(layers, MODEL.layers), PeerId(name)
        compute = SimulatedCompute(MODEL, (span,), 1 << 16, unit_step_s, position_s, profile=b"p" * 32)
        volunteer = Volunteer(peer, compute, span)
        self.volunteers[name] = volunteer
        self.transports[peer] = self.network.join(peer)
        prefixes = Prefixes(
            ChunkStore(),
            self.transports[peer],
            OpenGate(),
            Board(peer, self.said),
            lambda _: compute,
            seed=1,
            audit_share=self.audit_share,
        )
        self.prefixes[name] = prefixes
        await HopServer(self.transports[peer], OpenGate(), volunteer, prefixes=prefixes).start()
        await prefixes.serve()
        self.tasks.start_soon(prefixes.run)
        return volunteer

    async def ask(
        self,
        count: int,
        prompt: Sequence[int] = PROMPT,
        *,
        without: Sequence[str] = (),
        share: bool = True,
        session: str = "",
        exact: bool = True,
    ) -> tuple[list[int], Route]:
        assert self.driver is not None
        request = TokenRequest(
            MODEL_ID,
            tuple(prompt),
            count,
            exclude=frozenset(map(PeerId, without)),
            share_prefix=share,
            session=session,
            exactness="replay" if exact else "fast",
        )
        async with self.driver.generate(request) as stream:
            got = [choice.id async for choice in stream]
        return got, stream.route

    async def kept(self, name: str, chunks: int) -> None:
        """Return when this volunteer keeps so many chunks and has said so; in virtual time."""
        with anyio.fail_after(60.0):
            while self.prefixes[name].store.memory.chunks < chunks:  # noqa: ASYNC110  there is no hook to wait for
                await anyio.sleep(0.01)
        await anyio.sleep(1.0)


@asynccontextmanager
async def prefix_world(
    *layout: tuple[str, str],
    conditions: Conditions = WIDE_AREA,
    seed: int = 0,
    audit_share: float = 0.0,
    unit_step_s: float = 0.0005,
    position_s: float = 0.0003,
) -> AsyncIterator[PrefixWorld]:
    async with MemoryNetwork(seed, conditions) as network, anyio.create_task_group() as tasks:
        made = PrefixWorld(network, tasks, audit_share=audit_share)
        for name, layers in layout:
            await made.add(name, layers, unit_step_s=unit_step_s, position_s=position_s)
        made.start_driver()
        yield made
        tasks.cancel_scope.cancel()
