"""Sessions in virtual time whose driver and hops keep ledgers: real machines, simulated network and compute."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from simulation.prefix_world import Board
from simulation.session_world import MANIFEST, MODEL, OpenGate, Volunteer, World

from shoal.incentives.account import Account
from shoal.incentives.bodies import WORD_BYTES
from shoal.incentives.entry import Entry
from shoal.incentives.ledger import Ledger
from shoal.incentives.open_limiter import OpenLimiter
from shoal.incentives.prefix_accounts import PrefixAccounts
from shoal.incentives.session_meter import LedgerMetering
from shoal.incentives.session_payment import LedgerPaying
from shoal.incentives.store import Store
from shoal.swarm.identifiers import PeerId
from shoal.swarm.identity import Identity
from shoal.swarm.kv.chunk_store import ChunkStore
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.prefixes.prefix_chain import Address
from shoal.swarm.prefixes.prefixes import Prefixes
from shoal.swarm.sessions.driver import Driver
from shoal.swarm.sessions.hop_server import HopServer
from shoal.swarm.sessions.metering import Paying
from shoal.swarm.simulated.compute import SimulatedCompute
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.transports.memory_link import Conditions
from shoal.swarm.units import parse

BEGAN = 1_790_000_000
CLIENT = Identity(bytes([99]) * 32)
CREDIT = 1_000_000
PRICE = 32  # of a tick at any hop: the model is so small that a position costs one credit
NEAR = Conditions(latency_s=(0.001, 0.004))


def _clock() -> float:
    return BEGAN + anyio.current_time() % 1e6


@dataclass
class PaidWorld(World):
    ledgers: dict[str, Ledger] = field(default_factory=dict)
    keeps_kv: bool = False  # of sessions whose clients allow it; nobody announces any
    shares_kv: bool = False  # and they are announced, given, taken and owed for
    position_s: float = 0.0
    said: dict[Address, dict[PeerId, list[Address]]] = field(default_factory=dict)
    prefixes: dict[int, Prefixes] = field(default_factory=dict)

    def _new_ledger(self, identity: Identity, credit: int) -> Ledger:
        """Everybody has heard of what the client earned."""
        ledger = Ledger(Store(None), identity, _clock, in_thread=False)
        ledger.store.balances.mint(CLIENT.public_key, credit, bytes(32), ledger.now() - 25 * 3600)
        list(ledger.store.balances.advance(CLIENT.public_key, ledger.now()))
        self.tasks.start_soon(ledger.run)
        return ledger

    async def join_with_ledger(self, number: int, layers: str, credit: int, limiter: OpenLimiter) -> Volunteer:
        identity = Identity(bytes([number]) * 32)
        span = parse(layers, MODEL.layers)
        compute = SimulatedCompute(MODEL, (span,), 1 << 16, 0.0005, self.position_s)
        volunteer = Volunteer(identity.peer_id, compute, span)
        self.volunteers[identity.peer_id] = volunteer
        ledger = self.ledgers[identity.peer_id] = self._new_ledger(identity, credit)
        metering = LedgerMetering(ledger, lambda _: MANIFEST, anyio.current_time, limiter=limiter)
        transport, prefixes = self.network.join(identity.peer_id), None
        if self.keeps_kv or self.shares_kv:
            board = Board(identity.peer_id, self.said) if self.shares_kv else None
            prefixes = Prefixes(ChunkStore(), transport, OpenGate(), board, lambda _: compute, audit_share=0.0)
            self.prefixes[number] = prefixes
        if self.shares_kv and prefixes is not None:
            calls = MemberCalls(transport, OpenGate())
            books = PrefixAccounts(ledger, calls, lambda _: MANIFEST, metering.paid, self.catch_up, anyio.current_time)
            prefixes.books = books
            await books.serve()
            await prefixes.serve()
            self.tasks.start_soon(books.run)
            self.tasks.start_soon(prefixes.run)
        await HopServer(transport, OpenGate(), volunteer, metering=metering, prefixes=prefixes).start()
        return volunteer

    async def catch_up(self, peer: PeerId, author: bytes, start: int, stop: int) -> list[Entry]:
        return self.ledgers[peer].store.of(author, start, stop)

    def start_client(self, credit: int, wrapped: Callable[[Paying], Paying]) -> None:
        ledger = self.ledgers["client"] = self._new_ledger(CLIENT, credit)
        paying = wrapped(LedgerPaying(ledger, lambda: bytes(WORD_BYTES)))
        transport = self.network.join(CLIENT.peer_id)
        self.driver = Driver(transport, OpenGate(), self, self.tasks, seed=1, paying=paying)

    def account(self, server: int) -> Account:
        """As that server sees itself."""
        identity = Identity(bytes([server]) * 32)
        return self.ledgers[identity.peer_id].store.balances.account(identity.public_key)


@asynccontextmanager
async def paid_world(
    *layout: tuple[int, str],
    seed: int = 0,
    credit: int = CREDIT,
    wrapped: Callable[[Paying], Paying] = lambda paying: paying,
    limiter: Callable[[], OpenLimiter] = OpenLimiter,
    keeps_kv: bool = False,
    shares_kv: bool = False,
    position_s: float = 0.0,
) -> AsyncIterator[PaidWorld]:
    """layout: (number, layers) of each volunteer; its key is made of the number"""
    async with MemoryNetwork(seed, NEAR) as network, anyio.create_task_group() as group:
        made = PaidWorld(network, group, keeps_kv=keeps_kv, shares_kv=shares_kv, position_s=position_s)
        for number, layers in layout:
            await made.join_with_ledger(number, layers, credit, limiter())
        made.start_client(credit, wrapped)
        yield made
        group.cancel_scope.cancel()
