"""Update presets side by side on real pseudo-gradients: rate, reconstruction error, the bound, speed.

    python scripts/bench/updates.py [--model FOLDER] [--corpus FOLDER] [--json FILE] [--plot FILE]

Two workers train the model for --steps inner steps of AdamW from its checkpoint, each on its own part of the corpus;
what each would send is its pseudo-gradient. Two rounds, so that error feedback has something to carry. Real bytes,
headers included; one compute thread.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import lgamma, log
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import torch
from figures import drawn_to
from transformers import AutoModelForCausalLM, AutoTokenizer

from shoal.compression.error_feedback import ErrorFeedback, send
from shoal.compression.lookup_quantiser import GROUP, lookup_quantise, lookup_values
from shoal.compression.presets import PRESETS
from shoal.compression.sparse_codec import SparseCodec
from shoal.compression.sparsify import CHUNK, kept_per_chunk, random_count, top_k_positions
from shoal.compression.update_codec import Codec

ROOT = Path(__file__).parents[2]
BATCH, LENGTH = 8, 256
Values = npt.NDArray[np.float32]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "node/embedded/novels-6m")
    parser.add_argument("--corpus", type=Path, default=ROOT.parent / "shared/corpus")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    books = sorted(options.corpus.glob("*.txt"))
    if len(books) < options.workers:
        print(f"no corpus at {options.corpus}: nothing was measured; name one with --corpus", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, python {platform.python_version()}, numpy {np.__version__}")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = [torch.tensor(tokenizer(b.read_text()[:400_000]).input_ids) for b in books[: options.workers]]
    updates = [pseudo_gradient(options.model, ids, options.steps, seed) for seed, ids in enumerate(texts)]
    rows = [row for codec in PRESETS.values() for row in [measured(codec, updates)]]
    report: dict[str, Any] = {"parameters": len(updates[0]), "presets": rows, "sparse2": against_packer(updates[0])}
    report["densities"] = densities(updates[0])
    for row in rows:
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    print("sparse2 against packed formats", report["sparse2"])
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    if options.plot:
        plot(report, options.plot)
    return 0


def pseudo_gradient(folder: Path, ids: torch.Tensor, steps: int, seed: int) -> Values:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = flat(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(seed)
    started = time.perf_counter()
    for _ in range(steps):
        starts = torch.randint(0, len(ids) - LENGTH, (BATCH,), generator=generator)
        batch = torch.stack([ids[start : start + LENGTH] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"worker {seed}: {steps} steps in {time.perf_counter() - started:.0f} s, last loss {loss.item():.3f}")
    return before - flat(model)


def flat(model: torch.nn.Module) -> Values:
    return np.asarray(torch.cat([p.detach().flatten() for p in model.parameters()]).numpy().copy())


def measured(codec: Codec, updates: list[Values]) -> dict[str, Any]:
    values = updates[0]
    feedback = send(codec, ErrorFeedback.empty(len(values), 0.95), updates[1], seed=1).feedback
    carried = feedback.target(values)
    payload = codec.encode(values, 2)
    decoded = codec.decode(payload, len(values), 2)
    megabytes = values.nbytes / 1e6
    row: dict[str, Any] = {
        "preset": codec.name,
        "bits_per_parameter": 8 * len(payload) / len(values),
        "bits_with_feedback": 8 * len(codec.encode(carried, 2)) / len(values),
        "relative_error": float(np.linalg.norm(values - decoded) / np.linalg.norm(values)),
        "encode_mb_s": megabytes / best(lambda: codec.encode(values, 2), 7),
        "decode_mb_s": megabytes / best(lambda: codec.decode(payload, len(values), 2), 7),
    }
    if isinstance(codec, SparseCodec):
        plain = replace(codec, accelerate=False)
        row["index_bound"] = index_bound(codec, len(values)) / len(values)
        row["numpy_encode_mb_s"] = megabytes / best(lambda: plain.encode(values, 2), 2)
        row["numpy_decode_mb_s"] = megabytes / best(lambda: plain.decode(payload, len(values), 2), 2)
        if codec.values == "sign":
            signs = kept_per_chunk(len(values), codec.top).sum()
            row["over_bound"] = 8 * len(payload) / (index_bound(codec, len(values)) + float(signs)) - 1
    return row


def index_bound(codec: SparseCodec, count: int) -> float:
    """Sum over the chunks of log2 C(n, k): what positions cost that cluster nowhere."""
    pool = random_count(count, codec.random)
    kept = kept_per_chunk(pool, codec.top)
    sizes = np.full(len(kept), CHUNK)
    sizes[-1] = pool - CHUNK * (len(kept) - 1)
    return float(
        sum(lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) for n, k in zip(sizes, kept, strict=True)) / log(2)
    )


def against_packer(values: Values) -> dict[str, float]:
    """The same support and codes in fixed fields: 12 + 2 bits as claimed, 12 + 8 bits as the public code ships them."""
    codec = PRESETS["sparse2"]
    positions = top_k_positions(values, Fraction(1, 64))
    codes, tables = lookup_quantise(values[positions])
    packed = np.zeros_like(values)
    packed[positions] = lookup_values(codes, tables)
    payload = codec.encode(values)
    same = np.array_equal(codec.decode(payload, len(values)).view(np.uint32), packed.view(np.uint32))
    tables_bytes = 20 * -(-len(codes) // GROUP)
    return {
        "bit_identical": float(same),
        "smaller_than_14_bit": (len(codes) * 14 / 8 + tables_bytes) / len(payload),
        "smaller_than_20_bit": (len(codes) * 20 / 8 + tables_bytes) / len(payload),
    }


def densities(values: Values) -> list[dict[str, float]]:
    rows = []
    for divisor in (256, 128, 64, 32, 16, 8):
        codec = replace(PRESETS["sparse"], top=Fraction(1, divisor))
        payload = codec.encode(values)
        decoded = codec.decode(payload, len(values))
        rows.append(
            {
                "share": 1 / divisor,
                "bits_per_parameter": 8 * len(payload) / len(values),
                "bound": (index_bound(codec, len(values)) + len(values) / divisor) / len(values),
                "relative_error": float(np.linalg.norm(values - decoded) / np.linalg.norm(values)),
            }
        )
    return rows


def best(call: Callable[[], object], repeats: int) -> float:
    """Seconds of processor time."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return min(times)


def plot(report: dict[str, Any], path: Path) -> None:
    rows = report["densities"]
    errors = [row["relative_error"] for row in rows]
    across = [row["bits_per_parameter"] for row in rows]
    with drawn_to(path, "bits a parameter, headers included", "relative error of one update, without feedback") as axes:
        axes.plot(across, errors, marker="o", markersize=3, label="sign and scale, top-k")
        axes.plot([r["bound"] for r in rows], errors, linestyle="--", label="log2 C(n, k) and one bit a sign")
        for row in report["presets"]:
            if row["relative_error"] > 0:
                axes.plot(row["bits_per_parameter"], row["relative_error"], "x", color="black")
                axes.annotate(row["preset"], (row["bits_per_parameter"], row["relative_error"]), fontsize=7)
        axes.set_xscale("log")


if __name__ == "__main__":
    sys.exit(main())
