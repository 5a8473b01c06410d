"""Hops that die while tokens, replays or plans are on their way: the moments between two steps."""

from collections.abc import Sequence

import anyio
import pytest
from simulation.session_world import DRIVER, MODEL, MODEL_ID, PROMPT, World, world

from shoal.swarm.errors import Unavailable
from shoal.swarm.identifiers import PeerId
from shoal.swarm.sessions.compute import Choice
from shoal.swarm.sessions.generation import TokenRequest
from shoal.swarm.sessions.hop import IDLE_S
from shoal.swarm.sessions.session import Session
from shoal.swarm.sessions.session_events import (
    CloseHop,
    HopFailed,
    HopOpened,
    Plan,
    Planned,
    ProgressCame,
    Ticked,
    TokenCame,
)
from shoal.swarm.sessions.session_hop import Patience
from shoal.swarm.units import Span

LAYOUT = [(f"{part} {n}", layers) for part, layers in (("front", "embed+0:3"), ("back", "3:6+head")) for n in range(3)]
EXPECTED = MODEL.expected_tokens(PROMPT, 24)


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


async def tokens_with_deaths(swarm: World, deaths: Sequence[tuple[int, float]]) -> list[int]:
    """deaths: (place in the chain of then, seconds after the fifth token)"""
    async with anyio.create_task_group() as tasks:

        async def kill_later(peer: PeerId, after_s: float) -> None:
            await anyio.sleep(after_s)
            swarm.network.kill(peer)

        def disturb(busy: list[PeerId]) -> None:
            for place, after_s in deaths:
                tasks.start_soon(kill_later, busy[place], after_s)

        with anyio.fail_after(60.0):
            tokens, _ = await swarm.generate(24, disturb=(5, disturb))
    return tokens


@pytest.mark.anyio
@pytest.mark.parametrize("unit_step_s", [0.0005, 0.005, 0.025, 0.08])
@pytest.mark.parametrize("after_s", [0.0, 0.015, 0.03, 0.06, 0.09, 0.15, 0.3])
@pytest.mark.parametrize("place", [0, 1])
async def test_a_hop_that_dies_between_two_tokens_costs_none_and_nobody_else_is_blamed(
    place: int, after_s: float, unit_step_s: float
) -> None:
    async with world(*LAYOUT, unit_step_s=unit_step_s) as swarm:
        assert await tokens_with_deaths(swarm, [(place, after_s)]) == EXPECTED
        assert len(set(swarm.blamed)) == 1
        await swarm.settled()


@pytest.mark.anyio
@pytest.mark.parametrize("unit_step_s", [0.0005, 0.02])
@pytest.mark.parametrize("apart_s", [0.0, 0.01, 0.02, 0.045, 0.1, 0.3])
@pytest.mark.parametrize("first", [0, 1])
async def test_two_hops_that_die_shortly_after_one_another_cost_no_token(
    first: int, apart_s: float, unit_step_s: float
) -> None:
    async with world(*LAYOUT, unit_step_s=unit_step_s) as swarm:
        deaths = [(first, 0.02), (1 - first, 0.02 + apart_s)]
        assert await tokens_with_deaths(swarm, deaths) == EXPECTED
        await swarm.settled()


@pytest.mark.anyio
async def test_the_room_of_a_driver_that_stands_still_is_free_after_a_while() -> None:
    async with world(*LAYOUT) as swarm:
        assert swarm.driver is not None
        async with swarm.driver.generate(TokenRequest(MODEL_ID, PROMPT, 400)) as stream:
            async for _ in stream:
                break
            assert swarm.busy()
            swarm.network.hang(DRIVER)
            with anyio.fail_after(IDLE_S + 5.0):
                await swarm.settled()
                await swarm.streams_ended()


def running_session() -> tuple[Session, PeerId]:
    """A session over one hop that holds everything, after its first token."""
    session = Session((1, 2), Span(0, 4), 100, frozenset(), frozenset(), Patience(), 4)
    (plan,) = [effect for effect in session.start() if isinstance(effect, Plan)]
    peer = PeerId("one")
    list(session.handle(Planned(plan.number, ((peer, Span(0, 4)),)), 0.0))
    list(session.handle(HopOpened(1), 0.1))
    list(session.handle(TokenCame(2, Choice(5, 0.0)), 0.2))
    assert session.phase == "running"
    return session, peer


def test_a_hop_that_never_keeps_its_outputs_ends_the_session_at_last() -> None:
    session, peer = running_session()
    for _ in range(50):
        key = session.hops[0].key
        effects = list(session.handle(HopFailed(key, "cannot_replay", "dropped"), 1.0))
        plans = [effect for effect in effects if isinstance(effect, Plan)]
        if not plans:
            break
        list(session.handle(Planned(plans[0].number, ((peer, Span(0, 4)),)), 1.0))
        list(session.handle(HopOpened(key + 1), 1.0))
    assert session.phase == "over"
    assert isinstance(effects[-1].error, Unavailable)  # type: ignore[union-attr]


def test_an_answer_to_an_earlier_plan_is_not_taken_for_the_new_one() -> None:
    session, _ = running_session()
    (first,) = [e for e in session.handle(HopFailed(1, "local", "broken"), 1.0) if isinstance(e, Plan)]
    list(session._plan_all())  # noqa: SLF001  as the loss of another hop has it
    stale = Planned(first.number, ((PeerId("stale"), Span(0, 2)),))
    assert list(session.handle(stale, 1.1)) == []
    assert session.phase == "planning"


def test_time_in_which_the_driver_stood_still_is_charged_to_nobody() -> None:
    session, _ = running_session()
    list(session.handle(Ticked(), 1.3))  # silence: the hop is probed
    assert session.hops[0].unanswered_since_s is not None
    effects = list(session.handle(Ticked(), 100.0))
    assert not [effect for effect in effects if isinstance(effect, CloseHop)]
    effects = [effect for now in (102.5, 105.0) for effect in session.handle(Ticked(), now)]
    assert [effect for effect in effects if isinstance(effect, CloseHop)], "awake, it waits no longer than usual"


@pytest.mark.parametrize(("late_s", "lost"), [(0.1, True), (0.6, False), (1.9, False)])
def test_an_answer_that_lies_unread_while_a_busy_machine_holds_the_driver_up_counts(late_s: float, lost: bool) -> None:
    session, _ = running_session()
    list(session.handle(Ticked(), 1.3))  # silence: the hop is probed
    due = 1.3 + Patience().probe_s
    effects = list(session.handle(Ticked(), due + late_s))  # before the answer is read, though it came long ago
    effects += session.handle(ProgressCame(1, 3), due + late_s)
    assert bool([effect for effect in effects if isinstance(effect, CloseHop)]) is lost
