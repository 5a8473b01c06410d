"""Hops whose caches a standby keeps: what is computed again after a loss, and what happens when standbys fail too."""

from collections.abc import Sequence

import anyio
import pytest
from simulation.session_world import DRIVER, MODEL, MODEL_ID, World, world

from shoal.compression.kv_levels import CHUNK_TOKENS
from shoal.swarm.identifiers import PeerId
from shoal.swarm.kv.kv_chunks import parse_chunk
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.generation import Route, TokenRequest
from shoal.swarm.sessions.session_hop import Patience
from shoal.swarm.transports.memory_link import Conditions

LAYOUT = [(f"{part} {n}", layers) for part, layers in (("front", "embed+0:3"), ("back", "3:6+head")) for n in range(3)]
PROMPT = tuple((7 * i + 3) % MODEL.vocabulary for i in range(200))
COUNT = 40
EXPECTED = MODEL.expected_tokens(PROMPT, COUNT)


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


def imported(swarm: World) -> int:
    """Positions that were taken over instead of computed, at all peers together."""
    return sum(volunteer.compute.imported_positions for volunteer in swarm.volunteers.values())


def holding(swarm: World) -> list[str]:
    return [name for name, server in swarm.servers.items() if len(server.receiver.keeper)]


async def killing(swarm: World, places: Sequence[int], after: int = 20, **options: object) -> tuple[list[int], Route]:
    def disturb(busy: list[PeerId]) -> None:
        for place in places:
            swarm.network.kill(busy[place])

    with anyio.fail_after(60.0):
        return await swarm.generate(COUNT, PROMPT, disturb=(after, disturb), **options)  # type: ignore[arg-type]


@pytest.mark.anyio
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("exactness", ["exact", "fast"])
async def test_a_lost_hop_is_replaced_by_its_standby_which_computes_only_the_tail(place: int, exactness: str) -> None:
    async with world(*LAYOUT) as swarm:
        tokens, route = await killing(swarm, [place], exactness=exactness)
        assert tokens == EXPECTED
        (failover,) = route.failovers
        assert failover.loaded == 192
        assert imported(swarm) == 192
        assert not failover.planned
        await swarm.settled()
        with anyio.fail_after(10.0):
            while [name for name in holding(swarm) if swarm.network.is_alive(PeerId(name))]:  # noqa: ASYNC110
                await anyio.sleep(0.1)


@pytest.mark.anyio
async def test_a_session_that_wants_no_snapshots_sends_none() -> None:
    async with world(*LAYOUT) as swarm:
        tokens, route = await killing(swarm, [1])
        assert tokens == EXPECTED
        assert imported(swarm) == 0
        assert route.failovers[0].loaded == 0


@pytest.mark.anyio
@pytest.mark.parametrize("sampling", [Sampling(temperature=1.0, seed=5), Sampling(presence_penalty=0.5)])
async def test_sampling_goes_on_as_if_nothing_had_happened(sampling: Sampling) -> None:
    async with world(*LAYOUT) as swarm:
        whole, _ = await swarm.generate(COUNT, PROMPT, sampling)
        assert (await killing(swarm, [1], sampling=sampling, exactness="exact"))[0] == whole


@pytest.mark.anyio
@pytest.mark.parametrize("place", [0, 1])
async def test_the_client_may_keep_the_snapshots_itself(place: int) -> None:
    async with world(*LAYOUT) as swarm:
        tokens, route = await killing(swarm, [place], exactness="exact", keep_snapshots=True)
        assert tokens == EXPECTED
        assert route.failovers[0].loaded == imported(swarm) == 192
        assert not holding(swarm)


@pytest.mark.anyio
@pytest.mark.parametrize("place", [0, 1])
async def test_what_stands_in_the_snapshot_need_not_be_kept_for_replay(place: int) -> None:
    """The previous hop has room for a few outputs only; without the snapshot it could not replay."""
    async with world(*LAYOUT, keep_bytes=3000) as swarm:
        tokens, route = await killing(swarm, [place], exactness="exact")
        assert tokens == EXPECTED
        assert len(route.failovers) == 1
        assert route.failovers[0].loaded == 192


@pytest.mark.anyio
@pytest.mark.parametrize("place", [0, 1])
async def test_a_standby_that_dies_first_is_replaced_by_another(place: int) -> None:
    async with world(*LAYOUT) as swarm:
        got: list[int] = []

        def disturb(busy: list[PeerId]) -> None:
            for name in holding(swarm):
                swarm.network.kill(PeerId(name))

        with anyio.fail_after(60.0):
            tokens, route = await swarm.generate(COUNT, PROMPT, disturb=(10, disturb), tokens=got, exactness="exact")
        assert tokens == EXPECTED
        assert not route.failovers


