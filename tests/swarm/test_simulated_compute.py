"""The simulated model notices what a session must never do, and its compute refuses what an engine refuses."""

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.swarm.errors import BadActivation, ContextTooLong, LocalFault, OutOfMemory, Refused
from shoal.swarm.identifiers import SessionId
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Done, Work
from shoal.swarm.simulated.compute import SimulatedCompute
from shoal.swarm.simulated.model import SimulatedModel, pack_hidden, unpack_hidden
from shoal.swarm.units import Span, whole

MODEL = SimulatedModel(layers=4)
FRONT, BACK = Span(0, 3), Span(3, 6)
SESSION = SessionId("s")
GREEDY = Sampling()


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


async def opened(span: Span = FRONT, sampling: Sampling = GREEDY, max_tokens: int = 100) -> SimulatedCompute:
    compute = SimulatedCompute(MODEL, (span,), room_tokens=1000)
    await compute.open(SESSION, span, max_tokens, sampling, ())
    return compute


def ids(start: int, *tokens: int) -> Work:
    return Work(SESSION, start, len(tokens), ids=tokens)


async def generate(chain: list[Span], prompt: list[int], count: int, sampling: Sampling, chunk: int) -> list[int]:
    computes = [await opened(span, sampling) for span in chain]
    tokens, fed = list(prompt), 0
    while len(tokens) < len(prompt) + count:
        fresh = tokens[fed : fed + chunk]
        wants = fed + len(fresh) == len(tokens)
        work = Work(SESSION, fed, len(fresh), ids=tuple(fresh), wants_token=wants)
        for compute in computes:
            done = await compute.run(work)
            work = Work(SESSION, fed, len(fresh), hidden=done.hidden, wants_token=wants)
        fed += len(fresh)
        if wants:
            assert done.choice is not None
            tokens.append(done.choice.id)
    return tokens[len(prompt) :]


@pytest.mark.anyio
@pytest.mark.parametrize("chain", [[whole(4)], [FRONT, BACK], [Span(n, n + 1) for n in range(6)]])
@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, seed=5)])
async def test_any_chain_and_chunking_gives_the_expected_tokens(
    chain: list[Span], chunk: int, sampling: Sampling
) -> None:
    prompt = [5, 9, 9, 2, 7, 1, 3]
    assert await generate(chain, prompt, 20, sampling, chunk) == MODEL.expected_tokens(prompt, 20, sampling)


def test_a_seed_changes_sampled_tokens_only() -> None:
    one, two = (MODEL.expected_tokens([1, 2], 10, Sampling(temperature=1.0, seed=seed)) for seed in (1, 2))
    assert one != two
    assert MODEL.expected_tokens([1], 10, Sampling(seed=1)) == MODEL.expected_tokens([1], 10, Sampling(seed=2))


@settings(max_examples=60)
@given(prompt=st.lists(st.integers(0, 999), min_size=2, max_size=12), data=st.data())
def test_any_other_history_gives_other_tokens(prompt: list[int], data: st.DataObject) -> None:
    others = st.lists(st.integers(0, 999), min_size=1, max_size=12).filter(lambda other: other != prompt)
    other = data.draw(st.one_of(others, st.permutations(prompt).filter(lambda p: p != prompt)))
    assert MODEL.expected_tokens(prompt, 6) != MODEL.expected_tokens(other, 6)


def test_another_number_of_layers_gives_other_tokens() -> None:
    assert MODEL.expected_tokens([1, 2, 3], 6) != SimulatedModel(layers=5).expected_tokens([1, 2, 3], 6)


@given(st.lists(st.binary(min_size=8, max_size=8), max_size=5))
def test_hidden_states_survive_their_journey(values: list[bytes]) -> None:
    assert unpack_hidden(pack_hidden(values), len(values)) == values


@pytest.mark.anyio
@pytest.mark.parametrize("start", [0, 2, 4])
async def test_work_that_does_not_continue_the_session_is_refused(start: int) -> None:
    compute = await opened()
    await compute.run(ids(0, 1, 2, 3))
    with pytest.raises(Refused):
        await compute.run(ids(start, 4))


@pytest.mark.anyio
async def test_what_was_not_opened_or_was_closed_is_refused() -> None:
    compute = await opened()
    with pytest.raises(Refused):
        await compute.run(Work(SessionId("other"), 0, 1, ids=(1,)))
    compute.close(SESSION)
    compute.close(SESSION)
    with pytest.raises(Refused):
        await compute.run(ids(0, 1))


