"""Caches out of an engine and into another: exactly, or as a level allows, while other sessions go on."""

import math
import threading
from collections.abc import Iterator

import anyio
import pytest
import torch
from node.engine_chain import CPU, local_model
from node.tiny_models import VOCABULARY, make_model, save_model

from shoal.compression.kv_levels import KvLevel
from shoal.node.activation_tensors import bytes_of
from shoal.node.engine import Engine
from shoal.node.kv_calibration import calibrate
from shoal.node.kv_coding import KvCoding
from shoal.node.model_source import LocalModel
from shoal.node.shard import Shard
from shoal.swarm.errors import BadChunk, LocalFault, Refused
from shoal.swarm.identifiers import SessionId
from shoal.swarm.kv.kv_chunks import pack_chunk, parse_chunk
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Work
from shoal.swarm.units import Span

WHOLE, MIDDLE = Span(0, 6), Span(2, 4)
HEADS, WIDTH = 2, 16
A, B = SessionId("a"), SessionId("b")
PROMPT = tuple((11 * i + 5) % VOCABULARY for i in range(100))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = tmp_path_factory.mktemp("moving")
    save_model(make_model("llama"), folder / "model")
    return local_model(folder / "model", folder / "cache")


@pytest.fixture(params=["float32", "bfloat16", "float16"])
def engines(model: LocalModel, request: pytest.FixtureRequest) -> Iterator[tuple[Engine, Engine]]:
    shard = Shard.load(model, WHOLE, request.param, CPU)
    pair = Engine(shard, 1024), Engine(shard, 1024)
    yield pair
    for engine in pair:
        engine.stop()


async def opened(engine: Engine, session: SessionId, tokens: int = 200, span: Span = WHOLE) -> None:
    await engine.open(session, span, tokens, Sampling(), ())


async def continued(engine: Engine, session: SessionId, start: int, count: int = 24) -> list[int]:
    """Tokens of a session that holds PROMPT[:start]."""
    fed, ids = PROMPT[start:], list(PROMPT)
    for _ in range(count):
        work = Work(session, len(ids) - len(fed), len(fed), ids=tuple(fed), wants_token=True)
        done = await engine.run(work)
        assert done.choice is not None
        ids.append(done.choice.id)
        fed = (done.choice.id,)
    return ids[len(PROMPT) :]


@pytest.mark.anyio
@pytest.mark.parametrize("scattered", [False, True])
async def test_a_moved_session_goes_on_with_the_same_tokens(engines: tuple[Engine, Engine], scattered: bool) -> None:
    here, there = engines
    await opened(here, A)
    await here.run(Work(A, 0, 90, ids=PROMPT[:90]))
    chunks = await here.export_kv(A, 0, 90)
    assert [parse_chunk(chunk).count for chunk in chunks] == [64, 26]
    if scattered:  # so that no run of pages is long enough
        for index in range(16):
            await opened(there, SessionId(f"x{index}"), 64)
        for index in range(0, 16, 2):
            there.close(SessionId(f"x{index}"))
    await opened(there, B)
    assert await there.import_kv(B, 0, chunks) == 90
    assert await continued(there, B, 90) == await continued(here, A, 90)


@pytest.mark.anyio
async def test_what_was_moved_is_the_same_to_the_last_bit(engines: tuple[Engine, Engine]) -> None:
    here, there = engines
    for engine in engines:
        await opened(engine, A, 200, MIDDLE)
    hidden = torch.randn(70, 64, generator=torch.Generator().manual_seed(1))
    await here.run(Work(A, 0, 70, hidden=bytes_of(hidden, here.shard.dtype)))
    chunks = await here.export_kv(A, 0, 70)
    await there.import_kv(A, 0, chunks)
    assert await there.export_kv(A, 0, 70) == chunks


@pytest.mark.anyio
async def test_a_span_without_layers_moves_too(model: LocalModel) -> None:
    engine = Engine(Shard.load(model, Span(0, 1), "float32", CPU), 512)
    try:
        for session in (A, B):
            await opened(engine, session, 200, Span(0, 1))
        await engine.run(Work(A, 0, 70, ids=PROMPT[:70]))
        assert await engine.import_kv(B, 0, await engine.export_kv(A, 0, 70)) == 70
        await engine.run(Work(B, 70, 2, ids=PROMPT[70:72]))
    finally:
        engine.stop()


@pytest.mark.anyio
async def test_what_cannot_be_is_refused_and_leaves_the_session_usable(engines: tuple[Engine, Engine]) -> None:
    here, there = engines
    await opened(here, A)
    await here.run(Work(A, 0, 90, ids=PROMPT[:90]))
    with pytest.raises(Refused, match="are held"):
        await here.export_kv(A, 64, 91)
    with pytest.raises(Refused, match="no such session"):
        await here.export_kv(B, 0, 64)
    with pytest.raises(Refused, match="kv calibrate"):
        await here.export_kv(A, 0, 64, "default")
    one, two = await here.export_kv(A, 0, 90)
    await opened(there, B, 70)
    damaged = parse_chunk(one)
    payload = damaged.payload[:-9] + bytes([damaged.payload[-9] ^ 1]) + damaged.payload[-8:]
    changed = type(damaged)(damaged.format, damaged.start, damaged.count, payload)
    with pytest.raises(BadChunk, match="checksum"):
        await there.import_kv(B, 0, [pack_chunk(changed)])
    with pytest.raises(BadChunk, match="where position 0 is due"):
        await there.import_kv(B, 0, [two])
    with pytest.raises(Refused, match="reserved"):
        await there.import_kv(B, 0, [one, two])
    with pytest.raises(Refused, match="64 are held"):
        await there.import_kv(B, 0, [one])
    await there.run(Work(B, 64, 6, ids=PROMPT[64:70]))