@pytest.mark.anyio
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("apart_s", [0.0, 0.02, 0.05, 0.1, 0.2])
async def test_a_hop_and_its_standby_that_die_together_cost_no_token(place: int, apart_s: float) -> None:
    async with world(*LAYOUT) as swarm, anyio.create_task_group() as tasks:

        async def kill_standbys(names: list[str]) -> None:
            await anyio.sleep(apart_s)
            for name in names:
                swarm.network.kill(PeerId(name))

        def disturb(busy: list[PeerId]) -> None:
            part = busy[place].split()[0]
            tasks.start_soon(kill_standbys, [name for name in holding(swarm) if name.startswith(part)])
            swarm.network.kill(busy[place])

        with anyio.fail_after(60.0):
            tokens, _ = await swarm.generate(COUNT, PROMPT, disturb=(20, disturb), exactness="exact")
        assert tokens == EXPECTED
        await swarm.settled()


@pytest.mark.anyio
@pytest.mark.parametrize("apart_s", [0.0, 0.05, 0.2])
async def test_all_hops_that_die_at_once_cost_no_token(apart_s: float) -> None:
    async with world(*LAYOUT) as swarm, anyio.create_task_group() as tasks:

        async def kill(peer: PeerId) -> None:
            await anyio.sleep(apart_s)
            swarm.network.kill(peer)

        def disturb(busy: list[PeerId]) -> None:
            tasks.start_soon(kill, busy[0])
            swarm.network.kill(busy[1])

        with anyio.fail_after(60.0):
            tokens, _ = await swarm.generate(COUNT, PROMPT, disturb=(20, disturb), exactness="exact")
        assert tokens == EXPECTED
        await swarm.settled()


@pytest.mark.anyio
@pytest.mark.parametrize("keep_snapshots", [False, True])
async def test_a_standby_that_cannot_use_what_it_keeps_begins_at_the_beginning(keep_snapshots: bool) -> None:
    async with world(*LAYOUT) as swarm:
        for volunteer in swarm.volunteers.values():
            volunteer.compute.fail("refuse_import")
        tokens, route = await killing(swarm, [1], exactness="exact", keep_snapshots=keep_snapshots)
        assert tokens == EXPECTED
        assert imported(swarm) == 0
        assert route.failovers[-1].loaded == 0


@pytest.mark.anyio
async def test_a_hop_that_gives_nothing_away_and_a_standby_without_room_cost_nothing() -> None:
    async with world(*LAYOUT) as swarm:
        for name, volunteer in swarm.volunteers.items():
            if name.startswith("back"):
                volunteer.compute.fail("refuse_export")
            else:
                swarm.servers[name].receiver.keeper.budget_bytes = 0
        tokens, _ = await killing(swarm, [1], exactness="exact")
        assert tokens == EXPECTED
        assert imported(swarm) == 0


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(6))
async def test_losses_one_after_the_other_each_find_a_standby_with_all_but_the_tail(seed: int) -> None:
    patience = Patience(standby_retry_s=0.5)
    async with world(*LAYOUT, seed=seed, patience=patience) as swarm:
        assert swarm.driver is not None
        got: list[int] = []
        request = TokenRequest(MODEL_ID, PROMPT, 160, exactness="exact")
        with anyio.fail_after(120.0):
            async with swarm.driver.generate(request) as stream:
                async for choice in stream:
                    got.append(choice.id)
                    if len(got) in (40, 110):
                        swarm.network.kill(swarm.busy()[seed % 2])
        assert got == MODEL.expected_tokens(PROMPT, 160)
        assert len(stream.route.failovers) == 2
        assert all(failover.loaded >= 192 for failover in stream.route.failovers)


@pytest.mark.anyio
async def test_a_short_session_wants_no_standby() -> None:
    async with world(*LAYOUT) as swarm:
        seen: list[str] = []

        def look(busy: list[PeerId]) -> None:
            seen.extend(holding(swarm))

        await swarm.generate(20, PROMPT[: CHUNK_TOKENS - 25], disturb=(19, look), exactness="exact")
        assert not seen


@pytest.mark.anyio
async def test_a_driver_that_dies_leaves_nothing_at_its_standbys() -> None:
    async with world(*LAYOUT) as swarm:
        assert swarm.driver is not None
        async with swarm.driver.generate(TokenRequest(MODEL_ID, PROMPT, COUNT, exactness="exact")) as stream:
            got = 0
            async for _ in stream:
                got += 1
                if got == 20:
                    break
            assert len(holding(swarm)) == 2
            swarm.network.kill(DRIVER)
            with anyio.fail_after(60.0):
                while holding(swarm):  # noqa: ASYNC110  it polls to see that nothing is left
                    await anyio.sleep(0.1)


