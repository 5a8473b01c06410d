"""What a node that follows a run fetches for one round, against fetching the weights again.

For each strategy of training, one round's aggregates of a model as large as the embedded one, as its log keeps and
gives them: listing and payloads. Values are normal noise, which no entropy coder likes.

    python scripts/bench/weight_deltas.py [--parameters 6852096] [--json FILE]
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from shoal.node.training.strategies.settings import STRATEGIES
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.delta_log import DeltaLog
from shoal.swarm.rounds.exchange import Outcome, RunSpec, seed_of
from shoal.swarm.rounds.run_identity import run_id


def round_bytes(name: str, parameters: int) -> int:
    """Of everything that is fetched for one round of the whole model."""
    settings = STRATEGIES[name]
    spec = RunSpec("tale", "m", "d", settings.canonical(), (parameters,), settings.preset, shards=4)
    draw = np.random.default_rng(0)
    payloads = [
        spec.codec().encode(draw.normal(scale=0.01, size=stop - start).astype(np.float32), seed_of(0, 0, shard))
        for shard, (start, stop) in enumerate(spec.sharding(0).bounds())
    ]
    with tempfile.TemporaryDirectory() as folder:
        log = DeltaLog(Path(folder), run_id(spec))
        entry = log.append(Outcome(0, 0, tuple(payloads), ((PeerId("alice"), 5),)), bytes(32), bytes([1] * 32))
        bundle = log.find(entry.bundle)
        assert bundle is not None
        return len(bundle.listing) + sum(part.size_bytes for part in bundle.files.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=6_852_096)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    whole = 4 * arguments.parameters
    found = {}
    for name in STRATEGIES:
        count = round_bytes(name, arguments.parameters)
        found[name] = {"bytes": count, "bits_a_parameter": 8 * count / arguments.parameters, "share": count / whole}
        bits = 8 * count / arguments.parameters
        print(f"{name:12} {count / 1e6:8.3f} MB  {bits:7.3f} bit  1/{whole / count:.1f} of float32")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
