"""Loss of the strategies at equal tokens, and what they send: real codecs, real strategies, all workers in one process.

    python scripts/bench/training_loss.py --results FILE [--only sync,diloco] [--seeds 0,1,2]   # resumes where it was
    python scripts/bench/training_loss.py --results FILE --table
    python scripts/bench/training_loss.py --results FILE --plot docs/plots/training-loss.svg

Each line of the results is one run. A run that is there with the same settings is not done again. One compute thread.
"""

import argparse
import functools
import json
import os
import platform
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import anyio
import numpy as np
import torch
from loss_model import ROOT, Novels, held_out_loss, keep_freed_memory, small_llama, training_loss
from loss_runs import RUNS, WARM, WARM_SEED, Liar, Run

from shoal.compression.update_codec import Values
from shoal.node.training.local_exchange import LocalGroup
from shoal.node.training.optimizers.inner import InnerOptimizer
from shoal.node.training.parameters import ModelParameters
from shoal.node.training.strategies.outer_loop import LiveParameters, OuterLoop, RoundApplied
from shoal.node.training.strategies.strategy import Strategy
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.exchange import RunSpec

CURVE, FINAL = 96, 1024  # held-out windows of a point of the curve, and of the last loss
POINTS = 10  # of a curve


class Worker:
    """One peer: its model, its inner optimiser and its strategy."""

    def __init__(self, run: Run, seed: int, index: int, spec: RunSpec, start: Values | None) -> None:
        self.run, self.seed, self.index = run, seed, index
        self.model = small_llama(seed)
        self.parameters = ModelParameters(self.model)
        if start is not None:
            self.parameters.write(0, start)
        layout = self.parameters.layout
        self.strategy = Strategy(run.strategy, spec, self.parameters.read(), layout.undecayed())
        self.optimizer = InnerOptimizer(run.inner, self.model.named_parameters())
        liar = index >= run.workers - run.liars
        self.live: LiveParameters = Liar(self.parameters, self.strategy, run.lie) if liar else self.parameters
        self.states: list[bytes] = []

    async def step(self, novels: Novels, loop: OuterLoop) -> None:
        tokens = novels.batch(self.seed, self.strategy.step, self.index, self.run.workers, self.run.batch)
        self.optimizer.zero_grad()
        training_loss(self.model, tokens).backward()  # type: ignore[no-untyped-call]
        self.optimizer.clip()
        if not self.strategy.gradients:
            self.optimizer.step(self.strategy.step)
        await loop.after_step(tokens[:, 1:].numel())