async def pause_of(swarm: World, place: int, exactness: str) -> float:
    tokens, route = await killing(swarm, [place], exactness=exactness)
    assert tokens == EXPECTED
    (failover,) = route.failovers
    return failover.pause_s


@pytest.mark.anyio
@pytest.mark.parametrize("place", [0, 1])
async def test_a_failover_with_a_standby_waits_for_one_message_after_the_other_and_no_greeting(place: int) -> None:
    """50 ms each way. The news of the loss; then, of the first hop: what is missing to the standby, from there to the
    other hop, and a token; of the last: word to the other hop, what is missing to the standby, and a token."""
    hops = 4
    conditions = Conditions(latency_s=(0.05, 0.05))
    async with world(*LAYOUT, conditions=conditions, unit_step_s=1e-6) as swarm:
        pause_s = await pause_of(swarm, place, "exact")
    assert hops * 0.05 <= pause_s < hops * 0.05 + 0.04, "computing the tail takes the rest"


@pytest.mark.anyio
@pytest.mark.parametrize("place", [0, 1])
async def test_a_node_whose_room_is_needed_for_sessions_goes_on_from_the_bytes(place: int) -> None:
    async with world(*LAYOUT) as swarm:
        rooms = {name: volunteer.compute.standing for name, volunteer in swarm.volunteers.items()}
        emptied: list[str] = []

        def disturb(busy: list[PeerId]) -> None:
            for name, standing in rooms.items():
                emptied.extend(name for _ in standing)
                standing.clear()
            swarm.network.kill(busy[place])

        with anyio.fail_after(60.0):
            tokens, route = await swarm.generate(COUNT, PROMPT, disturb=(20, disturb), exactness="exact")
        assert len(emptied) == 2, "both standbys had room until then"
        assert tokens == EXPECTED
        assert route.failovers[0].loaded == imported(swarm) == 192
        await swarm.settled()
        assert not any(rooms.values())


@pytest.mark.anyio
@pytest.mark.parametrize(("bandwidth_byte_s", "lossy"), [(1e9, False), (1500.0, True)])
async def test_a_session_that_allows_losses_has_them_only_where_the_link_is_slow(
    bandwidth_byte_s: float, lossy: bool
) -> None:
    """Simulated chunks are small, so a link that is to be slow for them is very slow."""
    conditions = Conditions(latency_s=(0.005, 0.03), bandwidth_byte_s=bandwidth_byte_s)
    async with world(*LAYOUT, seed=2) as swarm:
        for volunteer in swarm.volunteers.values():
            volunteer.compute.profile = b"p" * 32
        for one in swarm.volunteers:
            for other in swarm.volunteers:
                if one[:-1] == other[:-1] and one != other:
                    swarm.network.link(PeerId(one), PeerId(other)).conditions = conditions
        kept: dict[str, list[bytes]] = {}

        def look(busy: list[PeerId]) -> None:
            for server in swarm.servers.values():
                keeper = server.receiver.keeper
                for name in keeper.names():
                    profiles = [parse_chunk(data).format.profile for data in keeper.chunks(name, DRIVER, 1 << 20)]
                    kept[name] = profiles

        with anyio.fail_after(600.0):
            await swarm.generate(300, PROMPT, disturb=(295, look), exactness="fast")
        assert len(kept) == 2
        for profiles in kept.values():
            assert profiles[0], "nothing was known of the link"
            assert bool(profiles[-1]) == lossy


@pytest.mark.anyio
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("apart_s", [0.0, 0.01, 0.03, 0.06, 0.1])
async def test_two_hops_lost_one_after_the_other_whose_standbys_are_not_equally_far_cost_no_token(
    first: int, apart_s: float
) -> None:
    """The second one's standby wants to be sent what the first one's has not computed."""
    async with world(*LAYOUT) as swarm, anyio.create_task_group() as tasks:

        async def kill(peer: PeerId) -> None:
            await anyio.sleep(apart_s)
            swarm.network.kill(peer)

        def disturb(busy: list[PeerId]) -> None:
            for name, server in swarm.servers.items():  # what the last hop's standby has is only a part
                for held in server.receiver.keeper.names() if name.startswith("back") else ():
                    kept = server.receiver.keeper._kept[held]  # noqa: SLF001
                    del kept.chunks[1:]
                swarm.volunteers[name].compute.standing.clear()
                swarm.volunteers[name].compute.position_s = 0.0005  # loading takes a while then
            tasks.start_soon(kill, busy[1 - first])
            swarm.network.kill(busy[first])

        with anyio.fail_after(20.0):
            tokens, route = await swarm.generate(COUNT, PROMPT, disturb=(20, disturb), exactness="exact")
        assert tokens == EXPECTED
        assert len(route.failovers) == 2
        await swarm.settled()
