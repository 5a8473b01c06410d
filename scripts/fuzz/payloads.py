"""Coverage-guided fuzzing of every decoder: any bytes decode or raise MalformedPayload, nothing else.

    pip install atheris
    PYTHONPATH=tests python scripts/fuzz/payloads.py scripts/fuzz/corpus -max_len=16000 [-max_total_time=600]
    PYTHONPATH=tests python scripts/fuzz/payloads.py --write-corpus scripts/fuzz/corpus

The first byte of an input chooses the codec; the rest is the body behind a right frame, checksum and all, so that the
fuzzer spends its time on the decoders and not on the checksum. An input whose first byte is 255 is taken as it is.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from kv_samples import block, profile

from shoal.compression.container import TensorSpec, seal, sealed_bytes, unseal
from shoal.compression.errors import MalformedPayload
from shoal.compression.kv_bitstream import decode_kv, encode_kv
from shoal.compression.kv_cachegen import CacheGen
from shoal.compression.kv_cachegen_reference import CacheGenReference
from shoal.compression.kv_profile import parse_profile
from shoal.compression.presets import PRESETS
from shoal.compression.sparse_codec import SparseCodec

COUNT = 5000
KV = block(6)
PROFILE = profile()
CACHEGEN = CacheGen.fit([block(40, seed=2)], 1.0)
REFERENCE = CacheGenReference()
VECTOR = [TensorSpec((COUNT,))]
AS_IT_IS = 255
LARGEST_SEED = 16_000


def alike(decode: Callable[[bool], bytes]) -> None:
    """Compiled loops check no index: what numpy refuses or reads, they must too."""
    outcomes = []
    for accelerate in (False, True):
        try:
            outcomes.append(decode(accelerate))
        except MalformedPayload:
            outcomes.append(b"refused")
    if outcomes[0] != outcomes[1]:
        raise AssertionError("numpy and numba differ")


def kv(data: bytes) -> None:
    def decode(accelerate: bool) -> bytes:
        block = decode_kv([data], KV.shape, PROFILE, allow_truncated=True, accelerate=accelerate)
        return block.keys.tobytes() + block.values.tobytes()

    alike(decode)


def yardstick(codec: CacheGen | CacheGenReference) -> Callable[[bytes], object]:
    return lambda data: alike(lambda accelerate: codec.decode(data, KV.shape, accelerate).keys.tobytes())


def update(name: str) -> Callable[[bytes], object]:
    codec = PRESETS[name]
    if not isinstance(codec, SparseCodec):
        return lambda data: codec.decode(data, COUNT, 3)
    both = {accelerate: replace(codec, accelerate=accelerate) for accelerate in (False, True)}
    return lambda data: alike(lambda accelerate: both[accelerate].decode(data, COUNT, 3).tobytes())


# (codec in the frame, its tensors, decoder); the place in this list is the first byte of an input.
TARGETS: list[tuple[str, list[TensorSpec], Callable[[bytes], object]]] = [
    *((name if name in {"none", "fp16", "int8", "fp4"} else "sparse", VECTOR, update(name)) for name in PRESETS),
    ("kv-raw", list(KV.shape.specs), kv),
    ("kv-lossless", list(KV.shape.specs), kv),
    ("kv-shoal", list(KV.shape.specs), kv),
    ("kv-cachegen", list(KV.shape.specs), yardstick(CACHEGEN)),
    ("kv-cachegen-reference", list(KV.shape.specs), yardstick(REFERENCE)),
    ("kv-profile", [], parse_profile),
]


def decode_one(data: bytes) -> None:
    if not data:
        return
    if data[0] == AS_IT_IS:
        for _, _, decode in TARGETS:
            attempt(decode, data[1:])
        return
    codec, specs, decode = TARGETS[data[0] % len(TARGETS)]
    attempt(decode, seal(codec, specs, data[1:]))


def attempt(decode: Callable[[bytes], object], data: bytes) -> None:
    try:
        decode(data)
    except MalformedPayload:
        return


def write_corpus(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(1).standard_t(3, COUNT).astype(np.float32)
    payloads = [codec.encode(values, 3) for codec in PRESETS.values()]
    payloads += [b"", encode_kv(KV)[0], encode_kv(KV, "default", PROFILE)[0]]
    payloads += [CACHEGEN.encode(KV), REFERENCE.encode(KV), PROFILE.packed]
    for index, ((codec, specs, _), payload) in enumerate(zip(TARGETS, payloads, strict=True)):
        if 0 < len(payload) < LARGEST_SEED:
            (folder / f"{index:02}-{codec}").write_bytes(bytes([index]) + bytes(unseal(payload, codec, specs)))
    (progressive,) = encode_kv(KV, "default", PROFILE, progressive=True)
    base = sealed_bytes(progressive, KV.shape.specs) or 0
    (folder / "base").write_bytes(bytes([9]) + bytes(unseal(progressive[:base], "kv-shoal", KV.shape.specs)))
    (folder / "progressive").write_bytes(bytes([AS_IT_IS]) + progressive)


def main() -> None:
    if sys.argv[1:2] == ["--write-corpus"]:
        write_corpus(Path(sys.argv[2]))
        return
    import atheris

    for function in (decode_kv, parse_profile):
        atheris.instrument_func(function)
    atheris.instrument_all()
    atheris.Setup(sys.argv, decode_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
