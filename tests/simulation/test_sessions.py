"""Whole sessions in virtual time: whatever a hop does to a session, its tokens are those of an undisturbed run."""

import random

import anyio
import pytest
from simulation.session_world import MODEL, PROMPT, world

from shoal.swarm.errors import ModelNotServable, OutOfMemory, ShoalError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.session_hop import Patience
from shoal.swarm.simulated.compute import Fault

FOUR = (("first", "embed+0:3"), ("spare first", "embed+0:3"), ("last", "3:6+head"), ("spare last", "3:6+head"))
EXPECTED = MODEL.expected_tokens(PROMPT, 40)


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


@pytest.mark.anyio
@pytest.mark.parametrize(
    "layout",
    [
        (("one", "all"),),
        (("front", "embed+0:3"), ("back", "3:6+head")),
        (("a", "embed"), ("b", "0:2"), ("c", "2:5"), ("d", "5:6"), ("e", "head")),
    ],
)
async def test_an_undisturbed_session_gives_the_models_tokens(layout: tuple[tuple[str, str], ...]) -> None:
    async with world(*layout) as swarm:
        tokens, route = await swarm.generate(40)
        assert tokens == EXPECTED
        assert [hop.peer for hop in route.hops] == [name for name, _ in layout]
        assert not route.failovers
        await swarm.settled()


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(12))
async def test_a_killed_hop_costs_no_token(seed: int) -> None:
    chance = random.Random(seed)
    async with world(*FOUR, seed=seed) as swarm:
        killed_after = chance.randrange(1, 39)
        tokens, route = await swarm.generate(
            40, disturb=(killed_after, lambda busy: swarm.network.kill(chance.choice(busy)))
        )
        assert len(route.failovers) == 1
        assert tokens == EXPECTED
        await swarm.settled()


@pytest.mark.anyio
@pytest.mark.parametrize("position", [0, 1])
async def test_a_hung_hop_costs_no_token(position: int) -> None:
    async with world(*FOUR) as swarm:
        began = anyio.current_time()
        tokens, _ = await swarm.generate(40, disturb=(10, lambda busy: swarm.network.hang(busy[position])))
        assert tokens == EXPECTED
        assert anyio.current_time() - began < 30.0


@pytest.mark.anyio
async def test_a_cut_between_two_hops_costs_no_token() -> None:
    async with world(*FOUR) as swarm:
        tokens, _ = await swarm.generate(40, disturb=(10, lambda busy: swarm.network.partition(*busy)))
        assert tokens == EXPECTED
        await swarm.settled()


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize(
    "fault", ["answer_nan", "wrong_shape", "never_answer", "refuse_open", "refuse_work", "break_down"]
)
@pytest.mark.parametrize("after", [0, 7])
async def test_a_faulty_hop_costs_no_token(fault: Fault, where: str, after: int) -> None:
    async with world(*FOUR, patience=Patience(step_s=5.0, prefill_s=10.0)) as swarm:
        swarm.volunteers[where].compute.fail(fault, after)
        tokens, route = await swarm.generate(40)
        assert tokens == EXPECTED
        sends_no_hidden = where == "last" and fault in ("answer_nan", "wrong_shape")
        assert sends_no_hidden or route.failovers[0].peer == where
        await swarm.settled()


@pytest.mark.anyio
async def test_a_lie_that_no_shape_betrays_changes_the_tokens() -> None:
    """The simulated model notices; only an audit could."""
    async with world(*FOUR[::2]) as swarm:
        swarm.volunteers["first"].compute.fail("wrong_values", 10)
        tokens, _ = await swarm.generate(40)
        assert tokens != EXPECTED
        assert tokens[:10] == EXPECTED[:10]


@pytest.mark.anyio
async def test_when_no_holder_is_left_the_error_names_the_layers() -> None:
    async with world(*FOUR[::2]) as swarm:
        with pytest.raises(ModelNotServable, match=r"layers 3:6, head"):
            await swarm.generate(40, disturb=(5, lambda busy: swarm.network.kill(PeerId("last"))))
        await swarm.settled()


@pytest.mark.anyio
async def test_full_nodes_refuse_and_say_so() -> None:
    async with world() as swarm:
        await swarm.join("small", "all", room_tokens=30)
        with pytest.raises(OutOfMemory):
            await swarm.generate(40)


@pytest.mark.anyio
async def test_sampling_survives_a_failover_with_the_same_text() -> None:
    sampling = Sampling(temperature=0.8, seed=11)
    async with world(*FOUR) as swarm:
        kill = (12, lambda busy: swarm.network.kill(busy[0]))
        tokens, _ = await swarm.generate(30, sampling=sampling, disturb=kill)
        assert tokens == MODEL.expected_tokens(PROMPT, 30, sampling)


@pytest.mark.anyio
async def test_many_sessions_at_once_do_not_mix() -> None:
    async with world(*FOUR) as swarm:
        got: dict[int, list[int]] = {}

        async def one(number: int) -> None:
            got[number], _ = await swarm.generate(20, prompt=(number, 7, number))

        async with anyio.create_task_group() as tasks:
            for number in range(16):
                tasks.start_soon(one, number)
        assert got == {n: MODEL.expected_tokens((n, 7, n), 20) for n in range(16)}
        await swarm.settled()


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(40))
async def test_any_mixture_of_faults_gives_the_tokens_or_one_clear_error(seed: int) -> None:
    chance = random.Random(seed)
    layout = [(f"front {n}", "embed+0:3") for n in range(3)] + [(f"back {n}", "3:6+head") for n in range(3)]
    faults: list[Fault] = ["answer_nan", "wrong_shape", "never_answer", "refuse_work", "break_down", "refuse_open"]
    async with world(*layout, seed=seed, patience=Patience(step_s=5.0, prefill_s=10.0)) as swarm:
        tokens: list[int] = []

        async def disturb() -> None:
            names = list(swarm.volunteers)
            for _ in range(chance.randrange(1, 5)):
                await anyio.sleep(chance.uniform(0.05, 2.0))
                name = chance.choice(names)
                match chance.randrange(5):
                    case 0 if swarm.network.is_alive(PeerId(name)):
                        swarm.network.kill(PeerId(name))
                    case 1:
                        swarm.network.hang(PeerId(name))
                    case 2:
                        swarm.network.partition(PeerId(name), PeerId(chance.choice(names)))
                    case _:
                        swarm.volunteers[name].compute.fail(chance.choice(faults), chance.randrange(5))

        with anyio.fail_after(600.0):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(disturb)
                try:
                    await swarm.generate(40, tokens=tokens)
                except ShoalError:
                    assert tokens == EXPECTED[: len(tokens)]
                else:
                    assert tokens == EXPECTED
                tasks.cancel_scope.cancel()
