"""Nodes that leave of their own accord: their sessions go on elsewhere, and nobody computes them again."""

import anyio
import pytest
from simulation.session_world import DRIVER, MODEL, MODEL_ID, World, world

from shoal.swarm.identifiers import PeerId
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.generation import Exactness, TokenRequest
from shoal.swarm.sessions.hop_server import Drained  # noqa: TC001  used at run time by nothing else

LAYOUT = [(f"{part} {n}", layers) for part, layers in (("front", "embed+0:3"), ("back", "3:6+head")) for n in range(2)]
PROMPT = tuple((7 * i + 3) % MODEL.vocabulary for i in range(150))
COUNT = 40
EXPECTED = MODEL.expected_tokens(PROMPT, COUNT)


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


class Leaver:
    """Drains a node in the middle of a session. drained: what became of its sessions, per node"""

    def __init__(self, swarm: World, tasks: anyio.abc.TaskGroup, *places: int, waits: bool = True) -> None:
        self._swarm, self._tasks, self._places, self._waits = swarm, tasks, places, waits
        self.drained: dict[PeerId, Drained] = {}

    def __call__(self, busy: list[PeerId]) -> None:
        for place in self._places:
            self._tasks.start_soon(self._drain, busy[place])

    async def _drain(self, peer: PeerId) -> None:
        self.drained[peer] = await self._swarm.drain(peer, 60.0, waits=self._waits)


@pytest.mark.anyio
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("exactness", ["exact", "fast", "replay"])
async def test_a_session_moves_with_its_cache_and_the_client_sees_a_short_pause(
    place: int, exactness: Exactness
) -> None:
    async with world(*LAYOUT) as swarm, anyio.create_task_group() as tasks:
        leaver = Leaver(swarm, tasks, place)
        with anyio.fail_after(60.0):
            tokens, route = await swarm.generate(COUNT, PROMPT, disturb=(10, leaver), exactness=exactness)
        assert tokens == EXPECTED
        (move,) = route.failovers
        assert move.planned
        assert move.loaded > len(PROMPT)
        assert move.pause_s < 1.0
        assert not swarm.blamed
        computed = sum(volunteer.compute.computed_positions for volunteer in swarm.volunteers.values())
        assert computed < 2 * (len(PROMPT) + COUNT + 10)
        await swarm.settled()
    (drained,) = leaver.drained.values()
    assert (drained.sessions, drained.moved, drained.waiting) == (1, 1, 0)


@pytest.mark.anyio
@pytest.mark.parametrize("sampling", [Sampling(temperature=1.0, seed=5), Sampling(presence_penalty=0.5)])
async def test_sampling_goes_on_as_if_nothing_had_happened(sampling: Sampling) -> None:
    async with world(*LAYOUT) as swarm, anyio.create_task_group() as tasks:
        whole, _ = await swarm.generate(COUNT, PROMPT, sampling)
        moved, _ = await swarm.generate(COUNT, PROMPT, sampling, disturb=(10, Leaver(swarm, tasks, 1)))
        assert moved == whole


@pytest.mark.anyio
async def test_two_neighbours_that_leave_at_once_are_replaced_one_after_the_other() -> None:
    async with world(*LAYOUT) as swarm, anyio.create_task_group() as tasks:
        leaver = Leaver(swarm, tasks, 0, 1)
        with anyio.fail_after(60.0):
            tokens, route = await swarm.generate(COUNT, PROMPT, disturb=(10, leaver))
        assert tokens == EXPECTED
        assert [move.planned for move in route.failovers] == [True, True]
    assert [drained.moved for drained in leaver.drained.values()] == [1, 1]


@pytest.mark.anyio
@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_session_that_is_still_reading_its_prompt_moves_too(at: int) -> None:
    prompt = PROMPT * 12
    async with world(*LAYOUT, unit_step_s=0.02) as swarm, anyio.create_task_group() as tasks:
        drained: list[Drained] = []

        async def drain() -> None:
            with anyio.fail_after(30.0):
                while len(swarm.busy()) < 2:  # noqa: ASYNC110  it waits for the session to be open
                    await anyio.sleep(0.01)
            await anyio.sleep(0.3 * at)
            drained.append(await swarm.drain(swarm.busy()[0], 30.0))

        tasks.start_soon(drain)
        with anyio.fail_after(120.0):
            tokens, _ = await swarm.generate(8, prompt)
        assert tokens == MODEL.expected_tokens(prompt, 8)
    assert not drained[0].waiting


@pytest.mark.anyio
async def test_no_new_session_is_taken_by_a_node_that_leaves() -> None:
    async with world(*LAYOUT) as swarm:
        await swarm.drain("back 0")
        swarm.departed.clear()  # a planner that has not heard of it yet
        tokens, _ = await swarm.generate(COUNT, PROMPT)
        assert tokens == EXPECTED
        assert not swarm.volunteers["back 0"].compute.computed_positions


