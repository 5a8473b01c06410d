"""Bytes written by version 2 of the format, and what they mean: integers that no later version may read otherwise.

Run as a program (with the sources on the path) to write the file anew after a deliberate change of the format.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.compression.entropy_table import table_from_counts
from shoal.compression.hashing import random_words
from shoal.compression.kv_bitstream import decode_kv, encode_kv
from shoal.compression.kv_block import KvBlock, KvShape, to_floats
from shoal.compression.kv_profile import parse_profile
from shoal.compression.presets import PRESETS
from shoal.compression.rans import decode_streams, encode_streams

FILE = Path(__file__).parents[1] / "golden" / "compression.json"
COUNT = 9000
DENSE_COUNT = 100
SEED = 11


def integers(count: int, seed: int) -> np.ndarray:
    """Roughly bell shaped, -1020..1020: sums of bytes, the same on every machine."""
    words = random_words(seed, np.arange(4 * count)).reshape(4, count)
    return (words[:2] >> np.uint64(23)).astype(np.int64).sum(axis=0) - (words[2:] >> np.uint64(23)).astype(
        np.int64
    ).sum(axis=0)


def update(name: str) -> np.ndarray:
    count = COUNT if name in {"cocktail", "sparse", "sparse2"} else DENSE_COUNT
    return np.ldexp(integers(count, SEED).astype(np.float32), -12)


def kv_block() -> KvBlock:
    shape = KvShape(2, 6, 2, 16)
    bits = (integers(shape.values, 3) + 16_000).astype("<u2").reshape(2, *shape.specs[0].shape)
    return KvBlock(shape, bits[0], bits[1])


def coded_symbols() -> tuple[np.ndarray, np.ndarray, Any]:
    symbols = np.clip(integers(2000, 5) // 64 + 20, 0, 40).astype(np.uint8)
    contexts = (np.arange(2000) % 3).astype(np.uint16)
    counts = np.stack([np.bincount(symbols[contexts == c], minlength=41) for c in range(3)])
    return symbols, contexts, table_from_counts(counts, floor=1)


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def golden() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text()))


def payload(entry: dict[str, str], key: str = "payload") -> bytes:
    return base64.b64decode(entry[key])


@pytest.mark.parametrize("accelerate", [False, True])
def test_the_entropy_coder_reads_the_golden_symbols_and_writes_the_golden_bytes(accelerate: bool) -> None:
    symbols, contexts, table = coded_symbols()
    entry = golden()["rans"]
    assert digest(decode_streams([payload(entry)], contexts, table, 4, accelerate)[0]) == entry["symbols"]
    assert encode_streams(symbols[None], contexts, table, 4, accelerate) == [payload(entry)]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_reads_the_golden_values_and_writes_the_golden_bytes(name: str) -> None:
    entry, values = golden()[name], update(name)
    decoded = PRESETS[name].decode(payload(entry), len(values), SEED)
    assert digest(decoded) == entry["values"]
    assert PRESETS[name].encode(values, SEED) == payload(entry)


def test_lossless_kv_reads_the_golden_block_and_writes_the_golden_bytes() -> None:
    entry, block = golden()["kv lossless"], kv_block()
    decoded = decode_kv([payload(entry)], block.shape)
    assert decoded.keys.tobytes() + decoded.values.tobytes() == block.keys.tobytes() + block.values.tobytes()
    assert encode_kv(block) == [payload(entry)]


@pytest.mark.parametrize("kind", ["kv shoal", "kv progressive"])
def test_a_golden_profile_reads_its_golden_chunk(kind: str) -> None:
    entry = golden()[kind]
    profile = parse_profile(payload(golden()["profile"]))
    assert profile.digest.hex() == golden()["profile"]["digest"]
    shape = KvShape(2, 6, 2, 16)
    decoded = decode_kv([payload(entry)], shape, profile)
    expected = np.frombuffer(payload(entry, "block"), "<u2").reshape(2, *shape.specs[0].shape)
    for array, stored in zip((decoded.keys, decoded.values), expected, strict=True):
        # The transform back is in floats: the last bit of a bfloat16 may differ between machines, the symbols may not.
        exact = to_floats(stored, "bfloat16")
        assert np.allclose(to_floats(array, "bfloat16"), exact, rtol=2**-7, atol=1e-3 * float(np.abs(exact).max()))


def write() -> None:
    from kv_samples import block as sample_block
    from kv_samples import profile as sample_profile

    def text(data: bytes) -> str:
        return base64.b64encode(data).decode()

    symbols, contexts, table = coded_symbols()
    (body,) = encode_streams(symbols[None], contexts, table, 4)
    made: dict[str, Any] = {"rans": {"payload": text(body), "symbols": digest(symbols)}}
    for name, codec in PRESETS.items():
        data = codec.encode(update(name), SEED)
        made[name] = {"payload": text(data), "values": digest(codec.decode(data, len(update(name)), SEED))}
    made["kv lossless"] = {"payload": text(encode_kv(kv_block())[0])}
    profile = sample_profile()
    made["profile"] = {"payload": text(profile.packed), "digest": profile.digest.hex()}
    for kind, progressive in (("kv shoal", False), ("kv progressive", True)):
        block = sample_block(6)
        (data,) = encode_kv(block, "default", profile, fine_tokens=3, progressive=progressive)
        decoded = decode_kv([data], block.shape, profile)
        made[kind] = {"payload": text(data), "block": text(decoded.keys.tobytes() + decoded.values.tobytes())}
    FILE.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    write()