@pytest.mark.anyio
async def test_a_session_that_is_closed_while_it_computes_is_refused_and_a_cancelled_one_leaves_no_trace() -> None:
    compute = await opened()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(compute.run, ids(0, 1, 2))
        tasks.cancel_scope.cancel()
    assert compute.sessions[SESSION].held == 0
    outcomes: list[str] = []

    async def run() -> None:
        try:
            await compute.run(ids(0, 1, 2))
        except Refused as error:
            outcomes.append(str(error))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await anyio.sleep(0.0001)
        compute.close(SESSION)
    assert outcomes == ["no such session"]


@pytest.mark.anyio
async def test_room_is_reserved_by_open_and_given_back_by_close() -> None:
    compute = await opened(max_tokens=700)
    other = SessionId("other")
    with pytest.raises(OutOfMemory, match="400 tokens was asked for, 300 are free"):
        await compute.open(other, FRONT, 400, GREEDY, ())
    compute.close(SESSION)
    await compute.open(other, FRONT, 400, GREEDY, ())
    assert compute.free_tokens == 600


@pytest.mark.anyio
async def test_a_session_outgrowing_its_reservation_or_the_context_is_refused() -> None:
    compute = await opened(max_tokens=3)
    with pytest.raises(Refused):
        await compute.run(ids(0, 1, 2, 3, 4))
    with pytest.raises(ContextTooLong):
        await compute.open(SessionId("long"), FRONT, MODEL.max_context + 1, GREEDY, ())
    with pytest.raises(Refused):
        await compute.open(SessionId("elsewhere"), BACK, 10, GREEDY, ())


@pytest.mark.anyio
@pytest.mark.parametrize("fault", ["answer_nan", "wrong_shape"])
async def test_the_next_hop_notices_bad_hidden_states(fault: str) -> None:
    front, back = await opened(FRONT), await opened(BACK)
    front.fail(fault, after=1)  # type: ignore[arg-type]
    good = await front.run(ids(0, 1, 2))
    await back.run(Work(SESSION, 0, 2, hidden=good.hidden))
    bad = await front.run(ids(2, 3))
    with pytest.raises(BadActivation):
        await back.run(Work(SESSION, 2, 1, hidden=bad.hidden))


@pytest.mark.anyio
async def test_wrong_ids_are_the_upstreams_fault() -> None:
    compute = await opened()
    for wrong in (Work(SESSION, 0, 2, ids=(1,)), ids(0, MODEL.vocabulary), ids(0, -1)):
        with pytest.raises(BadActivation):
            await compute.run(wrong)


@pytest.mark.anyio
async def test_a_lie_changes_every_token_and_no_shape() -> None:
    honest, liar = await opened(FRONT), await opened(FRONT)
    liar.fail("wrong_values")
    truth, lie = await honest.run(ids(0, 1, 2)), await liar.run(ids(0, 1, 2))
    assert truth.hidden != lie.hidden
    assert len(truth.hidden) == len(lie.hidden)


@pytest.mark.anyio
async def test_faults_of_the_node_itself() -> None:
    compute = await opened()
    compute.fail("break_down")
    with pytest.raises(LocalFault):
        await compute.run(ids(0, 1))
    compute.fail("refuse_work")
    with pytest.raises(Refused):
        await compute.run(ids(0, 1))
    compute.fail("refuse_open")
    with pytest.raises(Refused):
        await compute.open(SessionId("new"), FRONT, 1, GREEDY, ())
    compute.fail("never_answer")
    with anyio.move_on_after(3600.0) as waiting:
        await compute.run(ids(0, 1))
    assert waiting.cancelled_caught
    compute.recover()
    assert isinstance(await compute.run(ids(0, 1)), Done)


@pytest.mark.anyio
async def test_time_passes_per_unit_and_per_position() -> None:
    compute = SimulatedCompute(MODEL, (FRONT,), step_s=0.01, position_s=0.001)
    await compute.open(SESSION, FRONT, 10, GREEDY, ())
    began = anyio.current_time()
    done = await compute.run(ids(0, 1, 2, 3, 4))
    assert anyio.current_time() - began == pytest.approx(3 * 0.014)
    assert done.compute_s == pytest.approx(3 * 0.014)