@pytest.mark.anyio
@pytest.mark.parametrize("waits", [True, False])
async def test_without_a_successor_it_says_so_and_waits_for_the_session_if_asked_to(waits: bool) -> None:
    async with world(("front", "embed+0:3"), ("back", "3:6+head"), unit_step_s=0.01) as swarm:
        async with anyio.create_task_group() as tasks:
            leaver = Leaver(swarm, tasks, 1, waits=waits)
            with anyio.fail_after(60.0):
                tokens, route = await swarm.generate(200, PROMPT, disturb=(10, leaver))
        assert tokens == MODEL.expected_tokens(PROMPT, 200)
        assert not route.failovers
        told = swarm.drains["back"]
        assert "3:6" in next(drained.stranded for drained in told if drained.stranded)
        (drained,) = leaver.drained.values()
        assert (drained.ended, drained.waiting) == ((1, 0) if waits else (0, 1))


@pytest.mark.anyio
async def test_a_drain_ends_at_its_limit() -> None:
    async with world(("front", "embed+0:3"), ("back", "3:6+head"), unit_step_s=0.05) as swarm:
        async with anyio.create_task_group() as tasks:
            began: list[float] = []

            async def drain() -> None:
                began.append(anyio.current_time())
                drained = await swarm.drain("back", 2.0)
                assert drained.waiting == 1
                assert 2.0 <= anyio.current_time() - began[0] < 2.5
                tasks.cancel_scope.cancel()

            await swarm.generate(400, PROMPT, disturb=(5, lambda _: tasks.start_soon(drain)))
        assert began


@pytest.mark.anyio
async def test_a_client_that_goes_away_during_a_drain_leaves_nothing_behind() -> None:
    async with world(*LAYOUT, unit_step_s=0.01) as swarm, anyio.create_task_group() as tasks:
        assert swarm.driver is not None
        leaver = Leaver(swarm, tasks, 1)
        async with swarm.driver.generate(TokenRequest(MODEL_ID, PROMPT, COUNT)) as stream:
            got = 0
            async for _ in stream:
                got += 1
                if got == 5:
                    leaver(swarm.busy())
                    await anyio.sleep(0.12)
                    break
        with anyio.fail_after(30.0):
            await swarm.settled()
    assert not next(iter(leaver.drained.values())).waiting


@pytest.mark.anyio
@pytest.mark.parametrize("after_s", [0.02, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4])
@pytest.mark.parametrize("who", ["leaver", "successor", "neighbour"])
async def test_a_peer_that_dies_during_a_move_costs_no_token(after_s: float, who: str) -> None:
    layout = [*LAYOUT, ("front 2", "embed+0:3"), ("back 2", "3:6+head")]
    async with world(*layout) as swarm, anyio.create_task_group() as tasks:

        def disturb(busy: list[PeerId]) -> None:
            front, back = busy
            tasks.start_soon(swarm.drain, back, 20.0)
            tasks.start_soon(kill, front, back)

        async def kill(front: PeerId, back: PeerId) -> None:
            await anyio.sleep(after_s)
            others = [peer for peer in swarm.busy() if peer not in {front, back}]
            victim = {"leaver": back, "neighbour": front}.get(who, others[0] if others else None)
            if victim is not None:
                swarm.network.kill(victim)

        with anyio.fail_after(60.0):
            tokens, _ = await swarm.generate(COUNT, PROMPT, disturb=(10, disturb))
        assert tokens == EXPECTED
        await swarm.settled()
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize("fault", ["refuse_export", "refuse_import"])
async def test_a_cache_that_cannot_be_moved_is_computed_again_and_the_session_goes_on(fault: str) -> None:
    async with world(*LAYOUT) as swarm, anyio.create_task_group() as tasks:
        for volunteer in swarm.volunteers.values():
            volunteer.compute.fail(fault)  # type: ignore[arg-type]
        with anyio.fail_after(60.0):
            tokens, route = await swarm.generate(COUNT, PROMPT, disturb=(10, Leaver(swarm, tasks, 1)))
        assert tokens == EXPECTED
        assert "cannot be moved" in route.failovers[0].reason
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_dead_driver_does_not_hold_up_a_drain() -> None:
    async with world(*LAYOUT) as swarm:
        assert swarm.driver is not None
        async with swarm.driver.generate(TokenRequest(MODEL_ID, PROMPT, COUNT)) as stream:
            async for _ in stream:
                break
            back = swarm.busy()[1]
            swarm.network.kill(DRIVER)
            with anyio.fail_after(30.0):
                assert not (await swarm.drain(back, 20.0)).waiting
