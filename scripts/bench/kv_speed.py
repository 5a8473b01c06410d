"""How fast KV caches are encoded and decoded: MB of bfloat16 a second of processor time on one thread, best of several.

    python scripts/bench/kv_speed.py PROFILE... [--model FOLDER] [--corpus FOLDER] [--quality NAME] [--json FILE]

PROFILE: what `kv.py --keep` or `shoal kv calibrate` wrote for the model. The cache is that of real text: stretches of
512 tokens one after the other, their keys turned to the positions where they stand. Beside them a made-up cache with
heads 128 wide, eight of them, in the proportions of larger models. Encoding and decoding, numba and numpy take turns,
so that a slow moment of the machine hits all of them.
"""

import argparse
import json
import os
import platform
import sys
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shoal.compression.kv_bitstream import decode_kv, encode_kv
from shoal.compression.kv_block import KvBlock, KvShape, from_floats, joined, to_floats
from shoal.compression.kv_fitting import KvSample, Sensitivity, fit_profile
from shoal.compression.kv_profile import KvProfile, parse_profile
from shoal.compression.rotary import rotate, rotation
from shoal.node.kv_quality import block_of, cached

ROOT = Path(__file__).parents[2]
STRETCH, STRETCHES = 512, 8
ROUNDS = {"numba": 15, "numpy": 4}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profiles", type=Path, nargs="*")
    parser.add_argument("--model", type=Path, default=ROOT / "node/embedded/novels-6m")
    parser.add_argument("--corpus", type=Path, default=ROOT.parent / "shared/corpus")
    parser.add_argument("--quality", default="default")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, python {platform.python_version()}, numpy {np.__version__}, load {os.getloadavg()}")
    report = {}
    for path in options.profiles:
        profile = parse_profile(path.read_bytes())
        report[path.stem] = speed(text_block(options.model, options.corpus / "sherlock.txt", profile), profile, options)
    report["made up, 8 heads of 128"] = speed(*wide_block(), options)
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    return 0


def text_block(folder: Path, text: Path, profile: KvProfile) -> KvBlock:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(tokenizer(text.read_text()[5_000:200_000]).input_ids)
    blocks = []
    for index in range(STRETCHES):
        with torch.no_grad():
            _, keys, values = cached(model, ids[index * STRETCH : (index + 1) * STRETCH])
        block = block_of(keys, values)
        turns = profile.turns(index * STRETCH, 1)
        turned = rotate(to_floats(block.keys, "bfloat16"), *(np.repeat(part, STRETCH, axis=1) for part in turns))
        shape = KvShape(*block.keys.shape, first_position=index * STRETCH)
        blocks.append(KvBlock(shape, from_floats(turned, "bfloat16"), block.values))
    return joined(blocks)


def wide_block() -> tuple[KvBlock, KvProfile]:
    """Channels that follow from each other, with spreads that fall as those of real keys do."""
    layers, tokens, heads, width = 4, 1024, 8, 128
    random = np.random.default_rng(0)
    mixing = np.linalg.qr(random.normal(size=(2, layers, heads, width, width)))[0]
    mixing *= np.exp2(-np.arange(width) / 24)[:, None]

    def drawn(count: int) -> np.ndarray:
        return np.einsum("klthc,klhcd->klthd", random.laplace(size=(2, layers, count, heads, width)), mixing)

    frequencies = 5e5 ** (-np.arange(width // 2) / (width // 2))
    fitted = []
    for _ in range(2):
        keys, values = drawn(tokens).astype(np.float32)
        fitted.append(KvSample(rotate(keys, *rotation(frequencies, 0, tokens)), values))
    identity = np.broadcast_to(np.eye(heads * width) / 64, (layers, heads * width, heads * width))
    profile = fit_profile(fitted, Sensitivity(identity, identity), frequencies, heads, (0, 6, 12))
    keys, values = (from_floats(array, "bfloat16") for array in (fitted[0].keys, fitted[0].values))
    return KvBlock(KvShape(layers, tokens, heads, width), keys, values), profile


def speed(block: KvBlock, profile: KvProfile, options: argparse.Namespace) -> dict[str, float]:
    megabytes = block.shape.raw_bytes / 1e6
    payloads = encode_kv(block, options.quality, profile)
    calls: dict[str, partial[object]] = {"memcpy": partial(np.array, [block.keys, block.values])}
    for name, accelerate in (("numba", True), ("numpy", False)):
        calls[f"{name} encode"] = partial(encode_kv, block, options.quality, profile, accelerate=accelerate)
        calls[f"{name} decode"] = partial(decode_kv, payloads, block.shape, profile, accelerate=accelerate)
    best = dict.fromkeys(calls, float("inf"))
    for turn in range(max(ROUNDS.values())):
        for name, call in calls.items():
            if turn < ROUNDS.get(name.split()[0], ROUNDS["numba"]):
                started = time.process_time()
                call()
                best[name] = min(best[name], time.process_time() - started)
    report = {name: round(megabytes / seconds) for name, seconds in best.items()}
    return {"bits a value": round(8 * sum(map(len, payloads)) / block.shape.values, 3), **report}


if __name__ == "__main__":
    sys.exit(main())
