"""Chunks of KV caches: what says what it is is taken in, everything else is refused with its reason."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from shoal.compression.kv_levels import CHUNK_TOKENS
from shoal.swarm.errors import BadChunk, Refused
from shoal.swarm.identifiers import ModelId, SessionId
from shoal.swarm.kv.kv_chunks import KvChunk, chunk_ranges, pack_chunk, parse_chunk
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Work
from shoal.swarm.simulated.compute import SimulatedCompute
from shoal.swarm.simulated.model import SimulatedModel
from shoal.swarm.units import Span, whole

MODEL = SimulatedModel(layers=4)
HERE, THERE = SessionId("here"), SessionId("there")
PROFILE = b"p" * 32
PROMPT = tuple((7 * i + 3) % MODEL.vocabulary for i in range(150))
WHOLE = whole(MODEL.layers)


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


async def filled(span: Span = WHOLE, profile: bytes = b"") -> SimulatedCompute:
    """With a session HERE that holds the prompt, and an empty one THERE."""
    compute = SimulatedCompute(MODEL, (span,), profile=profile)
    await compute.open(HERE, span, 200, Sampling(), ())
    await compute.open(THERE, span, 200, Sampling(), ())
    await compute.run(Work(HERE, 0, len(PROMPT), ids=PROMPT))
    return compute


@given(start=st.integers(0, 300), count=st.integers(1, 300))
def test_ranges_are_cut_at_multiples_of_a_chunk_and_leave_nothing_out(start: int, count: int) -> None:
    ranges = chunk_ranges(start, start + count)
    assert [position for first, last in ranges for position in range(first, last)] == list(range(start, start + count))
    assert all(first % CHUNK_TOKENS == 0 for first, _ in ranges[1:])
    assert all(0 < last - first <= CHUNK_TOKENS for first, last in ranges)


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_chunk_or_refused(data: bytes) -> None:
    try:
        assert pack_chunk(parse_chunk(data)) == data
    except BadChunk:
        pass


@pytest.mark.anyio
@pytest.mark.parametrize("cut", [1, 64, 100, 150])
async def test_a_session_goes_on_elsewhere_from_what_was_moved(cut: int) -> None:
    compute = await filled()
    assert await compute.import_kv(THERE, 0, await compute.export_kv(HERE, 0, cut)) == cut
    if cut < len(PROMPT):
        await compute.run(Work(THERE, cut, len(PROMPT) - cut, ids=PROMPT[cut:]))
    done = await compute.run(Work(THERE, len(PROMPT), 1, ids=(5,), wants_token=True))
    assert done.choice is not None
    assert done.choice.id == MODEL.expected_tokens((*PROMPT, 5), 1)[0]


@pytest.mark.anyio
async def test_what_is_not_held_or_has_no_profile_is_not_exported() -> None:
    compute = await filled()
    for start, stop in ((0, 151), (5, 5), (-1, 3)):
        with pytest.raises(Refused, match="asked for"):
            await compute.export_kv(HERE, start, stop)
    with pytest.raises(Refused, match="no profile"):
        await compute.export_kv(HERE, 0, 64, "default")
    with pytest.raises(Refused, match="no such session"):
        await compute.export_kv(SessionId("nobody"), 0, 64)


async def refused(chunks: Sequence[bytes], held: int, profile: bytes = b"") -> str:
    """The reason, after `held` positions were taken in."""
    compute = await filled(profile=profile)
    with pytest.raises(BadChunk) as caught:
        await compute.import_kv(THERE, 0, chunks)
    assert compute.sessions[THERE].held == held
    return str(caught.value)


@pytest.mark.anyio
async def test_chunks_truncated_reordered_doubled_or_left_out_are_refused() -> None:
    compute = await filled()
    one, two, three = await compute.export_kv(HERE, 0, 150)
    assert "not a chunk" in await refused([one[:-1]], 0)
    assert "position 64 on where position 0" in await refused([two, one, three], 0)
    assert "position 0 on where position 64" in await refused([one, one], 64)
    assert "position 128 on where position 64" in await refused([one, three], 64)


@pytest.mark.anyio
async def test_a_chunk_of_another_model_dtype_layer_range_or_profile_is_refused() -> None:
    compute = await filled(profile=PROFILE)
    (data,) = await compute.export_kv(HERE, 0, 64, "default")
    chunk = parse_chunk(data)
    kind = chunk.format
    assert kind.profile == PROFILE

    def other(**changes: object) -> list[bytes]:
        return [pack_chunk(replace(chunk, format=replace(kind, **changes)))]

    assert "model" in await refused(other(model=ModelId("f" * 64)), 0, PROFILE)
    assert "bfloat16" in await refused(other(dtype="bfloat16"), 0, PROFILE)
    assert "layers 0:3" in await refused(other(layers=(0, 3)), 0, PROFILE)
    assert "profile" in await refused(other(profile=b"q" * 32), 0, PROFILE)
    assert "profile" in await refused([data], 0)
    assert "payload" in await refused([pack_chunk(replace(chunk, payload=chunk.payload[:-8]))], 0, PROFILE)
    assert "positions" in await refused([pack_chunk(replace(chunk, count=0))], 0)


@pytest.mark.anyio
async def test_a_cache_that_does_not_continue_what_is_held_or_finds_no_room_is_refused() -> None:
    compute = await filled()
    chunks = await compute.export_kv(HERE, 0, 150)
    with pytest.raises(Refused, match="are held"):
        await compute.import_kv(HERE, 0, chunks)
    small = SessionId("small")
    await compute.open(small, WHOLE, 100, Sampling(), ())
    with pytest.raises(Refused, match="reserved"):
        await compute.import_kv(small, 0, chunks)
    assert compute.sessions[small].held == CHUNK_TOKENS


def test_a_chunk_is_small_beside_what_it_carries() -> None:
    compute = SimulatedCompute(MODEL, (WHOLE,))
    assert len(pack_chunk(KvChunk(compute.kv_format(WHOLE), 0, 64, b""))) < 150
