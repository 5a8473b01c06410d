"""Lanes of real sessions: newcomers show a stamp, contributors and payers do not; the earned lane repays."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest
from incentives.paid_world import BEGAN, CLIENT
from simulation.session_world import MODEL, MODEL_ID, OpenGate, Volunteer, World

from shoal.incentives.favours import Favours
from shoal.incentives.lane_accounts import LedgerAccounts, LedgerStamping
from shoal.incentives.ledger import Ledger
from shoal.incentives.store import Store
from shoal.swarm.errors import ShoalError
from shoal.swarm.identifiers import PeerId, SessionId, SwarmId
from shoal.swarm.identity import Identity
from shoal.swarm.members.stamp import StampGate, StampMaker
from shoal.swarm.sessions.driver import Driver
from shoal.swarm.sessions.generation import TokenRequest
from shoal.swarm.sessions.hop_server import HopServer
from shoal.swarm.sessions.lanes import Claim, Lane
from shoal.swarm.sessions.messages import Open
from shoal.swarm.simulated.compute import SimulatedCompute
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.units import whole

SWARM, BITS = SwarmId("swarm"), 6
PROMPT = (5, 6, 7)


def clock() -> float:
    return BEGAN + anyio.current_time() % 1e6


SERVER = Identity(bytes([1]) * 32)


def new_ledger(contributed: int) -> Ledger:
    ledger = Ledger(Store(None), SERVER, clock, in_thread=False)
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
    contributed: int, *, stamped: bool, everything_paid: bool = False, owed_ticks: int = 0
) -> AsyncIterator[tuple[World, Noted]]:
    class Everything(set[SessionId]):
        def __contains__(self, _: object) -> bool:
            return True

    async with MemoryNetwork(0) as network, anyio.create_task_group() as tasks:
        world = World(network, tasks)
        identity = SERVER
        volunteer = Volunteer(
            identity.peer_id, SimulatedCompute(MODEL, (whole(MODEL.layers),), 4096), whole(MODEL.layers)
        )
        world.volunteers[identity.peer_id] = volunteer
        accounts = Noted(new_ledger(contributed), Everything() if everything_paid else set())
        if owed_ticks:
            accounts.ledger.store.balances.favours.note(SERVER.public_key, CLIENT.public_key, owed_ticks, int(clock()))
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


def lane_of(contributed: int, *, stamped: bool, everything_paid: bool = False, owed_ticks: int = 0) -> list[Lane]:
    async def run() -> list[Lane]:
        serving = served(contributed, stamped=stamped, everything_paid=everything_paid, owed_ticks=owed_ticks)
        async with serving as (world, accounts):
            assert await generate(world) == 4
            assert await generate(world) == 4
            return accounts.said

    return anyio.run(run)


def test_a_newcomer_comes_in_with_a_new_stamp_for_each_session() -> None:
    assert lane_of(0, stamped=True) == [Lane.FREE, Lane.FREE]


def test_whoever_has_contributed_needs_no_stamp() -> None:
    assert lane_of(10, stamped=False) == [Lane.FREE, Lane.FREE]


def test_what_a_server_owes_opens_its_earned_lane_until_it_is_given_back() -> None:
    assert lane_of(10, stamped=False, owed_ticks=1) == [Lane.EARNED, Lane.EARNED]
    assert lane_of(0, stamped=True) == [Lane.FREE, Lane.FREE]


DAY_0 = 1_800_000_000


def keys(count: int) -> list[bytes]:
    return [bytes([n]) * 32 for n in range(1, count + 1)]


def test_debts_are_to_those_who_served_and_bounded_by_what_was_got() -> None:
    favours, (me, one, two, far) = Favours(), keys(4)
    favours.note(me, one, 30, DAY_0)
    favours.note(me, two, 10, DAY_0)
    favours.note(two, far, 10, DAY_0)
    owed = favours.owed(me, DAY_0)
    assert owed[one] == pytest.approx(30)
    assert owed[two] + owed[far] == pytest.approx(10)
    assert owed[two] > 5 * owed[far]
    favours.note(one, me, 25, DAY_0)
    assert favours.owed(me, DAY_0)[one] == pytest.approx(5)
    assert favours.owed(me, DAY_0 + 30 * 86_400)[two] == pytest.approx(owed[two] / 2, rel=1e-3)


def test_a_ring_that_serves_itself_gains_nothing_and_is_owed_no_more_than_its_work() -> None:
    favours, (me, worker, *ring) = Favours(), keys(12)
    favours.note(me, worker, 100, DAY_0)
    honest = sum(favours.owed(me, DAY_0).values())
    for one, other in zip([worker, *ring], [*ring, worker], strict=True):
        favours.note(one, other, 10**6, DAY_0)
    assert sum(favours.owed(me, DAY_0).values()) == pytest.approx(honest)
    stranger = bytes([99]) * 32
    assert favours.owed(stranger, DAY_0) == {}, "what they say of one another opens no lane elsewhere"


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