async def trained(run: Run, seed: int, novels: Novels, start: Values | None) -> tuple[dict[str, Any], Values]:
    """start: parameters to begin with, else drawn by the seed

    returns: the curve (step, bytes sent by a peer, held-out loss), the last loss and, with liars, the shares of their
    and of the others' contributions that the gates refused; the last parameters
    raises: AssertionError when replicas differ
    """
    layout = ModelParameters(small_llama(seed)).layout
    spec = run.spec(layout.fragments(run.strategy.fragments))
    names = [PeerId(f"worker-{index:02d}") for index in range(run.workers)]
    refused: Counter[PeerId] = Counter()
    group = LocalGroup(spec, names, combine=run.combine(refused), kept=2)
    workers = [Worker(run, seed, index, spec, start) for index in range(run.workers)]
    judge = small_llama(seed)
    judged = ModelParameters(judge)
    curve: list[tuple[int, int, float]] = []

    def held_out(count: int) -> float:
        judged.write(0, workers[0].strategy.outer.values)
        return held_out_loss(judge, novels.held_out, count)

    def measure(step: int) -> None:
        curve.append((step, sent_bytes(group, names[0]), held_out(CURVE)))

    measure(0)
    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        loops = [
            OuterLoop(w.strategy, group.exchange_of(name), w.live, tasks, functools.partial(note, w.states))
            for w, name in zip(workers, names, strict=True)
        ]
        for step in range(1, run.steps + 1):
            async with anyio.create_task_group() as together:
                for worker, loop in zip(workers, loops, strict=True):
                    together.start_soon(worker.step, novels, loop)
            assert all(worker.states == workers[0].states for worker in workers), f"replicas differ after step {step}"
            if step % max(1, run.steps // POINTS) == 0:
                measure(step)
                print(f"  {run.name} seed {seed} step {step}: {curve[-1][2]:.4f}", flush=True)
        tasks.cancel_scope.cancel()
    result: dict[str, Any] = {
        "loss": held_out(FINAL),
        "rounds": group.rounds,
        "tokens": run.tokens,
        "parameters": layout.count,
        "seconds": round(time.perf_counter() - began, 1),
        "curve": curve,
    }
    if run.liars:
        offered, honest = group.rounds * spec.shards, run.workers - run.liars
        groups = names[honest:], names[:honest]
        result["refused"] = [sum(refused[name] for name in some) / (offered * len(some)) for some in groups]
    return result, workers[0].strategy.outer.values


def warm_start(novels: Novels, folder: Path) -> Values:
    """Where the runs of all seeds begin: trained once, synchronously, and kept beside the results."""
    path = folder / f"warm-{WARM.described()}.npy"
    if not path.exists():
        result, values = anyio.run(trained, WARM, WARM_SEED, novels, None)
        np.save(path, values)
        path.with_suffix(".json").write_text(json.dumps(result))
        print(f"warm start: {result['loss']:.4f} after {result['seconds']} s", flush=True)
    values = np.load(path)
    return np.asarray(values, np.float32)


def note(states: list[bytes], report: object) -> None:
    if isinstance(report, RoundApplied):
        states.append(report.state)


def sent_bytes(group: LocalGroup, peer: PeerId) -> int:
    """Payload bytes that leave a peer: its updates, and as reducer of its share of the shards one copy to each peer."""
    return group.sent_bytes[peer] + group.received_bytes[peer]


def results_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def machine() -> dict[str, str]:
    return {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "numpy": np.__version__}


def table(results: list[dict[str, Any]]) -> None:
    """Means over the seeds that are there; differences are taken seed by seed, and their ends stand in brackets."""
    by_run: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for result in results:
        if result["run"] in RUNS and result["settings"] == RUNS[result["run"]].described():
            by_run[result["run"]][result["seed"]] = result
    print(
        f"{'run':16} {'seeds':>5} {'rounds':>6} {'loss':>23} {'against':>8} {'difference':>28} {'MB sent':>8}  refused"
    )
    for name, by_seed in by_run.items():
        against = by_run.get(RUNS[name].against, {})
        losses = [result["loss"] for result in by_seed.values()]
        gaps = [result["loss"] - against[seed]["loss"] for seed, result in by_seed.items() if seed in against]
        first = next(iter(by_seed.values()))
        refused = "liars {:.0%}, others {:.1%}".format(*first["refused"]) if "refused" in first else ""
        print(
            f"{name:16} {len(by_seed):5} {first['rounds']:6} {spread(losses, '.4f'):>23} {RUNS[name].against:>8} "
            f"{spread(gaps, '+.4f'):>28} {first['curve'][-1][1] / 1e6:8.2f}  {refused}"
        )


def spread(values: list[float], form: str) -> str:
    if not values:
        return ""
    ends = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{ends}"


def plot(results: list[dict[str, Any]], path: Path) -> None:
    import matplotlib as mpl  # the extra `bench`

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = path.stem
    from matplotlib import pyplot

    figure, (by_bytes, by_steps) = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for name, run in RUNS.items():
        curves = [r["curve"] for r in results if r["run"] == name and r["settings"] == run.described()]
        if not run.plotted or not curves:
            continue
        mean = np.array(curves).mean(axis=0)  # (point, (step, bytes, loss))
        by_bytes.plot(mean[1:, 1] / 1e6, mean[1:, 2], marker=".", label=name)
        by_steps.plot(mean[:, 0], mean[:, 2], marker=".", label=name)
    by_bytes.set(xscale="log", xlabel="megabytes sent by each peer", ylabel="held-out loss (nats per token)")
    by_steps.set(xlabel="inner steps (equal tokens)")
    by_steps.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--only", default="sync,diloco,streaming,sparse,cocktail", help="runs, or `all`")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--corpus", type=Path, default=ROOT.parent / "shared/corpus")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", type=Path)
    chosen = parser.parse_args()
    if chosen.table:
        return table(results_in(chosen.results))
    if chosen.plot:
        return plot(results_in(chosen.results), chosen.plot)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    keep_freed_memory()
    novels = Novels(chosen.corpus)
    start = warm_start(novels, chosen.results.parent)
    for seed in map(int, chosen.seeds.split(",")):
        for name in RUNS if chosen.only == "all" else chosen.only.split(","):
            run = RUNS[name]
            key = {"run": name, "seed": seed, "settings": run.described()}
            if any({k: r[k] for k in key} == key for r in results_in(chosen.results)):
                continue
            result = key | machine() | anyio.run(trained, run, seed, novels, None if run.cold else start)[0]
            with chosen.results.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(f"{name} seed {seed}: {result['loss']:.4f} after {result['seconds']} s", flush=True)
    return table(results_in(chosen.results))


if __name__ == "__main__":
    main()
