"""What coding a chunk takes beyond the chunk and its payload, where one hop holds all layers of a model of 70 B."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from shoal.compression.kv_bitstream import decode_kv, encode_kv
from shoal.compression.kv_block import KvBlock, KvShape, from_floats

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