@pytest.mark.anyio
async def test_a_cache_with_nan_is_refused(model: LocalModel) -> None:
    engine = Engine(Shard.load(model, WHOLE, "float32", CPU), 512)
    try:
        for session in (A, B):
            await opened(engine, session)
        await engine.run(Work(A, 0, 64, ids=PROMPT[:64]))
        (chunk,) = await engine.export_kv(A, 0, 64)
        coding = KvCoding(engine.kv_format(WHOLE), None)
        keys, values = coding.decode(parse_chunk(chunk), HEADS, WIDTH)
        keys[1, 5] = math.nan
        with pytest.raises(BadChunk, match="NaN"):
            await engine.import_kv(B, 0, [coding.encode(0, keys, values, "lossless")])
    finally:
        engine.stop()


@pytest.mark.anyio
async def test_a_lossy_level_is_coded_with_the_part_of_the_profile_that_is_of_the_hosted_layers(
    model: LocalModel,
) -> None:
    reference = make_model("llama")
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(VOCABULARY, (160,), generator=generator) for _ in range(5)]
    profile = calibrate(reference, texts[:4], texts[4:])
    span = Span(0, 4)
    engine = Engine(Shard.load(model, span, "float32", CPU), 512, kv_profile=profile)
    plain = Engine(Shard.load(model, span, "float32", CPU), 512)
    try:
        for each in (engine, plain):
            await opened(each, B, 200, span)
        await opened(engine, A, 200, span)
        await engine.run(Work(A, 0, 100, ids=PROMPT))
        exact = await engine.export_kv(A, 0, 100)
        lossy = await engine.export_kv(A, 0, 100, "default")
        assert sum(map(len, lossy)) < sum(map(len, exact)) / 4
        assert parse_chunk(exact[0]).format.profile == b""
        assert await engine.import_kv(B, 0, lossy) == 100
        with pytest.raises(BadChunk, match="profile"):
            await plain.import_kv(B, 0, lossy)
        assert await plain.import_kv(B, 0, exact) == 100
    finally:
        engine.stop()
        plain.stop()


@pytest.mark.anyio
async def test_other_sessions_step_on_while_a_chunk_is_coded(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(Shard.load(model, WHOLE, "float32", CPU), 1024)
    may_code, encode = threading.Event(), KvCoding.encode

    def slow(coding: KvCoding, start: int, keys: torch.Tensor, values: torch.Tensor, level: KvLevel) -> bytes:
        assert may_code.wait(30.0)
        return encode(coding, start, keys, values, level)

    monkeypatch.setattr(KvCoding, "encode", slow)
    try:
        for session in (A, B):
            await opened(engine, session)
        await engine.run(Work(A, 0, 100, ids=PROMPT))
        async with anyio.create_task_group() as tasks:
            moved: list[bytes] = []

            async def move() -> None:
                moved.extend(await engine.export_kv(A, 0, 100))

            tasks.start_soon(move)
            with anyio.fail_after(20.0):
                for position in range(20):
                    await engine.run(Work(B, position, 1, ids=(3,)))
                await engine.run(Work(A, 100, 1, ids=(3,)))  # and so does the one that is moved
            assert not moved
            may_code.set()
        assert len(moved) == 2
    finally:
        may_code.set()
        engine.stop()


@pytest.mark.anyio
@pytest.mark.parametrize("span", [WHOLE, Span(0, 1)])
async def test_what_is_slow_the_first_time_can_be_done_before(model: LocalModel, span: Span) -> None:
    engine = Engine(Shard.load(model, span, "float32", CPU), 256)
    try:
        await engine.prepare_kv(span)
        assert engine._coding(span).is_warm  # noqa: SLF001
        await engine.prepare_kv(span)
    finally:
        engine.stop()


@pytest.mark.anyio
async def test_a_stopped_engine_moves_nothing(model: LocalModel) -> None:
    engine = Engine(Shard.load(model, WHOLE, "float32", CPU), 256)
    await opened(engine, A)
    await engine.run(Work(A, 0, 64, ids=PROMPT[:64]))
    engine.stop()
    with pytest.raises(LocalFault):
        await engine.export_kv(A, 0, 64)


@pytest.mark.anyio
async def test_the_cache_of_a_part_of_the_layers_goes_to_who_holds_that_part(engines: tuple[Engine, Engine]) -> None:
    whole, other = engines
    await opened(whole, A)
    await whole.run(Work(A, 0, 64, ids=PROMPT[:64]))
    for span in (Span(0, 2), MIDDLE, Span(4, 5)):
        parts = await whole.export_kv(A, 0, 64, span=span)
        own = SessionId(f"{span.start}")
        await opened(other, own, span=span)
        assert await other.import_kv(own, 0, parts) == 64
        again = await other.export_kv(own, 0, 64)
        assert again == parts, "bit for bit"
        assert parse_chunk(parts[0]).format == other.kv_format(span)
        with pytest.raises(BadChunk, match="layers"):
            await other.import_kv(own, 64, await whole.export_kv(A, 0, 64))
    with pytest.raises(Refused, match="not what this session is about"):
        await other.export_kv(SessionId("2"), 0, 64, span=Span(2, 5))
    assert whole.kv_bytes == other.kv_bytes > 0
    assert whole.prefill_ms > 0
