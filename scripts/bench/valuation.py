"""What participants of a training are worth by Shapley and to first order, where it is known who is worth little.

    python scripts/bench/valuation.py [--corpus FOLDER] [--rounds 3] [--seeds 0,1]

`novels-6m` is trained further on one novel and judged by another, by six peers with real inner steps: three honest ones
of which the third learns from a quarter of the tokens, one that learns from Python's sources, one that offers noise as
long as an honest update, and one that offers the opposite of what it learned.
"""

import argparse
import os
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from shoal.compression.aggregate import Contribution, weighted_mean
from shoal.compression.update_codec import Values
from shoal.incentives.rank_correlation import spearman
from shoal.node.training.config_file import config_from
from shoal.node.training.data.windows import Windows
from shoal.node.training.optimizers.inner import InnerOptimizer
from shoal.node.training.strategies.outer_parameters import OuterParameters
from shoal.node.training.valuation import Judge, value_participants
from shoal.node.training.valued_replay import RunReplay
from shoal.node.training.valued_rounds import ValuedRound
from shoal.node.training.worker_data import open_data
from shoal.node.training.worker_parts import Prepared, run_spec
from shoal.node.training.worker_start import prepared
from shoal.node.training.worker_steps import InnerSteps
from shoal.swarm.identifiers import PeerId

ROOT = Path(__file__).parents[2]
STEPS, SEQUENCES, LENGTH = 4, 4, 128  # of a peer's round
SEQUENCES_JUDGED = 8
HONEST, SMALL, CODE, NOISE, FLIPPED = "honest", "a quarter of the tokens", "Python's sources", "noise", "opposite"
PEERS = {"1 " + HONEST: HONEST, "2 " + HONEST: HONEST, SMALL: SMALL, CODE: CODE, NOISE: NOISE, FLIPPED: FLIPPED}


def config_for(files: str, held_out: str) -> dict[str, Any]:
    return {
        "name": "valuation",
        "data": {"files": [files], "held_out": [held_out], "sequence": LENGTH},
        "strategy": {"name": "diloco", "interval": STEPS, "outer": {"learning_rate": 0.7, "momentum": 0.5}},
        "inner": {"learning_rate": 0.0003, "schedule": {"warmup": 0}},
        "batch": {"sequences": SEQUENCES, "precision": "float32", "device": "cpu"},
        "limits": {"threads": 1},
    }


def learned(ready: Prepared, text: Windows, sequences: int, draw: np.random.Generator, outer: Values) -> Values:
    """A peer's update after its inner steps from the outer parameters."""
    ready.parameters.write(0, outer)
    optimizer = InnerOptimizer(ready.config.inner, ready.module.named_parameters())
    steps = InnerSteps(ready.module, optimizer, ready.config.batch, torch.device("cpu"))
    for step in range(STEPS):
        steps.run(text.batch([int(i) for i in draw.integers(0, len(text), sequences)]), step)
    return outer - ready.parameters.read()


def rounds_of(
    ready: Prepared, texts: Mapping[str, Windows], count: int, seed: int
) -> tuple[list[ValuedRound], RunReplay]:
    spec = run_spec(ready, ready.config)
    initial, undecayed = ready.parameters.read(), ready.parameters.layout.undecayed()
    settings = ready.config.strategy.outer
    outer = OuterParameters(settings, spec, initial, undecayed)
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
        offers: dict[PeerId, Contribution] = {}
        for name, kind in PEERS.items():
            sequences = max(1, SEQUENCES // 4) if kind == SMALL else SEQUENCES
            update = learned(ready, texts.get(kind, texts[HONEST]), sequences, draw, outer.values.copy())
            if kind == FLIPPED:
                update = -update
            if kind == NOISE:
                noise = draw.normal(size=update.shape).astype(np.float32)
                update = noise * np.float32(np.linalg.norm(update) / np.linalg.norm(noise))
            offers[PeerId(name)] = Contribution(name, STEPS * sequences * LENGTH, update)
        mean = weighted_mean(list(offers.values()))
        contributors = tuple(sorted((PeerId(name), offer.tokens) for name, offer in offers.items()))
        found.append(ValuedRound(number, 0, outer.hash(), mean, offers, contributors))
        outer.optimizer.step(outer.values, 0, mean)
    ready.parameters.write(0, initial)
    return found, RunReplay(settings, spec, initial, undecayed, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, default=ROOT.parent / "shared/corpus")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", default="0,1")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    novels = sorted(path for path in chosen.corpus.glob("*.txt") if path.name != "sherlock.txt")
    judged_by = str(chosen.corpus / "sherlock.txt")
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        ready = prepared(config_from(config_for(str(novels[0]), judged_by), cache), cache)
        source = str(Path(sysconfig.get_paths()["stdlib"]) / "argparse.py")
        code = open_data(config_from(config_for(source, judged_by), cache).config, cache, ready.model, cache).windows
        assert ready.data.held_out is not None
        judge = Judge(ready.steps, ready.parameters, ready.data.held_out, SEQUENCES_JUDGED)
        for seed in map(int, chosen.seeds.split(",")):
            began = time.perf_counter()
            rounds, replay = rounds_of(ready, {HONEST: ready.data.windows, CODE: code}, chosen.rounds, seed)
            found = value_participants(judge, replay.points(len(rounds)), seed, 200)
            print(f"seed {seed}: {found.shapley.orders} orders, {found.shapley.evaluations} evaluations, ", end="")
            print(f"{time.perf_counter() - began:.0f} s, rank correlation {found.agreement:+.3f}")
            for peer, worth in sorted(found.shapley.values.items(), key=lambda item: -item[1]):
                error, first = found.shapley.errors[peer], found.first_order[peer]
                print(f"  {peer:24} shapley {1e3 * worth:8.2f} +- {1e3 * error:.2f}   first order {1e3 * first:8.2f}")
            values = [[v[p] for p in sorted(v)] for v in (found.shapley.values, found.first_order)]
            assert found.agreement == spearman(*values)


if __name__ == "__main__":
    main()
