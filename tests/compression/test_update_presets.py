"""Every preset: round trips, exact shares, stable bounds of error, equal bytes with and without numba."""

from dataclasses import replace
from fractions import Fraction
from math import comb, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.compression.lookup_quantiser import BINS, GROUP, lookup_quantise, lookup_values
from shoal.compression.presets import PRESETS, preset
from shoal.compression.sparse_codec import SparseCodec
from shoal.compression.sparsify import (
    exact_share,
    kept_per_chunk,
    random_count,
    random_positions,
    top_k_positions,
)

SPARSE = [codec for codec in PRESETS.values() if isinstance(codec, SparseCodec)]


def update(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_t(4, count) * np.repeat(random.uniform(1e-4, 1, -(-count // 500)), 500)[:count]).astype(
        np.float32
    )


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("count", [0, 1, 2, 63, 4095, 4096, 4097, 30_001])
def test_every_preset_takes_any_length_and_is_idempotent_in_what_it_decodes(name: str, count: int) -> None:
    values = update(count)
    payload = preset(name).encode(values, seed=5)
    decoded = preset(name).decode(payload, count, seed=5)
    assert decoded.dtype == np.float32
    assert decoded.shape == (count,)
    assert np.isfinite(decoded).all()
    assert preset(name).encode(values, seed=5) == payload


@pytest.mark.parametrize(("name", "bound"), [("none", 0.0), ("fp16", 2**-11), ("int8", 1 / 254)])
def test_the_dense_presets_keep_their_bound_of_error(name: str, bound: float) -> None:
    values = update(4096)
    decoded = preset(name).decode(preset(name).encode(values), 4096)
    scale = np.abs(values) + 1e-4 if name == "fp16" else np.abs(values).max()
    assert (np.abs(decoded - values) <= bound * scale * 1.0001).all()


def test_fp4_gives_the_nearest_of_its_fifteen_levels() -> None:
    values = update(4096)
    decoded = preset("fp4").decode(preset("fp4").encode(values), 4096)
    levels = np.concatenate([[0], 2.0 ** -np.arange(7)]) * np.abs(values).max()
    nearest = np.abs(np.abs(values)[:, None] - levels).min(axis=1)
    assert np.allclose(np.abs(np.abs(values) - np.abs(decoded)), nearest, rtol=1e-4, atol=1e-7)
    assert (np.signbit(values) == np.signbit(decoded))[decoded != 0].all()


@pytest.mark.parametrize("codec", SPARSE, ids=lambda codec: codec.name)
@settings(max_examples=15, deadline=None)
@given(count=st.integers(0, 20_000), seed=st.integers(0, 2**64 - 1))
def test_numpy_and_numba_write_the_same_bytes_and_read_the_same_values(
    codec: SparseCodec, count: int, seed: int
) -> None:
    plain, fast = replace(codec, accelerate=False), replace(codec, accelerate=True)
    values = update(count, seed % 1000)
    payload = plain.encode(values, seed)
    assert fast.encode(values, seed) == payload
    assert np.array_equal(plain.decode(payload, count, seed), fast.decode(payload, count, seed))


@pytest.mark.parametrize("codec", SPARSE, ids=lambda codec: codec.name)
def test_exactly_the_asked_share_travels(codec: SparseCodec) -> None:
    codec = replace(codec, values="half")
    values = np.abs(update(50_000)) + np.float32(0.1)
    decoded = codec.decode(codec.encode(values), 50_000)
    pool = random_count(50_000, codec.random)
    assert np.count_nonzero(decoded) == pool * codec.top.numerator // codec.top.denominator


@given(st.integers(1, 10_000), st.sampled_from([0.1, 0.2, 0.4, 1 / 64, 1 / 3, 0.7, 1.0]), st.integers(0, 2**63))
def test_random_positions_are_exactly_the_share_different_and_inside(count: int, share: float, seed: int) -> None:
    fraction = exact_share(share)
    positions = random_positions(count, fraction, seed)
    assert len(positions) == count * fraction.numerator // fraction.denominator
    assert len(np.unique(positions)) == len(positions)
    assert ((positions >= 0) & (positions < count)).all()


def test_four_tenths_means_four_tenths() -> None:
    assert exact_share(0.4) == Fraction(2, 5)
    assert len(random_positions(1000, exact_share(0.4), 1)) == 400


def test_every_position_is_drawn_equally_often() -> None:
    hits = np.zeros(40)
    for seed in range(4000):
        hits[random_positions(40, exact_share(0.4), seed)] += 1
    assert np.abs(hits / 4000 - 0.4).max() < 0.04


def test_equal_magnitudes_are_settled_by_position_on_both_implementations() -> None:
    values = np.tile(np.array([1, -1, 0, 1], np.float32), 2000)
    for accelerate in (False, True):
        positions = top_k_positions(values, Fraction(1, 64), accelerate)
        assert positions[:4].tolist() == [0, 1, 3, 4]
        assert len(positions) == kept_per_chunk(8000, Fraction(1, 64)).sum() == 125


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(name: str, wrong: float) -> None:
    values = update(5000)
    values[2::10] = wrong
    with pytest.raises(ValueError, match="not finite"):
        preset(name).encode(values)


def test_the_positions_cost_at_most_three_per_cent_more_than_the_bound() -> None:
    random = np.random.default_rng(3)
    values = random.normal(size=4096 * 400).astype(np.float32)
    payload = preset("sparse").encode(values)
    bound = 400 * (log2(comb(4096, 64)) + 64)
    assert len(payload) * 8 <= 1.03 * bound


def test_sparse2_decodes_to_the_very_bits_of_a_two_bit_packer() -> None:
    values = update(300_000)
    positions = top_k_positions(values, Fraction(1, 64))
    codes, tables = lookup_quantise(values[positions])
    packed = np.zeros(300_000, np.float32)
    packed[positions] = lookup_values(codes, tables)
    decoded = preset("sparse2").decode(preset("sparse2").encode(values), 300_000)
    assert np.array_equal(decoded.view(np.uint32), packed.view(np.uint32))


def test_the_lookup_quantiser_follows_its_definition() -> None:
    values = update(GROUP + 50)
    codes, tables = lookup_quantise(values)
    first = values[:GROUP].astype(np.float64)
    width = 6 * first.std(ddof=1) / BINS
    assert np.array_equal(codes[:GROUP], np.clip(np.rint((first - first.mean()) / width + 2), 0, 3))
    for code in range(BINS):
        inside = first[codes[:GROUP] == code]
        assert not len(inside) or tables[0, code] == pytest.approx(inside.mean(), rel=1e-5, abs=1e-7)


def test_stochastic_rounding_keeps_the_mean() -> None:
    codec = replace(PRESETS["cocktail"], top=Fraction(1), random=Fraction(1), rounding="stochastic", bits=2)
    values = np.full(4000, 0.3, np.float32)
    values[::100] = 1.0
    decoded = np.mean([codec.decode(codec.encode(values, seed), 4000, seed)[1] for seed in range(2000)])
    assert decoded == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", ["levels", "half"])
def test_the_other_widths_of_values_come_back_within_half_a_step(bits: int, kind: str) -> None:
    codec = SparseCodec("tried", top=Fraction(1), values="levels" if kind == "levels" else "half", bits=bits, bucket=64)
    values = update(2000)
    decoded = codec.decode(codec.encode(values), 2000)
    largest = np.repeat(np.abs(np.pad(values, (0, 48))).reshape(-1, 64).max(axis=1), 64)[:2000]
    bound = largest * 1.07 / (2 * ((1 << (bits - 1)) - 1)) if kind == "levels" else np.abs(values) * 2**-11 + 1e-7
    assert (np.abs(decoded - values) <= bound * 1.001).all()


def test_an_unknown_preset_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="no preset 'dense'"):
        preset("dense")
