"""Fitting: the components are uncorrelated, an error in them costs its weighted square, tables can code anything."""

import numpy as np
import pytest
from kv_samples import CHANNELS, FREQUENCIES, HEADS, LAYERS, WIDTH, profile, sample

from shoal.compression.kv_bitstream import decode_kv, encode_kv
from shoal.compression.kv_block import KvBlock, KvShape, from_floats, to_floats
from shoal.compression.kv_fitting import SCALE, KvSample, Sensitivity, fit_profile, fixed_keys, unrotated
from shoal.compression.kv_profile import ALPHABET, CLASSES, ESCAPE, ZERO
from shoal.compression.rotary import rotate, rotation


def centred(groups: int) -> np.ndarray:
    """(2, L, T, C) of the samples that the profile was fitted on, less their sinks."""
    made = profile(groups)
    rows = []
    for seed in range(4):
        drawn = sample(200, 100 + seed).without_sink
        offsets = made.offsets.reshape(LAYERS, 1, HEADS, WIDTH)
        keys = unrotated(drawn, FREQUENCIES, offsets).reshape(LAYERS, -1, CHANNELS)
        rows.append(np.stack([keys, drawn.values.reshape(LAYERS, -1, CHANNELS)]))
    return np.concatenate(rows, axis=2) - made.means.swapaxes(0, 1)[:, :, None]


def test_components_are_uncorrelated_and_spread_as_the_profile_says() -> None:
    made = profile(1)
    components = centred(1) @ made.forward_matrices.swapaxes(0, 1)[:, :, 0]
    for kind in range(2):
        for layer in range(LAYERS):
            covariance = np.cov(components[kind, layer].T)
            spreads = np.sqrt(np.diag(covariance))
            assert np.abs(covariance / np.outer(spreads, spreads) - np.eye(CHANNELS)).max() < 0.05
            assert np.abs(4 * np.log2(spreads) - made.spreads[layer, kind]).max() < 0.6


def test_an_error_in_the_components_costs_what_the_sensitivity_says() -> None:
    random = np.random.default_rng(7)
    roots = random.normal(size=(2, LAYERS, CHANNELS, CHANNELS))
    matrices = roots @ roots.transpose(0, 1, 3, 2) / 1e4
    made = profile(1)
    for kind in range(2):
        error = random.normal(size=(50, CHANNELS))
        weighted = np.einsum("tc,cd,td->t", error, matrices[kind, 1], error)
        moved = ((error @ made.forward_matrices[1, kind, 0]) ** 2).sum(axis=1) / SCALE**2
        assert np.allclose(moved, weighted, rtol=0.1, atol=0.05 * weighted.mean())


@pytest.mark.parametrize("groups", [1, HEADS])
def test_the_transform_is_undone(groups: int) -> None:
    made = profile(groups)
    both = made.forward_matrices.astype(np.float64) @ made.inverse_matrices
    assert np.abs(both - np.eye(made.group_width)).max() < 1e-3


def dependent(seed: int) -> KvSample:
    """Values that nearly follow from the keys."""
    drawn = sample(256, seed)
    keys = unrotated(drawn, FREQUENCIES)
    return KvSample(drawn.keys, (0.95 * keys[..., ::-1] + 0.05 * drawn.values).astype(np.float32))


@pytest.mark.parametrize("groups", [1, HEADS])
def test_one_transform_for_keys_and_values_uses_what_they_have_in_common(groups: int) -> None:
    identity = np.broadcast_to(np.eye(CHANNELS) / 4, (LAYERS, CHANNELS, CHANNELS))
    steps, held = (0, 6, 10), dependent(1)
    shape = KvShape(LAYERS, 256, HEADS, WIDTH)
    made = KvBlock(shape, from_floats(held.keys, shape.dtype), from_floats(held.values, shape.dtype))
    sizes, errors = [], []
    for together in (False, True):
        samples = [dependent(seed) for seed in (11, 12, 13)]
        fitted = fit_profile(samples, Sensitivity(identity, identity), FREQUENCIES, groups, steps, together=together)
        payloads = encode_kv(made, "default", fitted)
        decoded = decode_kv(payloads, shape, fitted)
        sizes.append(sum(map(len, payloads)))
        exact, got = (to_floats(array[:, 1:], shape.dtype) for array in (made.values, decoded.values))
        errors.append(float(np.square(got - exact).mean()))
    assert sizes[1] < 0.75 * sizes[0]
    assert errors[1] < 1.2 * errors[0]


def test_the_fixed_part_of_keys_is_told_from_what_turns_with_the_position() -> None:
    random = np.random.default_rng(3)
    turning, fixed = random.normal(size=(2, LAYERS, 1, HEADS, WIDTH)).astype(np.float32)
    # The slowest pairs hardly turn within 400 positions: what they share is left to the mean.
    fixed[..., 5:8] = fixed[..., 13:16] = 0
    noise = random.normal(size=(3, LAYERS, 400, HEADS, WIDTH)).astype(np.float32) * 0.1
    cosines, sines = rotation(FREQUENCIES, 0, 400)
    keys = [rotate(turning + part, cosines, sines) + fixed for part in noise]
    found = fixed_keys([KvSample(key, key) for key in keys], FREQUENCIES)
    assert np.abs(found - fixed[:, 0]).max() < 0.15


def test_every_table_can_code_zero_and_the_escape_and_is_symmetric() -> None:
    frequencies = profile(1).table.frequencies_cs.astype(np.int64)
    assert frequencies.shape == (CLASSES, ALPHABET)
    assert (frequencies[:, [ZERO, ESCAPE]] > 0).all()
    mirrored = frequencies[:, ESCAPE - 1 :: -1]
    assert np.abs(frequencies[:, :ESCAPE] - mirrored).max() <= 0.02 * frequencies.max()


def test_rotation_keeps_lengths_and_is_undone_by_turning_back() -> None:
    heads = np.random.default_rng(0).normal(size=(2, 30, 2, 16)).astype(np.float32)
    cosines, sines = rotation(FREQUENCIES[:5], 7, 30)
    turned = rotate(heads, cosines, sines)
    assert np.allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(heads, axis=-1), rtol=1e-5)
    assert np.array_equal(turned[..., 10:], heads[..., 10:])
    assert np.allclose(rotate(turned, cosines, -sines), heads, atol=1e-5)


def test_samples_that_are_not_finite_are_refused() -> None:
    wrong = sample(20, 1)
    keys = wrong.keys.copy()
    keys[0, 3, 0, 0] = np.nan
    identity = np.broadcast_to(np.eye(CHANNELS), (LAYERS, CHANNELS, CHANNELS))
    with pytest.raises(ValueError, match="not finite"):
        fit_profile([KvSample(keys, wrong.values)], Sensitivity(identity, identity), FREQUENCIES, 1, (0, 1, 2))
