"""Audits of training updates on novels-6m: how far honest re-executions lie apart, and what updates are worth.

    python scripts/bench/update_audits.py [--precision bf16] [--rounds 3] [--json FILE]

A trainer takes inner steps in two threads; an auditor takes sampled intervals of them again in one, with other parts of
the batch at a time. Cheats are held against the same measure. Then a round of six peers, one of them with its sign
flipped and one that trained on shuffled text, is valued by -<grad L_val, delta> and by leaving one out.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from shoal.compression.update_codec import Values
from shoal.incentives.training_value import calibrated, centred, first_order, leave_one_out
from shoal.node.training.config_file import config_from
from shoal.node.training.data.assignment import Roster, Share, share_of
from shoal.node.training.data.windows import Windows
from shoal.node.training.parameters import ModelParameters
from shoal.node.training.update_audit import StepState, batches_of, state_now, step_distance, taken_again
from shoal.node.training.update_value import held_out_gradient, held_out_loss
from shoal.node.training.worker_parts import Prepared
from shoal.node.training.worker_start import prepared
from shoal.swarm.identifiers import PeerId

ROOT = Path(__file__).parents[2]
PEERS = tuple(PeerId(f"peer{n}") for n in range(6))
EVERY, SEQUENCES, STEPS = 3, 2, 6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, default=ROOT.parent / "shared/corpus")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{platform.machine()}, python {platform.python_version()}, torch {torch.__version__}, {options.precision}")
    with tempfile.TemporaryDirectory() as folder:
        trainer = made(options, 2, Path(folder))
        auditor = made(options, 1, Path(folder))
        report: dict[str, Any] = {"steps": steps_again(trainer, auditor), "value": values(trainer, options.rounds)}
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    return 0


def made(options: argparse.Namespace, micro: int, cache: Path) -> Prepared:
    books = [str(path.resolve()) for path in sorted(options.corpus.glob("*.txt"))]
    tables = {
        "name": "audits",
        "data": {"files": books[:-1], "held_out": books[-1:], "sequence": 128},
        "batch": {"sequences": SEQUENCES, "micro": micro, "precision": options.precision},
        "strategy": {"name": "diloco", "interval": STEPS},
        "inner": {"learning_rate": 5e-4},
    }
    return prepared(config_from(tables, Path.cwd()), cache)


def share_for(who: Prepared, peer: PeerId, round_: int) -> Share:
    order = msgspec.structs.replace(who.data.order, share=STEPS * SEQUENCES)
    share = share_of(order, Roster().after(order, 0, PEERS), peer, round_)
    assert share is not None
    return share


def taken(
    who: Prepared, start: StepState, share: Share, first: int, count: int, text: Windows | None = None
) -> StepState:
    batches = batches_of(share, first * SEQUENCES, count, SEQUENCES)
    return taken_again(who.steps, who.parameters, text or who.data.windows, start, batches, first)


def steps_again(trainer: Prepared, auditor: Prepared) -> dict[str, Any]:
    start = state_now(trainer.steps, trainer.parameters)
    began = time.perf_counter()
    start.digest()
    digest_s = time.perf_counter() - began
    honest, cheats = [], dict[str, list[float]]()
    for number, peer in enumerate(PEERS[:3]):
        share, state = share_for(trainer, peer, 1), start
        for first in range(0, STEPS, EVERY):
            torch.set_num_threads(2)
            claimed = taken(trainer, state, share, first, EVERY)
            torch.set_num_threads(1)
            again = taken(auditor, state, share, first, EVERY).parameters
            honest.append(step_distance(state.parameters, claimed.parameters, again))
            step = again - state.parameters
            forged: dict[str, Values] = {"sign-flipped": state.parameters - step, "half": state.parameters + step / 2}
            if first == 0:
                other = share_for(trainer, PEERS[(number + 1) % len(PEERS)], 1)
                forged["copied from another"] = taken(trainer, state, other, first, EVERY).parameters
                forged["one step fewer"] = taken(trainer, state, share, first, EVERY - 1).parameters
            else:  # the interval's own work again, from where it would have led to a step later
                later = taken(trainer, claimed, share, first, EVERY).parameters
                forged["delayed"] = state.parameters + (later - claimed.parameters)
            for name, values_ in forged.items():
                cheats.setdefault(name, []).append(step_distance(state.parameters, values_, again))
            state = claimed
    return {
        "intervals of steps": [len(honest), EVERY],
        "honest, median and largest": [statistics.median(honest), max(honest)],
        "cheats, smallest": {name: min(found) for name, found in cheats.items()},
        "seconds to hash a state": round(digest_s, 3),
        "parameters": trainer.count,
    }


def values(who: Prepared, rounds: int) -> dict[str, Any]:
    assert isinstance(who.parameters, ModelParameters)
    parameters, held_out = who.parameters, who.data.held_out
    assert held_out is not None
    windows = range(0, len(held_out), max(1, len(held_out) // 8))
    start, weights = state_now(who.steps, who.parameters), [1.0] * len(PEERS)
    mixed = np.random.default_rng(4).permutation(np.asarray(who.data.windows.tokens[:200_000]))
    noise = Windows(mixed, who.data.windows.length, who.data.windows.end)
    scores, measured, first = list[float](), list[float](), list[list[float]]()
    for round_ in range(1, rounds + 1):
        at = start.parameters
        updates = []
        for number, peer in enumerate(PEERS):
            share = share_for(who, peer, round_)
            if number == 1:
                share = msgspec.structs.replace(share, order=msgspec.structs.replace(share.order, windows=len(noise)))
                share = msgspec.structs.replace(share, start=share.start % (len(noise) - share.count))
            moved = taken(who, start, share, 0, STEPS, noise if number == 1 else None).parameters - at
            updates.append(-moved if number == 0 else moved)
        gradient = held_out_gradient(who.steps, parameters, held_out, at, windows)
        first.append(first_order(gradient, updates, weights))

        def loss(moved: Values, at: Values = at) -> float:
            return held_out_loss(who.steps, parameters, held_out, np.asarray(at + moved, np.float32), windows)

        scores += centred(first[-1])
        measured += leave_one_out(loss, updates, weights)
        mean = np.mean(updates[2:], axis=0)
        start = StepState(np.asarray(at + mean, np.float32), start.moments)
    found = calibrated(scores, measured)
    honest = [index for index in range(len(scores)) if index % len(PEERS) >= 2]
    alone = calibrated([scores[i] for i in honest], [measured[i] for i in honest])
    return {
        "first order by peer (flipped, shuffled text, honest ...)": [[round(s, 6) for s in row] for row in first],
        "left out": [round(m, 6) for m in measured],
        "factor": round(found.factor, 3),
        "agreement": round(found.agreement, 4),
        "agreement among the honest alone": round(alone.agreement, 4),
        "updates": found.updates,
    }


if __name__ == "__main__":
    raise SystemExit(main())
