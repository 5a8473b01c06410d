"""What coding a chunk takes beyond the chunk and its payload, where one hop holds all layers of a model of 70 B."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from shoal.compression.kv_bitstream import decode_kv, encode_kv
from shoal.compression.kv_block import KvBlock, KvShape, from_floats
from shoal.compression.kv_fitting import KvSample, Sensitivity, fit_profile
from shoal.compression.kv_profile import KvProfile
from shoal.compression.kv_symbols import symbol_plan

MOST_BYTES = 64 << 20


def peak_bytes(action: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_chunk_of_eighty_layers_is_coded_within_its_memory(dtype: str) -> None:
    shape = KvShape(80, 64, 8, 128, dtype)
    values = np.random.default_rng(0).normal(size=(2, *shape.specs[0].shape)).astype(np.float32)
    block = KvBlock(shape, *(from_floats(each, dtype) for each in values))
    del values
    (payload,) = encode_kv(block)  # what is compiled is compiled
    assert len(payload) < shape.raw_bytes
    assert peak_bytes(lambda: encode_kv(block)) - len(payload) < MOST_BYTES
    assert peak_bytes(lambda: decode_kv([payload], shape)) - shape.raw_bytes < MOST_BYTES
    decoded = decode_kv([payload], shape)
    assert decoded.keys.tobytes() == block.keys.tobytes()
    assert decoded.values.tobytes() == block.values.tobytes()


def profile_of_eighty_layers() -> KvProfile:
    """Fitted to two layers, which then stand for all."""
    frequencies = 1e4 ** (-np.arange(16) / 16)
    rows = np.random.default_rng(1).laplace(size=(2, 2, 2, 200, 32, 32)).astype(np.float32)
    samples = [KvSample(keys, values, 64) for keys, values in rows]
    alike = np.broadcast_to(np.eye(1024) / 1e3, (2, 1024, 1024))
    two = fit_profile(samples, Sensitivity(alike, alike), frequencies, 32, (0, 6, 10))
    forty = {
        name: np.concatenate([getattr(two, name)] * 40)
        for name in ("inverse_frequencies", "offsets", "means", "forward", "spreads")
    }
    return replace(two, layers=80, **forty)


def test_a_lossy_chunk_of_eighty_layers_is_coded_within_its_memory() -> None:
    """What all chunks with one step share is made anew each time here."""
    shape = KvShape(80, 64, 32, 32, "bfloat16", 64)
    values = np.random.default_rng(0).laplace(size=(2, *shape.specs[0].shape)).astype(np.float32)
    block = KvBlock(shape, *(from_floats(each, shape.dtype) for each in values))
    profile = profile_of_eighty_layers()
    (payload,) = encode_kv(block, "default", profile)
    assert len(payload) < shape.raw_bytes / 4
    decode_kv([payload], shape, profile)
    symbol_plan.cache_clear()
    assert peak_bytes(lambda: encode_kv(block, "default", profile)) - len(payload) < MOST_BYTES
    symbol_plan.cache_clear()
    assert peak_bytes(lambda: decode_kv([payload], shape, profile)) - shape.raw_bytes < MOST_BYTES
