"""KV bitstreams side by side: rate against KL for all codecs, and the quality of the levels.

    python scripts/bench/kv.py [--model FOLDER | --random] [--corpus FOLDER] [--json FILE] [--plot FILE] [--keep FOLDER]

Calibrates on the corpus' novels except the held-out one, measures on the held-out novel and on source code of the
Python standard library (a shifted domain). Real bytes, headers included; one compute thread. `kv_speed.py` measures
the speed of the profiles that `--keep` leaves.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from figures import drawn_to
from random_llama import SIZES
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from shoal.compression.kv_bitstream import encode_kv
from shoal.compression.kv_block import KvBlock, from_floats, joined, to_floats
from shoal.compression.kv_cachegen import CacheGen
from shoal.compression.kv_cachegen_reference import CacheGenReference
from shoal.compression.kv_levels import LEVELS
from shoal.compression.kv_profile import KvProfile
from shoal.node.kv_calibration import calibrate
from shoal.node.kv_quality import (
    Continuation,
    Model,
    block_of,
    cache_of,
    cached,
    coded_by,
    continuation,
    measure,
)

ROOT = Path(__file__).parents[2]
HELD_OUT = "sherlock.txt"
CONTEXT, CONTINUED = 512, 64
EQUAL_KL = 0.0025
GREEDY_TOKENS = 64
# Name to: all heads of a layer in one transform, keys and values in one.
ARRANGEMENTS = {
    "joint": (True, False),
    "per head": (False, False),
    "joint, keys with values": (True, True),
    "per head, keys with values": (False, True),
}
Coder = Callable[[KvBlock], tuple[KvBlock, int]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "node/embedded/novels-6m")
    parser.add_argument("--corpus", type=Path, default=ROOT.parent / "shared/corpus")
    parser.add_argument("--random", action="store_true", help="a random Llama of 56 M parameters instead of a model")
    parser.add_argument("--documents", type=int, default=12, help="measured documents of each domain")
    parser.add_argument("--stretches", type=int, default=10, help="stretches of each novel to calibrate on")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--keep", type=Path, help="a folder for the profiles")
    options = parser.parse_args()
    if not (options.corpus / HELD_OUT).exists():
        print(f"no corpus at {options.corpus}: nothing was measured; name one with --corpus", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = random_model() if options.random else AutoModelForCausalLM.from_pretrained(options.model)
    model = model.float().eval()
    print(
        f"{platform.machine()}, python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    )

    books = [path for path in sorted(options.corpus.glob("*.txt")) if path.name != HELD_OUT]
    ids = functools.partial(windows, tokenizer)
    fit = [w for book in books for w in ids(book.read_text()[5_000:405_000], options.stretches, CONTEXT)]
    checks = [w for book in books for w in ids(book.read_text()[450_000:550_000], 3, CONTEXT + CONTINUED)]
    profiles: dict[str, KvProfile] = {}
    for name, (joint, together) in ARRANGEMENTS.items():
        started = time.perf_counter()
        profiles[name] = calibrate(model, fit, checks, joint=joint, together=together)
        seconds = time.perf_counter() - started
        print(f"{name}: profile of {len(profiles[name].packed)} bytes, steps {profiles[name].steps}, {seconds:.0f} s")
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{name}.kvprofile").write_bytes(profiles[name].packed)
    source = "\n".join(path.read_text() for path in sorted(Path(os.__file__).parent.glob("[a-h]*.py"))[:40])
    texts = {"held-out novel": (options.corpus / HELD_OUT).read_text()[5_000:], "source code": source}
    domains = {
        name: [continuation(model, w) for w in ids(text, options.documents, CONTEXT + CONTINUED)]
        for name, text in texts.items()
    }
    training = [exact_block(model, w) for w in fit]
    report: dict[str, Any] = {"levels": levels(model, profiles, domains)}
    curves = rate_curves(model, profiles, training, domains["held-out novel"])
    report["curves"] = curves
    report["equal_kl"] = equal_kl(curves)
    report["exact"] = exactness(domains["held-out novel"], profiles["joint"])
    report["bias"] = bias(model, profiles["joint"], domains["held-out novel"])
    for name, value in report.items():
        if name != "curves":
            print(name, json.dumps(value, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    if options.plot:
        plot(curves, options.plot)
    return 0


def random_model() -> Model:
    """Of another size, with nothing learnt: keys and values with hardly any structure, the worst case."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "vocab_size": 4096, "initializer_range": 0.06}))


