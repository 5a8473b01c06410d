"""KV blocks: exact when asked, bounded otherwise, never wrong silently, whatever the block holds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_samples import CHANNELS, FREQUENCIES, HEADS, LAYERS, WIDTH, block, coarser, components, profile, sample

from shoal.compression.container import codec_of, frame_bytes
from shoal.compression.errors import MalformedPayload
from shoal.compression.kv_bitstream import decode_kv, encode_kv
from shoal.compression.kv_block import KvBlock, KvShape, from_floats, joined, to_floats
from shoal.compression.kv_cachegen import CacheGen
from shoal.compression.kv_cachegen_reference import CacheGenReference
from shoal.compression.kv_levels import CHUNK_TOKENS, LEVELS, QUALITIES
from shoal.compression.kv_profile import LARGEST_SYMBOL, parse_profile
from shoal.compression.kv_shoal import encode_block
from shoal.compression.rotary import halves_order, rotate, rotation

DTYPES = ("bfloat16", "float16", "float32")


def same(left: KvBlock, right: KvBlock) -> bool:
    return left.shape == right.shape and left.keys.tobytes() + left.values.tobytes() == (
        right.keys.tobytes() + right.values.tobytes()
    )


def error(left: KvBlock, right: KvBlock) -> float:
    """Largest difference of a component, in units of the transform."""
    made = profile()
    difference = components(made, left) - components(made, right)
    return float(np.abs(difference).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 200])
def test_lossless_is_exact_and_smaller(dtype: str, tokens: int) -> None:
    made = block(tokens, dtype=dtype)
    payloads = encode_kv(made)
    assert len(payloads) == -(-tokens // CHUNK_TOKENS)
    assert same(decode_kv(payloads, made.shape), made)
    for payload, chunk in zip(payloads, made.chunks(), strict=True):
        assert len(payload) <= chunk.shape.raw_bytes + frame_bytes(chunk.shape.specs)
    assert tokens < 64 or sum(map(len, payloads)) < made.shape.raw_bytes


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(DTYPES), st.integers(0, 2**32 - 1), st.integers(1, 70))
def test_lossless_keeps_any_bits_also_those_that_are_no_numbers(dtype: str, seed: int, tokens: int) -> None:
    raw = np.random.default_rng(seed).integers(0, 256, 2 * LAYERS * tokens * CHANNELS * 4, np.uint8)
    stored = raw.view(to_stored(dtype))[: 2 * LAYERS * tokens * CHANNELS].reshape(2, LAYERS, tokens, HEADS, WIDTH)
    made = KvBlock(KvShape(LAYERS, tokens, HEADS, WIDTH, dtype), stored[0], stored[1])
    payloads = encode_kv(made)
    assert same(decode_kv(payloads, made.shape), made)
    assert [encode_kv(made, accelerate=False), encode_kv(made, accelerate=True)] == [payloads, payloads]


def to_stored(dtype: str) -> str:
    return {"bfloat16": "<u2", "float16": "<f2", "float32": "<f4"}[dtype]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("groups", [1, HEADS])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", LEVELS)
def test_a_level_keeps_every_component_within_half_a_step(groups: int, together: bool, dtype: str, level: str) -> None:
    made, prof = block(150, dtype=dtype), profile(groups, together=together)
    decoded = decode_kv(encode_kv(made, level, prof), made.shape, prof)
    step = 2 ** (prof.step_quarters(level) / 4)
    difference = components(prof, made) - components(prof, decoded)
    # The first token is twenty times the others; storing the result rounds in proportion to it.
    rounding = 0.5 if dtype == "bfloat16" else 0.1
    assert np.abs(difference[:, :, 1:]).max() <= step * 0.5 + rounding


def test_a_profile_serves_positions_that_its_samples_never_reached() -> None:
    prof = profile()
    sizes, errors = [], []
    for position in (4, 3000, 100_000):
        made = block(128, dtype="float32", first_position=position)
        payloads = encode_kv(made, "default", prof)
        sizes.append(sum(map(len, payloads)))
        errors.append(error(made, decode_kv(payloads, made.shape, prof)))
    assert max(sizes) < 1.03 * sizes[0]
    assert max(errors) < 1.1 * errors[0]


def test_levels_are_ordered_in_size_and_in_error() -> None:
    made, prof = block(256), profile()
    sizes, errors = [], []
    for level in LEVELS:
        payloads = encode_kv(made, level, prof)
        sizes.append(sum(map(len, payloads)))
        errors.append(error(made, decode_kv(payloads, made.shape, prof)))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert sizes[0] < sum(map(len, encode_kv(made)))


def test_the_last_tokens_are_finer_when_the_cache_ends_there() -> None:
    made, prof = block(100), profile()
    rest, tail = [], []
    for fine in (0, 32):
        decoded = decode_kv(encode_kv(made, "small", prof, fine_tokens=fine), made.shape, prof)
        difference = np.abs(components(prof, made) - components(prof, decoded))
        rest.append(difference[:, :, 1:-32].mean())
        tail.append(difference[:, :, -32:].mean())
    assert tail[1] < 0.6 * tail[0]
    assert rest[1] == rest[0]


def test_chunks_decode_alone_and_may_have_different_qualities() -> None:
    made, prof = block(160), profile()
    streams = {quality: encode_kv(made, quality, prof) for quality in QUALITIES}
    mixed = [streams["small"][0], streams["lossless"][1], streams["default"][2]]
    decoded = decode_kv(mixed, made.shape, prof)
    assert same(decoded.part(64, 64), made.part(64, 64))
    for index, (quality, shape) in enumerate(zip(("small", "lossless", "default"), made.shape.chunks(), strict=True)):
        alone = decode_kv([streams[quality][index]], shape, prof)
        assert same(alone, decoded.part(64 * index, shape.tokens))
    assert same(joined([decoded.part(0, 70), decoded.part(70, 90)]), decoded)


@pytest.mark.parametrize("arrangement", [(1, False), (HEADS, False), (1, True), (HEADS, True)])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("tokens", [1, 64, 130])
def test_numpy_and_numba_write_the_same_bytes_and_read_the_same_bits(
    arrangement: tuple[int, bool], progressive: bool, tokens: int
) -> None:
    made, prof = block(tokens), profile(arrangement[0], together=arrangement[1])
    plain, fast = (
        encode_kv(made, "default", prof, fine_tokens=20, progressive=progressive, accelerate=accelerate)
        for accelerate in (False, True)
    )
    assert plain == fast
    assert same(
        decode_kv(plain, made.shape, prof, accelerate=False), decode_kv(plain, made.shape, prof, accelerate=True)
    )


def test_base_and_refinement_are_the_whole_and_cost_nearly_nothing_more() -> None:
    made, prof = block(64), profile()
    (whole,), (both,) = (encode_kv(made, "near-lossless", prof, progressive=p) for p in (False, True))
    assert same(decode_kv([whole], made.shape, prof), decode_kv([both], made.shape, prof))
    assert len(both) <= 1.01 * len(whole) + 60


def test_a_progressive_chunk_cut_anywhere_behind_its_base_gives_the_base() -> None:
    made, prof = block(64), profile()
    (both,) = encode_kv(made, "default", prof, progressive=True)
    full = decode_kv([both], made.shape, prof)
    base_bytes = next(n for n in range(len(both)) if decodes(both[:n], made.shape))
    base = decode_kv([both[:base_bytes]], made.shape, prof, allow_truncated=True)
    assert error(made, full) < error(made, base) < 3.2 * 2 ** (prof.step_quarters("default") / 4)
    for cut in range(base_bytes, len(both), 37):
        assert same(decode_kv([both[:cut]], made.shape, prof, allow_truncated=True), base)
        with pytest.raises(MalformedPayload):
            decode_kv([both[:cut]], made.shape, prof)
    assert same(decode_kv([both], made.shape, prof, allow_truncated=True), full)


def decodes(data: bytes, shape: KvShape) -> bool:
    try:
        decode_kv([data], shape, profile(), allow_truncated=True)
    except MalformedPayload:
        return False
    return True


def test_the_refinement_of_another_base_is_refused() -> None:
    prof = profile()
    (one,), (two,) = (encode_kv(block(64, seed=s), "default", prof, progressive=True) for s in (1, 2))
    shape = block(64).shape
    cut_one, cut_two = (next(n for n in range(len(d)) if decodes(d[:n], shape)) for d in (one, two))
    with pytest.raises(MalformedPayload, match="another base"):
        decode_kv([one[:cut_one] + two[cut_two:]], shape, prof)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_block_with_values_that_are_not_finite_travels_exactly(wrong: float) -> None:
    floats = to_floats(block(130).keys, "bfloat16")
    floats[1, 70, 1, 3] = wrong
    bits = (floats.view(np.uint32) >> np.uint32(16)).astype("<u2")
    made = replace(block(130), keys=bits)
    payloads = encode_kv(made, "small", profile())
    assert [codec_of(p) for p in payloads] == ["kv-shoal", "kv-lossless", "kv-shoal"]
    assert same(decode_kv(payloads, made.shape, profile()).part(64, 64), made.part(64, 64))


@pytest.mark.parametrize("factor", [1e4, 1e20])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_outliers_cost_bytes_but_no_quality(factor: float, dtype: str) -> None:
    made = block(64, dtype="float32")
    keys = made.keys.copy()
    keys[0, 10, 0, 5] *= np.float32(factor)
    made = KvBlock(replace(made.shape, dtype=dtype), from_floats(keys, dtype), from_floats(made.values, dtype))
    payloads = encode_kv(made, "default", profile())
    decoded = decode_kv(payloads, made.shape, profile())
    assert len(payloads[0]) <= made.shape.raw_bytes + frame_bytes(made.shape.specs)
    exact, got = to_floats(made.keys, dtype), to_floats(decoded.keys, dtype)
    assert got[0, 10, 0, 5] == pytest.approx(exact[0, 10, 0, 5], rel=0.01)
    assert np.abs(got - exact)[:, 11:].max() < 40


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-40, 3e38])
def test_constant_and_tiny_and_huge_channels_survive(level: str, value: float) -> None:
    full = (LAYERS, 30, HEADS, WIDTH)
    stored = from_floats(np.full(full, value, np.float32), "bfloat16")
    made = KvBlock(KvShape(*full), stored, stored)
    payloads = encode_kv(made, level, profile())
    decoded = decode_kv(payloads, made.shape, profile())
    assert sum(map(len, payloads)) <= made.shape.raw_bytes + frame_bytes(made.shape.specs)
    assert np.isfinite(to_floats(decoded.keys, "bfloat16")).all()
    if value > 1e30:
        assert same(decoded, made)


def test_a_fixed_vector_on_every_key_changes_bytes_but_not_the_error() -> None:
    made, prof = block(128, dtype="float32"), profile()
    vector = np.random.default_rng(5).normal(0, 30, (1, 1, HEADS, WIDTH)).astype(np.float32)
    moved = replace(made, keys=made.keys + vector)
    plain = decode_kv(encode_kv(made, "default", prof), made.shape, prof)
    back = decode_kv(encode_kv(moved, "default", prof), made.shape, prof)
    errors = [
        np.square(components(prof, made) - components(prof, decoded)).mean()
        for decoded in (plain, replace(back, keys=back.keys - vector))
    ]
    assert errors[1] <= 1.15 * errors[0]


def test_a_wrong_profile_is_refused_by_the_reader_and_never_costs_more_than_raw_for_the_writer() -> None:
    made, prof, other = block(64), profile(), profile(seed=8)
    payloads = encode_kv(made, "default", prof)
    with pytest.raises(MalformedPayload, match="another profile"):
        decode_kv(payloads, made.shape, other)
    with pytest.raises(MalformedPayload, match="without its profile"):
        decode_kv(payloads, made.shape)
    unfit = coarser(other, -60)
    for payload in encode_kv(made, "default", unfit):
        assert len(payload) <= made.shape.raw_bytes + frame_bytes(made.shape.specs)
    assert same(decode_kv(encode_kv(made, "default", unfit), made.shape, unfit), made)
    with pytest.raises(ValueError, match="another model"):
        encode_block(block(64), replace(prof, layers=3), 0)
    with pytest.raises(ValueError, match="profile"):
        encode_kv(made, "default")


def test_a_chunk_belongs_to_its_place() -> None:
    prof = profile()
    payloads = encode_kv(block(128), "default", prof)
    with pytest.raises(MalformedPayload, match="position"):
        decode_kv(payloads[::-1], block(128).shape, prof)
    with pytest.raises(MalformedPayload, match="payloads for"):
        decode_kv(payloads[:1], block(128).shape, prof)


@pytest.mark.parametrize("accelerate", [False, True])
def test_neighbouring_pairs_are_coded_as_halves_are(accelerate: bool) -> None:
    made, prof = block(130), profile()
    order = halves_order(WIDTH, WIDTH // 2)
    apart = replace(prof, neighbours=True)
    keys = np.empty_like(made.keys)
    keys[..., order] = made.keys
    moved = replace(made, keys=keys)
    for progressive in (False, True):
        payloads, plain = (
            encode_kv(held, "default", used, progressive=progressive, accelerate=accelerate)
            for held, used in ((moved, apart), (made, prof))
        )
        assert [len(p) for p in payloads] == [len(p) for p in plain]
        decoded = decode_kv(payloads, made.shape, parse_profile(apart.packed), accelerate=accelerate)
        expected = decode_kv(plain, made.shape, prof, accelerate=accelerate)
        assert np.array_equal(decoded.keys[..., order], expected.keys)
        assert np.array_equal(decoded.values, expected.values)


@pytest.mark.parametrize("accelerate", [False, True])
def test_every_layer_turns_at_its_own_frequencies(accelerate: bool) -> None:
    still = sample(130, 5)
    cosines, sines = rotation(FREQUENCIES, 0, 130)
    keys = np.stack([still.keys[0], rotate(still.keys[1], cosines, -sines)])  # the second layer does not turn
    made = KvBlock(KvShape(LAYERS, 130, HEADS, WIDTH, "float32"), keys, still.values)
    rows = np.stack([FREQUENCIES, np.zeros_like(FREQUENCIES)])
    own, alike = (replace(profile(), inverse_frequencies=f) for f in (rows, np.tile(FREQUENCIES, (LAYERS, 1))))
    turning = KvBlock(made.shape, still.keys, still.values)
    sizes = []
    for held, used in ((made, parse_profile(own.packed)), (turning, alike)):
        payloads = encode_kv(held, "default", used, accelerate=accelerate)
        sizes.append(sum(map(len, payloads)))
        difference = components(used, held) - components(used, decode_kv(payloads, held.shape, used))
        assert np.abs(difference[:, :, 1:]).max() <= 0.5 * 2 ** (used.step_quarters("default") / 4) + 0.1
    assert sizes[0] == pytest.approx(sizes[1], rel=0.001)


@pytest.mark.parametrize("groups", [1, HEADS])
def test_a_profile_is_its_bytes(groups: int) -> None:
    made = profile(groups)
    again = parse_profile(made.packed)
    assert again.packed == made.packed
    assert again.digest == made.digest != profile(3 - groups).digest
    assert encode_kv(block(70), "default", again) == encode_kv(block(70), "default", made)


def test_base_tables_are_sums_of_the_whole_tables() -> None:
    table, coarse = profile().table.frequencies_cs, profile().coarse_table.frequencies_cs
    zero = LARGEST_SYMBOL
    assert np.array_equal(coarse[:, 20], table[:, zero - 1 : zero + 2].sum(axis=1))
    assert np.array_equal(coarse[:, 21], table[:, zero + 2 : zero + 5].sum(axis=1))


def test_the_yardsticks_come_back_within_their_steps() -> None:
    made = block(100)
    floats = [to_floats(array, "bfloat16") for array in (made.keys, made.values)]
    fitted = CacheGen.fit([block(100, seed=s) for s in (2, 3)], 0.2)
    reference = CacheGenReference(256, 256)
    for decoded in (
        fitted.decode(fitted.encode(made), made.shape),
        reference.decode(reference.encode(made), made.shape),
    ):
        for array, exact in zip((decoded.keys, decoded.values), floats, strict=True):
            difference = np.abs(to_floats(array, "bfloat16") - exact)[:, 10:]
            assert difference.mean() < 0.15 * np.abs(exact[:, 10:]).mean()
