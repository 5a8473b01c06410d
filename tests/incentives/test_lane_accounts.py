"""Lanes of real sessions: newcomers show a stamp, whoever contributed does not have to, and payers do neither."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest
from incentives.paid_world import BEGAN, CLIENT
from simulation.session_world import MODEL, MODEL_ID, OpenGate, Volunteer, World

from shoal.incentives.lane_accounts import LedgerAccounts, LedgerStamping
from shoal.incentives.ledger import Ledger
from shoal.incentives.store import Store
from shoal.swarm.driver import Driver
from shoal.swarm.errors import ShoalError
from shoal.swarm.generation import TokenRequest
from shoal.swarm.hop_server import HopServer
from shoal.swarm.identifiers import PeerId, SessionId, SwarmId
from shoal.swarm.identity import Identity
from shoal.swarm.lanes import Claim, Lane
from shoal.swarm.messages import Open
from shoal.swarm.simulated_compute import SimulatedCompute
from shoal.swarm.stamp import StampGate, StampMaker
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.units import whole

SWARM, BITS = SwarmId("swarm"), 6
PROMPT = (5, 6, 7)


def clock() -> float:
    return BEGAN + anyio.current_time() % 1e6


def new_ledger(contributed: int) -> Ledger:
    ledger = Ledger(Store(None), CLIENT, clock, in_thread=False)
    if contributed:
        ledger.store.balances.mint(CLIENT.public_key, contributed, bytes(32), BEGAN)
    return ledger


@dataclass
class Noted(LedgerAccounts):
    """Remembers what it said."""

    ledger: Ledger
    paid: set[SessionId]
    said: list[Lane] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.ledger, self.paid, StampGate(SWARM, BITS), clock)

    async def claim(self, driver: PeerId, request: Open) -> Claim:
        found = await super().claim(driver, request)
        self.said.append(found.lane)
        return found


@asynccontextmanager
async def served(
    contributed: int, *, stamped: bool, everything_paid: bool = False
) -> AsyncIterator[tuple[World, Noted]]:
    class Everything(set[SessionId]):
        def __contains__(self, _: object) -> bool:
            return True

    async with MemoryNetwork(0) as network, anyio.create_task_group() as tasks:
        world = World(network, tasks)
        identity = Identity(bytes([1]) * 32)
        volunteer = Volunteer(
            identity.peer_id, SimulatedCompute(MODEL, (whole(MODEL.layers),), 4096), whole(MODEL.layers)
        )
        world.volunteers[identity.peer_id] = volunteer
        accounts = Noted(new_ledger(contributed), Everything() if everything_paid else set())
        await HopServer(network.join(identity.peer_id), OpenGate(), volunteer, accounts=accounts).start()
        stamping = (
            LedgerStamping(new_ledger(contributed), StampMaker(SWARM, CLIENT.public_key, clock, bits=BITS))
            if stamped
            else None
        )
        world.driver = Driver(network.join(CLIENT.peer_id), OpenGate(), world, tasks, seed=1, stamping=stamping)
        yield world, accounts
        tasks.cancel_scope.cancel()


async def generate(world: World) -> int:
    count = 0
    async with world.driver.generate(TokenRequest(MODEL_ID, PROMPT, 4)) as stream:
        async for _ in stream:
            count += 1
    return count


def lane_of(contributed: int, *, stamped: bool, everything_paid: bool = False) -> list[Lane]:
    async def run() -> list[Lane]:
        async with served(contributed, stamped=stamped, everything_paid=everything_paid) as (world, accounts):
            assert await generate(world) == 4
            assert await generate(world) == 4
            return accounts.said

    return anyio.run(run)


def test_a_newcomer_comes_in_with_a_new_stamp_for_each_session() -> None:
    assert lane_of(0, stamped=True) == [Lane.FREE, Lane.FREE]


def test_whoever_has_contributed_needs_no_stamp() -> None:
    assert lane_of(10, stamped=False) == [Lane.EARNED, Lane.EARNED]


def test_a_paid_session_is_in_the_paid_lane() -> None:
    assert lane_of(0, stamped=False, everything_paid=True) == [Lane.PAID, Lane.PAID]


def test_a_newcomer_without_a_stamp_is_told_what_is_missing() -> None:
    async def run() -> None:
        async with served(0, stamped=False) as (world, _):
            await generate(world)

    with pytest.raises((ShoalError, ExceptionGroup)) as caught:
        anyio.run(run)
    error: BaseException = caught.value
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    assert "stamp" in str(error)