def windows(tokenizer: PreTrainedTokenizerBase, text: str, count: int, tokens: int) -> list[torch.Tensor]:
    ids = torch.tensor(tokenizer(text[: 400_000 + 40 * tokens]).input_ids)
    stride = (len(ids) - tokens) // count
    return [ids[i * stride : i * stride + tokens] for i in range(count)]


def exact_block(model: Model, ids: torch.Tensor) -> KvBlock:
    with torch.no_grad():
        _, keys, values = cached(model, ids)
    return block_of(keys, values)


def levels(
    model: Model, profiles: dict[str, KvProfile], domains: dict[str, list[Continuation]]
) -> list[dict[str, Any]]:
    rows = []
    for name, profile in profiles.items():
        for level in LEVELS:
            for domain, documents in domains.items():
                coder = coded_by(profile, level)
                row = {"transform": name, "level": level, "domain": domain}
                row |= asdict(measure(model, documents, coder))
                row["greedy_match"] = statistics.mean(greedy_match(model, d, coder) for d in documents[:6])
                rows.append(row)
    return rows


def greedy_match(model: Model, document: Continuation, coder: Coder) -> float:
    """Share of GREEDY_TOKENS tokens before the first that differs from the exact cache's."""
    exact = greedy(model, document.exact, document.tokens[:1])
    got = greedy(model, coder(document.exact)[0], document.tokens[:1])
    same = [a == b for a, b in zip(exact, got, strict=True)]
    return (same.index(False) if False in same else len(same)) / len(same)


def greedy(model: Model, block: KvBlock, first: torch.Tensor) -> list[int]:
    cache, token, out = cache_of(block), first, []
    with torch.no_grad():
        for _ in range(GREEDY_TOKENS):
            logits = model(input_ids=token[None], past_key_values=cache, use_cache=True).logits[0, -1]
            token = logits.argmax()[None]
            out.append(int(token))
    return out


def rate_curves(
    model: Model, profiles: dict[str, KvProfile], training: list[KvBlock], documents: list[Continuation]
) -> dict[str, list[tuple[float, float]]]:
    """(bits a value, KL) of each codec."""
    curves: dict[str, list[tuple[float, float]]] = {}

    def add(name: str, coder: Coder) -> None:
        quality = measure(model, documents, coder)
        curves.setdefault(name, []).append((quality.bits_per_value, quality.kl))

    for name, profile in profiles.items():
        for quarters in range(-7, 6, 2):
            tried = replace(profile, steps=(quarters, quarters, quarters))
            add(f"shoal {name}", coded_by(tried, "default"))
    for level in (0.6, 0.8, 1.1, 1.5, 2.0):
        fitted = CacheGen.fit(training[::2], level)
        add("cachegen", functools.partial(through, fitted))
    for bins in ((64, 32), (48, 24), (32, 16), (24, 12), (20, 10)):
        add("cachegen-reference", functools.partial(by_parts, CacheGenReference(*bins)))
    for bits in (8, 6, 5, 4):
        add("absmax per token", functools.partial(absmax, bits))
    return curves


def through(codec: CacheGen | CacheGenReference, block: KvBlock) -> tuple[KvBlock, int]:
    payload = codec.encode(block)
    return codec.decode(payload, block.shape), len(payload)


def by_parts(codec: CacheGenReference, block: KvBlock) -> tuple[KvBlock, int]:
    """In chunks of 256 tokens, as the reference code cuts."""
    parts = [through(codec, block.part(start, 256)) for start in range(0, block.shape.tokens, 256)]
    return joined([part for part, _ in parts]), sum(size for _, size in parts)


