"""A small swarm for whole sessions in virtual time: real hops, real driver, simulated network and compute."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from shoal.swarm.errors import Refused
from shoal.swarm.identifiers import ModelId, PeerId, SwarmId
from shoal.swarm.manifest import Manifest, model_id
from shoal.swarm.records import Hosted, NodeRecord
from shoal.swarm.routing.chain_choice import plan_chain
from shoal.swarm.routing.chain_plan import ChainPlan, PlannedHop
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Compute
from shoal.swarm.sessions.driver import Driver
from shoal.swarm.sessions.generation import Exactness, Route, ServedModel, TokenRequest
from shoal.swarm.sessions.hop_server import KEEP_BYTES, Drained, HopServer
from shoal.swarm.sessions.session_events import Plan
from shoal.swarm.sessions.session_hop import Patience
from shoal.swarm.simulated.compute import SimulatedCompute
from shoal.swarm.simulated.model import SimulatedModel
from shoal.swarm.simulated.peer import SWARM
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.transports.memory_link import Conditions
from shoal.swarm.transports.memory_transport import MemoryTransport
from shoal.swarm.units import Span, parse

MODEL = SimulatedModel(layers=6)
MANIFEST = MODEL.manifest()
MODEL_ID = model_id(MANIFEST)
DRIVER = PeerId("driver")
PROMPT = (3, 1, 4, 1, 5, 9, 2, 6)
GREEDY = Sampling()
UNIT_STEP_S = 0.0005
WIDE_AREA = Conditions(latency_s=(0.005, 0.03))


class OpenGate:
    """Everybody may come in."""

    swarm: SwarmId = SWARM
    certificate = b""

    def admit(self, peer: PeerId, certificate: bytes) -> None:
        return


@dataclass
class Volunteer:
    peer: PeerId
    compute: SimulatedCompute
    span: Span

    def find(self, model: ModelId, dtype: str, span: Span) -> Compute:
        if model != MODEL_ID or dtype != "float32" or not self.span.covers(span):
            raise Refused(f"{self.peer} does not host that")
        return self.compute

    def record(self) -> NodeRecord:
        free = self.compute.free_tokens
        hosted = Hosted(MODEL_ID, MODEL.name, MODEL.layers, self.span, "float32", len(self.span), 0, free, 4096)
        return NodeRecord(self.peer, SWARM, self.peer, "0.1.0", 1, (f"/memory/{self.peer}",), (hosted,), {}, 0.0, 1e12)


@dataclass
class World:
    """`volunteers` by name; the planner knows all that ever joined, as a directory does of those that died lately."""

    network: MemoryNetwork
    tasks: TaskGroup
    volunteers: dict[str, Volunteer] = field(default_factory=dict)
    transports: dict[PeerId, MemoryTransport] = field(default_factory=dict)
    blamed: list[PeerId] = field(default_factory=list)
    driver: Driver | None = None
    drains: dict[str, list[Drained]] = field(default_factory=dict)  # what leaving nodes have told
    keep_bytes: int = KEEP_BYTES
    servers: dict[str, HopServer] = field(default_factory=dict)
    departed: set[str] = field(default_factory=set)  # have told the directory that they leave

    async def join(
        self, name: str, layers: str, room_tokens: int = 1 << 16, unit_step_s: float = UNIT_STEP_S
    ) -> Volunteer:
        span = parse(layers, MODEL.layers)
        peer = PeerId(name)
        volunteer = Volunteer(peer, SimulatedCompute(MODEL, (span,), room_tokens, unit_step_s), span)
        self.volunteers[name] = volunteer
        self.transports[peer] = self.network.join(peer)
        self.servers[name] = HopServer(self.transports[peer], OpenGate(), volunteer, self.keep_bytes)
        await self.servers[name].start()
        return volunteer

    async def drain(self, name: str, limit_s: float = 60.0, *, waits: bool = True) -> Drained:
        """A planned leaving; its record is withdrawn first."""
        self.departed.add(name)
        self.drains.setdefault(name, [])
        return await self.servers[name].drain(limit_s, self.drains[name].append, waits=waits)

    def start_driver(self, patience: Patience | None = None, within: str = "") -> None:
        """within: the volunteer whose node also drives"""
        transport = self.transports[PeerId(within)] if within else self.network.join(DRIVER)
        self.driver = Driver(transport, OpenGate(), self, self.tasks, patience=patience, seed=1)

    # The planner

    async def plan(self, request: TokenRequest, wanted: Plan, dtype: str | None) -> ChainPlan:
        await anyio.sleep(0.05)
        records = [v.record() for name, v in self.volunteers.items() if name not in self.departed]
        chain = plan_chain(
            records,
            request.model,
            span=wanted.span,
            dtype=dtype,
            exclude=wanted.exclude,
            max_hops=wanted.hops_left,
            need_tokens=len(request.ids) + request.max_new_tokens,
            first_from=wanted.before,
            last_to=wanted.after,
        )
        addresses = {record.peer: record.addresses for record in records}
        hops = tuple(PlannedHop(hop.peer, hop.peer, hop.span, addresses[hop.peer]) for hop in chain.hops)
        return ChainPlan(hops, chain.dtype)

    def blame(self, peer: PeerId) -> None:
        self.blamed.append(peer)

    async def models(self) -> list[ServedModel]:
        return []

    async def manifest(self, model: ModelId) -> Manifest:
        return MANIFEST

    async def text_files(self, model: ModelId) -> dict[str, bytes]:
        return {}

    # Sessions

    def busy(self) -> list[PeerId]:
        """Who holds a session now, in the order of the chain."""
        busy = [v for v in self.volunteers.values() if v.compute.sessions and self.network.is_alive(v.peer)]
        return [v.peer for v in sorted(busy, key=lambda v: v.span)]

    async def generate(
        self,
        count: int,
        prompt: Sequence[int] = PROMPT,
        sampling: Sampling = GREEDY,
        disturb: tuple[int, Callable[[list[PeerId]], None]] | None = None,
        tokens: list[int] | None = None,
        exactness: Exactness = "replay",
        keep_snapshots: bool = False,
    ) -> tuple[list[int], Route]:
        """All tokens of one session.

        disturb: after so many tokens, this is called with the busy peers. tokens: where tokens appear as they come
        """
        assert self.driver is not None
        got = tokens if tokens is not None else []
        request = TokenRequest(
            MODEL_ID, tuple(prompt), count, sampling, exactness=exactness, keep_snapshots=keep_snapshots
        )
        async with self.driver.generate(request) as stream:
            async for choice in stream:
                got.append(choice.id)
                if disturb is not None and len(got) == disturb[0]:
                    disturb[1](self.busy())
        return got, stream.route

    async def settled(self) -> None:
        """Return when no living volunteer holds a session any more; in virtual time, so at once."""
        with anyio.fail_after(120.0):
            while self.busy():  # noqa: ASYNC110  it polls to see that nothing is left, with no hook to wait for
                await anyio.sleep(0.1)

    async def streams_ended(self) -> None:
        """Return when no living volunteer serves any stream or call."""
        with anyio.fail_after(120.0):
            while any(transport.handlers_running for transport in self.transports.values()):  # noqa: ASYNC110  as above
                await anyio.sleep(0.1)


@asynccontextmanager
async def world(
    *layout: tuple[str, str],
    conditions: Conditions = WIDE_AREA,
    seed: int = 0,
    patience: Patience | None = None,
    unit_step_s: float = UNIT_STEP_S,
    keep_bytes: int = KEEP_BYTES,
) -> AsyncIterator[World]:
    """layout: (name, layers) of each volunteer. unit_step_s: what a unit takes for one step"""
    async with MemoryNetwork(seed, conditions) as network, anyio.create_task_group() as tasks:
        made = World(network, tasks, keep_bytes=keep_bytes)
        for name, layers in layout:
            await made.join(name, layers, unit_step_s=unit_step_s)
        made.start_driver(patience)
        yield made
        tasks.cancel_scope.cancel()
