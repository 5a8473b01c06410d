"""A free newcomer at an engine that paying sessions fill: the time to its first token, with the lanes and without.

    python scripts/bench/lanes.py [--seconds 60] [--gap 2] [--json FILE]

One engine with all layers of `novels-6m`. Paying clients work in a closed loop, more of them than the cache has room
for; newcomers come at random moments, each with an account of its own. A newcomer's time counts from its first try to
open a session, refusals included; a paying client's from the try that succeeded.
"""

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import anyio
import torch

from shoal.node.engine import Engine
from shoal.node.model_source import resolve
from shoal.node.shard import Shard
from shoal.swarm.errors import OutOfMemory
from shoal.swarm.identifiers import SessionId
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Work
from shoal.swarm.sessions.lanes import MEMBER, Claim, Lane
from shoal.swarm.units import whole

PROMPT, NEW = 64, 32  # tokens
KV_TOKENS = 6144  # 48 sessions of the longest kind with two pages each
PAYING = 64  # clients
ACCOUNTS = 16  # of those that pay
RETRY_S = 0.02
GIVEN_UP_S = 20.0


class Load:
    def __init__(self, engine: Engine, lanes: bool, gap_s: float, seed: int) -> None:
        self.engine, self.lanes, self.gap_s = engine, lanes, gap_s
        self.random = random.Random(seed)
        self.vocabulary = engine.shard.manifest.vocabulary
        self.paid_s: list[float] = []
        self.free_s: list[float] = []
        self.given_up = 0
        self.names = 0

    async def session(self, claim: Claim, began_s: float | None) -> float:
        """returns: seconds to the first token. raises: OutOfMemory"""
        self.names += 1
        name = SessionId(f"session {self.names}")
        ids = [self.random.randrange(self.vocabulary) for _ in range(PROMPT)]
        began_s = anyio.current_time() if began_s is None else began_s
        await self.engine.open(
            name, self.engine.shard.span, PROMPT + NEW, Sampling(), (), claim if self.lanes else MEMBER
        )
        try:
            first = await self.engine.run(Work(name, 0, PROMPT, tuple(ids), wants_token=True))
            took_s = anyio.current_time() - began_s
            for position in range(PROMPT, PROMPT + NEW - 1):
                assert first.choice is not None
                first = await self.engine.run(Work(name, position, 1, (first.choice.id,), wants_token=True))
        finally:
            self.engine.close(name)
        return took_s

    async def paying(self, number: int) -> None:
        claim = Claim(f"paying {number % ACCOUNTS}", Lane.PAID)
        while True:
            try:
                self.paid_s.append(await self.session(claim, None))
            except OutOfMemory:
                await anyio.sleep(RETRY_S * self.random.uniform(0.5, 1.5))

    async def newcomer(self, number: int) -> None:
        claim, began_s = Claim(f"newcomer {number}", Lane.FREE), anyio.current_time()
        while anyio.current_time() - began_s < GIVEN_UP_S:
            try:
                self.free_s.append(await self.session(claim, began_s))
            except OutOfMemory:
                await anyio.sleep(RETRY_S * self.random.uniform(0.5, 1.5))
            else:
                return
        self.given_up += 1

    async def run(self, seconds: float) -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(PAYING):
                tasks.start_soon(self.paying, number)
            await anyio.sleep(3.0)
            self.paid_s.clear()
            until_s = anyio.current_time() + seconds
            number = 0
            async with anyio.create_task_group() as newcomers:
                while anyio.current_time() < until_s:
                    newcomers.start_soon(self.newcomer, number)
                    number += 1
                    await anyio.sleep(self.random.expovariate(1 / self.gap_s))
            tasks.cancel_scope.cancel()

    def figures(self) -> dict[str, float]:
        median = statistics.median(self.paid_s)
        free = sorted(self.free_s)
        return {
            "paid_sessions": len(self.paid_s),
            "paid_median_s": median,
            "newcomers": len(free) + self.given_up,
            "never_served": self.given_up,
            "free_median_s": statistics.median(free) if free else float("inf"),
            "free_p95_s": free[int(0.95 * len(free))] if free else float("inf"),
            "free_worst_s": free[-1] if free else float("inf"),
            "worst_of_paid_median": free[-1] / median if free and not self.given_up else float("inf"),
        }


def measured(lanes: bool, seconds: float, gap_s: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        model = resolve("novels-6m", Path(folder))
        span = whole(model.manifest.layers)
        model.fetch(span)
        engine = Engine(Shard.load(model, span, "float32", torch.device("cpu")), KV_TOKENS, keeps_lanes=lanes)
        load = Load(engine, lanes, gap_s, seed=7)
        began_s, before = time.perf_counter(), engine.tokens_done
        anyio.run(load.run, seconds)
        figures = load.figures()
        figures["positions_s"] = (engine.tokens_done - before) / (time.perf_counter() - began_s)
        engine.stop()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--gap", type=float, default=2.0, help="seconds between newcomers, in the mean")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        name: measured(lanes, chosen.seconds, chosen.gap) for name, lanes in (("lanes", True), ("no lanes", False))
    }
    print(f"{platform.machine()}, torch {torch.__version__}, {PAYING} paying clients, {KV_TOKENS} tokens of cache")
    for key in results["lanes"]:
        print(f"{key:22}" + "".join(f"{results[name][key]:12.3f} ({name})" for name in results))
    if chosen.json:
        chosen.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