def absmax(bits: int, block: KvBlock) -> tuple[KvBlock, int]:
    """Plain integers with a 16-bit scale per token and head; sizes without any header."""
    out = []
    for array in (block.keys, block.values):
        floats = to_floats(array, block.shape.dtype)
        unit = np.maximum(np.abs(floats).max(axis=-1, keepdims=True), 1e-12) / ((1 << (bits - 1)) - 1)
        out.append(from_floats((np.rint(floats / unit) * unit).astype(np.float32), block.shape.dtype))
    scales = block.shape.values // block.shape.width
    return KvBlock(block.shape, *out), block.shape.values * bits // 8 + 2 * scales


def equal_kl(curves: dict[str, list[tuple[float, float]]]) -> dict[str, float]:
    bits = {name: bits_at(points, EQUAL_KL) for name, points in curves.items()}
    ratios = {
        f"{ours} / {theirs}": bits[ours] / bits[theirs]
        for ours in bits
        if ours.startswith("shoal")
        for theirs in ("cachegen", "cachegen-reference")
    }
    return {f"{name}, bits at KL {EQUAL_KL}": value for name, value in bits.items()} | ratios


def bits_at(points: Sequence[tuple[float, float]], kl: float) -> float:
    """Linear in bits against log KL; not a number outside the measured range."""
    ordered = sorted(points, key=lambda point: point[1])
    logs = [float(np.log(point[1])) for point in ordered]
    return float(np.interp(np.log(kl), logs, [point[0] for point in ordered], left=np.nan, right=np.nan))


def exactness(documents: list[Continuation], profile: KvProfile) -> dict[str, float]:
    raw = sum(d.exact.shape.raw_bytes for d in documents)
    exact = sum(len(p) for d in documents for p in encode_kv(d.exact))
    report = {"lossless_ratio": raw / exact}
    for level in LEVELS:
        whole = sum(len(p) for d in documents for p in encode_kv(d.exact, level, profile))
        parts = sum(len(p) for d in documents for p in encode_kv(d.exact, level, profile, progressive=True))
        report[f"progressive overhead, {level}"] = parts / whole - 1
    return report


def bias(model: Model, profile: KvProfile, documents: list[Continuation]) -> dict[str, Any]:
    """One fixed vector on every key: attention does not change when it is taken off again, so neither may quality."""
    shape = documents[0].exact.shape
    vector = np.random.default_rng(0).normal(0, 8, (shape.layers, 1, shape.heads, shape.width)).astype(np.float32)

    def biased(coder: Coder, block: KvBlock) -> tuple[KvBlock, int]:
        wide = replace(block.shape, dtype="float32")
        floats = [to_floats(array, block.shape.dtype) for array in (block.keys, block.values)]
        decoded, size = coder(KvBlock(wide, floats[0] + vector, floats[1]))
        return KvBlock(wide, decoded.keys.astype(np.float32) - vector, decoded.values), size

    coders: dict[str, Coder] = {
        "shoal default": coded_by(profile, "default"),
        "shoal default, calibrated with the bias": coded_by(
            replace(profile, offsets=profile.offsets + vector.reshape(shape.layers, -1)), "default"
        ),
        "cachegen-reference": functools.partial(by_parts, CacheGenReference()),
    }
    report = {}
    for name, coder in coders.items():
        plain = measure(model, documents[:6], coder)
        moved = measure(model, documents[:6], functools.partial(biased, coder))
        report[name] = {"kl": plain.kl, "kl_with_bias": moved.kl, "bits_with_bias": moved.bits_per_value}
    return report


def plot(curves: dict[str, list[tuple[float, float]]], path: Path) -> None:
    with drawn_to(path, "bits a value, headers included", "KL to the exact cache, nats a token") as axes:
        for name, points in curves.items():
            ordered = sorted(points)
            axes.plot([p[0] for p in ordered], [p[1] for p in ordered], marker="o", markersize=3, label=name)
        axes.set_yscale("log")
        axes.axhline(EQUAL_KL, color="grey", linewidth=0.5)


if __name__ == "__main__":
    sys.exit(main())
