"""Room in an engine for caches that may be needed: filled beforehand, taken over at once, given up to any session."""

from collections.abc import Iterator

import anyio
import pytest
from node.engine_chain import CPU, local_model
from node.tiny_models import VOCABULARY, make_model, save_model

from shoal.node.engine import Engine
from shoal.node.shard import Shard
from shoal.swarm.errors import ContextTooLong, OutOfMemory, Refused
from shoal.swarm.identifiers import SessionId
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Work
from shoal.swarm.sessions.lanes import Claim, Lane
from shoal.swarm.units import Span

WHOLE, MIDDLE = Span(0, 6), Span(2, 4)
A, B, C, D = (SessionId(name) for name in "abcd")
GREEDY = Sampling()
PROMPT = tuple((11 * i + 5) % VOCABULARY for i in range(140))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    folder = tmp_path_factory.mktemp("standing")
    save_model(make_model("llama"), folder / "model")
    return Shard.load(local_model(folder / "model", folder / "cache"), WHOLE, "float32", CPU)


@pytest.fixture
def engines(shard: Shard) -> Iterator[tuple[Engine, Engine]]:
    pair = Engine(shard, 512), Engine(shard, 512)
    yield pair
    for engine in pair:
        engine.stop()


async def chunks_of(engine: Engine) -> list[bytes]:
    """Two whole chunks of the prompt."""
    await engine.open(A, WHOLE, 200, GREEDY, ())
    await engine.run(Work(A, 0, 140, ids=PROMPT))
    return await engine.export_kv(A, 0, 128)


async def next_token(engine: Engine, session: SessionId, start: int) -> int:
    done = await engine.run(Work(session, start, 140 - start, ids=PROMPT[start:], wants_token=True))
    assert done.choice is not None
    return done.choice.id


@pytest.mark.anyio
@pytest.mark.parametrize(("below", "held"), [(140, 128), (100, 100), (0, 0)])
async def test_what_stood_by_goes_on_as_a_session(engines: tuple[Engine, Engine], below: int, held: int) -> None:
    here, there = engines
    chunks = await chunks_of(here)
    await there.stand_by(B, WHOLE, 200)
    for at, chunk in enumerate(chunks):
        assert await there.import_kv(B, 64 * at, [chunk]) == 64 * at + 64
    assert await there.take_over(B, WHOLE, 200, GREEDY, (), below) == held
    await here.open(C, WHOLE, 200, GREEDY, ())
    assert await next_token(there, B, held) == await next_token(here, C, 0)


@pytest.mark.anyio
async def test_it_is_no_session_until_it_is_taken_over(engines: tuple[Engine, Engine]) -> None:
    engine, _ = engines
    await engine.stand_by(B, WHOLE, 200)
    assert (engine.sessions, engine.free_tokens) == (0, 512)
    with pytest.raises(Refused, match="stands by"):
        await engine.run(Work(B, 0, 1, ids=(1,)))
    with pytest.raises(Refused, match="open already"):
        await engine.stand_by(B, WHOLE, 200)
    await engine.take_over(B, WHOLE, 200, GREEDY, (), 0)
    assert (engine.sessions, engine.free_tokens) == (1, 256)
    with pytest.raises(Refused, match="not what is wanted"):
        await engine.take_over(B, WHOLE, 200, GREEDY, (), 0)


@pytest.mark.anyio
async def test_a_session_takes_its_room_and_others_that_stand_by_do_not(engines: tuple[Engine, Engine]) -> None:
    engine, _ = engines
    for name in (A, B):
        await engine.stand_by(name, WHOLE, 192)
    with pytest.raises(OutOfMemory):
        await engine.stand_by(C, WHOLE, 192)
    await engine.open(C, WHOLE, 192, GREEDY, ())  # 128 are unused: the older one goes
    with pytest.raises(Refused, match="no such session"):
        await engine.take_over(A, WHOLE, 192, GREEDY, (), 0)
    assert await engine.take_over(B, WHOLE, 192, GREEDY, (), 0) == 0
    with pytest.raises(OutOfMemory):
        await engine.open(D, WHOLE, 256, GREEDY, ())


@pytest.mark.anyio
async def test_a_session_that_has_no_room_in_any_case_drives_nobody_out(engines: tuple[Engine, Engine]) -> None:
    engine, _ = engines
    await engine.open(A, WHOLE, 256, GREEDY, ())
    await engine.open(D, WHOLE, 64, GREEDY, ())
    await engine.stand_by(B, WHOLE, 64)
    with pytest.raises(OutOfMemory):
        await engine.open(C, WHOLE, 256, GREEDY, ())
    assert await engine.take_over(B, WHOLE, 64, GREEDY, (), 0) == 0


@pytest.mark.anyio
async def test_a_session_has_one_run_of_pages_where_only_standing_caches_are_in_its_way(shard: Shard) -> None:
    engine = Engine(shard, 512)
    try:
        await engine.stand_by(A, WHOLE, 64)
        await engine.stand_by(B, WHOLE, 192)
        await engine.stand_by(C, WHOLE, 64)
        engine.close(B)  # 192 and 192 are free, on both sides of C
        await engine.open(D, WHOLE, 256, GREEDY, ())
        assert engine._core.sessions[D].room.slots is None  # noqa: SLF001
    finally:
        engine.stop()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("span", "tokens", "sampling", "history"),
    [
        (MIDDLE, 200, GREEDY, ()),
        (WHOLE, 201, GREEDY, ()),
        (WHOLE, 200, Sampling(top_p=2.0), ()),
        (WHOLE, 9, GREEDY, (1 << 30,)),
    ],
)
async def test_what_it_was_not_made_for_is_refused_and_it_stays(
    engines: tuple[Engine, Engine], span: Span, tokens: int, sampling: Sampling, history: tuple[int, ...]
) -> None:
    engine, _ = engines
    await engine.stand_by(A, WHOLE, 200)
    with pytest.raises(Refused):
        await engine.take_over(A, span, tokens, sampling, history, 0)
    assert await engine.take_over(A, WHOLE, 200, GREEDY, (), 0) == 0


@pytest.mark.anyio
async def test_more_than_the_context_is_refused_beforehand(engines: tuple[Engine, Engine]) -> None:
    with pytest.raises(ContextTooLong):
        await engines[0].stand_by(A, WHOLE, 257)


@pytest.mark.anyio
async def test_lanes_do_not_count_what_stands_by_and_bind_who_takes_it_over(shard: Shard) -> None:
    engine = Engine(shard, 1024, keeps_lanes=True)
    newcomer = Claim("newcomer", Lane.FREE)
    try:
        for name in (A, B, C):
            await engine.stand_by(name, WHOLE, 256)
        assert await engine.take_over(A, WHOLE, 256, GREEDY, (), 0, newcomer) == 0
        assert await engine.take_over(B, WHOLE, 256, GREEDY, (), 0, newcomer) == 0
        with anyio.fail_after(10.0), pytest.raises(OutOfMemory, match="free lane"):
            await engine.take_over(C, WHOLE, 256, GREEDY, (), 0, newcomer)
    finally:
        engine.stop()
