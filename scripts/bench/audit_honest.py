"""How far apart honest computations lie: one file of distances for `audits.py` to pool.

    python scripts/bench/audit_honest.py FOLDER --dtype bfloat16 --seed 1 [--seconds 300]

Serves sessions of real text with 1 and 2 threads, alone and in batches of 32, and replays each as one prefill.
"""

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
from audit_runs import BACK, CHUNK, FRONT, bases, behind, core_of, distances, floats, replayed, served, texts, threads

from shoal.node.model_source import EMBEDDED, resolve

LENGTH = 256
ROOT = Path(__file__).parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--corpus", type=Path, default=ROOT.parent / "shared/corpus")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    model = resolve(EMBEDDED, options.folder / "cache")
    core, other = core_of(model, options.dtype), core_of(model, options.dtype)
    ways = [*itertools.product((32, 1), (1,), (FRONT, BACK)), *itertools.product((32, 1), (2,), (FRONT, BACK))]
    ways = [*ways[:4], *ways[:4], *ways]  # two threads wait for one another on a machine that others use
    found: dict[str, list[np.ndarray]] = {}
    pooled: dict[str, np.ndarray] = {}
    began = time.perf_counter()
    for turn in itertools.count():
        if time.perf_counter() - began > options.seconds:
            break
        together, count, span = ways[turn % len(ways)]
        ids = texts(options.corpus, max(1, together), LENGTH, 1000 * options.seed + turn)
        sessions = behind(other, ids, span)
        with threads(count):
            made = served(core, span, sessions, 32 * (1 + turn % 5), together)
        with threads(1 + turn // len(ways) % 2):
            again = replayed(other, span, sessions)
        a, b = ([floats(m, LENGTH) for m in each] for each in (made, again))
        name = f"{options.dtype} {span.start}:{span.stop} threads={count} together={together}"
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        found.setdefault(name, []).append(distances(a, b, bases(other, span, sessions)))
        pooled = {name: np.concatenate(parts) for name, parts in found.items()}
        np.savez(options.folder / f"{options.dtype}-{options.seed}.npz", **pooled)
    for name, values in sorted(pooled.items()):
        print(f"{name}: {len(values)} chunks of {CHUNK}, median {np.median(values):.3g}, largest {values.max():.4g}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
