"""What an engine does with chunks that outlived their session: the rest of one, another level, a comparison."""

from collections.abc import Iterator

import pytest
import torch
from node.engine_chain import CPU, local_model
from node.test_kv_moving import PROMPT, WHOLE, A, B, continued, opened
from node.tiny_models import VOCABULARY, make_model, save_model

from shoal.compression.kv_levels import LEVELS, KvLevel
from shoal.node.engine import Engine
from shoal.node.kv_calibration import calibrate
from shoal.node.kv_coding import KvCoding
from shoal.node.model_source import LocalModel
from shoal.node.shard import Shard
from shoal.swarm.errors import BadChunk, Refused
from shoal.swarm.identifiers import SessionId
from shoal.swarm.kv.kv_chunks import KvChunk
from shoal.swarm.prefixes.prefixes import LOSSY_MAY_DIFFER
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Work
from shoal.swarm.units import Span

OTHER = tuple((7 * i + 3) % VOCABULARY for i in range(100))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = tmp_path_factory.mktemp("kept")
    save_model(make_model("llama"), folder / "model")
    return local_model(folder / "model", folder / "cache")


@pytest.fixture
def engine(model: LocalModel) -> Iterator[Engine]:
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(VOCABULARY, (160,), generator=generator) for _ in range(5)]
    profile = calibrate(make_model("llama"), texts[:4], texts[4:])
    made = Engine(Shard.load(model, WHOLE, "float32", CPU), 1024, kv_profile=profile)
    yield made
    made.stop()


@pytest.mark.anyio
async def test_of_a_chunk_that_begins_before_what_is_held_only_the_rest_is_taken(engine: Engine) -> None:
    await opened(engine, A)
    await engine.run(Work(A, 0, 90, ids=PROMPT[:90]))
    chunks = await engine.export_kv(A, 0, 64)
    await opened(engine, B)
    await engine.run(Work(B, 0, 16, ids=PROMPT[:16]))
    assert await engine.import_kv(B, 16, chunks) == 64
    await engine.run(Work(B, 64, 26, ids=PROMPT[64:90]))
    assert await continued(engine, B, 90) == await continued(engine, A, 90)
    await opened(engine, SessionId("c"))
    await engine.run(Work(SessionId("c"), 0, 64, ids=PROMPT[:64]))
    with pytest.raises(BadChunk):
        await engine.import_kv(SessionId("c"), 64, chunks)


@pytest.mark.anyio
async def test_a_chunk_that_was_put_in_its_place_before_its_turn_is_not_decoded_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    decode = KvCoding.decode

    def counted(coding: KvCoding, chunk: KvChunk, heads: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        decoded.append(chunk.start)
        return decode(coding, chunk, heads, width)

    monkeypatch.setattr(KvCoding, "decode", counted)
    long = tuple((5 * i + 1) % VOCABULARY for i in range(200))
    await opened(engine, A)
    expected = await engine.run(Work(A, 0, 200, ids=long, wants_token=True))
    first, second, third = await engine.export_kv(A, 0, 192)
    await opened(engine, B)
    for chunk in (third, second, first):
        await engine.place_kv(B, chunk)
    assert decoded == [128, 64, 0]
    await engine.run(Work(B, 0, 80, ids=long[:80]))  # over the first and into the second
    assert await engine.import_kv(B, 80, [second]) == 128
    assert decoded == [128, 64, 0], "the rest of the second lay there"
    assert await engine.import_kv(B, 128, [bytes(bytearray(third))]) == 192
    assert decoded == [128, 64, 0, 128], "other bytes are not what was put there"
    done = await engine.run(Work(B, 192, 8, ids=long[192:], wants_token=True))
    assert done.choice is not None
    assert expected.choice is not None
    assert done.choice.id == expected.choice.id
    assert (await engine.export_kv(B, 128, 192)) == [third]


@pytest.mark.anyio
async def test_a_chunk_never_goes_over_what_is_computed_or_beyond_the_room(engine: Engine) -> None:
    await opened(engine, A)
    await opened(engine, B)
    await engine.run(Work(A, 0, 100, ids=PROMPT))
    await engine.run(Work(B, 0, 100, ids=OTHER))
    (others,) = await engine.export_kv(B, 0, 64)
    before = await engine.export_kv(A, 0, 64)
    await engine.place_kv(A, others)
    assert await engine.export_kv(A, 0, 64) == before
    await engine.open(SessionId("small"), WHOLE, 40, Sampling(), ())
    with pytest.raises(Refused, match="reserved"):
        await engine.place_kv(SessionId("small"), others)
    for bad in (others[:-5], b""):
        with pytest.raises(BadChunk):
            await engine.place_kv(A, bad)


@pytest.mark.anyio
async def test_a_kept_chunk_is_given_at_another_level_and_compared(engine: Engine, model: LocalModel) -> None:
    await opened(engine, A)
    await opened(engine, B)
    await engine.run(Work(A, 0, 100, ids=PROMPT))
    await engine.run(Work(B, 0, 100, ids=OTHER))
    (mine,) = await engine.export_kv(A, 0, 64)
    (others,) = await engine.export_kv(B, 0, 64)
    (second,) = await engine.export_kv(A, 64, 100)
    assert await engine.recode_kv(mine, "default") == (await engine.export_kv(A, 0, 64, "default"))[0]
    assert await engine.kv_distance(mine, mine, "lossless") == 0
    assert await engine.kv_distance(mine, others, "lossless") > 0.9
    for bad in (second, mine[:-5], b""):
        with pytest.raises(BadChunk):
            await engine.kv_distance(mine, bad, "lossless")


@pytest.mark.anyio
@pytest.mark.parametrize("level", LEVELS)
async def test_what_a_level_loses_is_no_lie_and_another_text_is(engine: Engine, level: KvLevel) -> None:
    """Random weights: much of a key is worth nothing to this model, so that the profile lets go of it."""
    await opened(engine, A)
    await opened(engine, B)
    await engine.run(Work(A, 0, 100, ids=PROMPT))
    await engine.run(Work(B, 0, 100, ids=OTHER))
    (mine,) = await engine.export_kv(A, 0, 64)
    (others,) = await engine.export_kv(B, 0, 64)
    honest, false = await engine.recode_kv(mine, level), await engine.recode_kv(others, level)
    assert await engine.kv_distance(mine, honest, level) <= LOSSY_MAY_DIFFER / 10
    assert await engine.kv_distance(mine, false, level) > 2 * LOSSY_MAY_DIFFER


@pytest.mark.anyio
async def test_without_a_profile_there_is_no_other_level(model: LocalModel) -> None:
    for span in (Span(0, 1), Span(0, 3)):
        plain = Engine(Shard.load(model, span, "float32", CPU), 512)
        try:
            await opened(plain, A, 200, span)
            await plain.run(Work(A, 0, 64, ids=PROMPT[:64]))
            (chunk,) = await plain.export_kv(A, 0, 64)
            assert await plain.kv_distance(chunk, chunk, "lossless") == 0
            with pytest.raises(Refused, match="profile"):
                await plain.recode_kv(chunk, "default")
        finally:
            plain.stop()
