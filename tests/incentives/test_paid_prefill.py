"""Prompts that one peer computes for others: each is paid for the positions that it has computed, and for no others."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace as with_fields

import anyio
import pytest
from incentives.paid_world import CLIENT, CREDIT, PRICE, PaidWorld, paid_world
from simulation.session_world import MODEL, MODEL_ID

from shoal.swarm.identifiers import PeerId
from shoal.swarm.identity import Identity
from shoal.swarm.routing.chain_plan import ChainPlan, PlannedHop, PrefillPlan
from shoal.swarm.sessions.generation import Route, TokenRequest
from shoal.swarm.sessions.session_events import Plan
from shoal.swarm.units import Span

STRONG = 9
SLOW_S, FAST_S = 0.002, 0.00005
PROMPT = tuple((7 * n + n // 9) % 50 + 1 for n in range(330))
NEW = 40
EXPECTED = MODEL.expected_tokens(PROMPT, NEW)
ASKED = len(PROMPT) - 1
LAYOUTS = [((1, "all"),), ((1, "embed+0:3"), (2, "3:6+head"))]


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


def peer_of(number: int) -> PeerId:
    return Identity(bytes([number]) * 32).peer_id


class Planned(PaidWorld):
    """The strong one prefills and does nothing else."""

    async def plan(self, request: TokenRequest, wanted: Plan, dtype: str | None) -> ChainPlan:
        strong = peer_of(STRONG)
        made = await super().plan(request, with_fields(wanted, exclude=wanted.exclude | {strong}), dtype)
        hop = PlannedHop(strong, strong, Span(0, MODEL.layers + 1), (f"/memory/{strong}",))
        return with_fields(made, prefill=PrefillPlan((hop,))) if wanted.whole else made


@asynccontextmanager
async def strong_world(layout: tuple[tuple[int, str], ...], credit: int = CREDIT) -> AsyncIterator[PaidWorld]:
    async with paid_world(*layout, (STRONG, "all"), credit=credit) as swarm:
        swarm.__class__ = Planned
        for number, _ in layout:
            swarm.volunteers[peer_of(number)].compute.position_s = SLOW_S
        swarm.volunteers[peer_of(STRONG)].compute.position_s = FAST_S
        yield swarm


async def ask(swarm: PaidWorld) -> tuple[list[int], Route]:
    assert swarm.driver is not None
    async with swarm.driver.generate(TokenRequest(MODEL_ID, PROMPT, NEW)) as stream:
        got = [choice.id async for choice in stream]
    await swarm.settled()
    await anyio.sleep(2)
    for ledger in swarm.ledgers.values():
        assert ledger.failure is None
        assert ledger.store.balances.imbalance() == 0
    return got, stream.route


def income(ticks: int) -> int:
    return ticks * PRICE - -(-ticks * PRICE * 5 // 100)


@pytest.mark.anyio
@pytest.mark.parametrize("layout", LAYOUTS)
async def test_each_is_paid_for_what_it_computed(layout: tuple[tuple[int, str], ...]) -> None:
    async with strong_world(layout) as swarm:
        tokens, route = await ask(swarm)
        assert tokens == EXPECTED
        (prefill,) = route.prefills
        assert (prefill.positions, prefill.trouble) == (ASKED, "")
        assert swarm.account(STRONG).contributed == income(ASKED // 32)
        for number, _ in layout:
            computed = swarm.volunteers[peer_of(number)].compute.computed_positions
            assert computed == NEW
            assert swarm.account(number).contributed == income(computed // 32)
        assert swarm.ledgers["client"].store.balances.account(CLIENT.public_key).reserved >= 0


@pytest.mark.anyio
@pytest.mark.parametrize("layout", LAYOUTS)
async def test_in_the_free_lane_each_has_a_receipt_for_what_it_computed(layout: tuple[tuple[int, str], ...]) -> None:
    async with strong_world(layout, credit=0) as swarm:
        tokens, route = await ask(swarm)
        assert tokens == EXPECTED
        assert route.prefills[0].positions == ASKED
        store = swarm.ledgers["client"].store
        assert store.chain(CLIENT.public_key).length == len(layout) + 1
        assert all(ledger.store.owed() == [] for ledger in swarm.ledgers.values())


@pytest.mark.anyio
@pytest.mark.parametrize("after_s", [0.1, 0.3, 0.6])
async def test_a_prefiller_that_dies_is_paid_by_the_word_it_has_and_the_others_for_the_rest(after_s: float) -> None:
    async with strong_world(LAYOUTS[1]) as swarm:

        async def kill() -> None:
            await anyio.sleep(after_s)
            swarm.network.kill(peer_of(STRONG))

        swarm.tasks.start_soon(kill)
        tokens, route = await ask(swarm)
        assert tokens == EXPECTED
        taken = route.prefills[0].positions
        for number in (1, 2):
            computed = swarm.volunteers[peer_of(number)].compute.computed_positions
            assert computed == ASKED + NEW - taken
            assert swarm.account(number).contributed == income(computed // 32)
