"""Tokens a second of a model in 1, 2 and 3 stages, bytes of a microbatch, and the pause at a killed replica.

All stages are in one process, each with its own thread, over a network in memory without delay: what is measured is
what cutting costs (computing twice, bytes, hand-overs) and what several cores give back. The configurations take turns.

    python scripts/bench/pipeline.py [--model novels-6m] [--rounds 3] [--json FILE]
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import torch

from shoal.node import model_source
from shoal.node.manifest_builder import parse_config
from shoal.node.training.config import BatchSettings
from shoal.node.training.data.windows import Batch
from shoal.node.training.optimizers.inner import InnerOptimizer
from shoal.node.training.optimizers.inner_settings import InnerSettings
from shoal.node.training.pipeline.byte_compute import ByteCompute, HomeByteCompute
from shoal.node.training.pipeline.stage_loading import is_tied, load_stage
from shoal.node.training.pipeline.stage_steps import StageSteps
from shoal.node.training.worker_compiler import uncompiled
from shoal.swarm.identifiers import PeerId, SwarmId
from shoal.swarm.pipeline.messages import Hop, protocol_of
from shoal.swarm.pipeline.roll_call import RollCall
from shoal.swarm.pipeline.stage_plan import StagePlan, even_plan
from shoal.swarm.pipeline.stage_server import MAX_TENSOR_BYTES, StageServer
from shoal.swarm.pipeline.step_driver import Redone, StepDriver
from shoal.swarm.pipeline.work_links import WorkLinks
from shoal.swarm.pipeline.work_server import serve_home
from shoal.swarm.rounds.meeting import Attendee
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.transports.memory_link import Conditions

LENGTH, SEQUENCES, MICRO = 128, 16, 2
PIPELINE, PROTOCOL = "bench", protocol_of("bench")


class _Open:
    swarm = SwarmId("0" * 64)
    certificate = b""

    def admit(self, peer: PeerId, certificate: bytes) -> None:
        return


class Row:
    """A pipeline with one replica a stage, and a spare one of stage 1 when asked for."""

    def __init__(self, model: str, stages: int, cache: Path, wire: str = "bfloat16", spare: bool = False) -> None:
        self._source = model_source.resolve(model, cache)
        self._config = parse_config(self._source.text_file("config.json"), "config.json")
        tied = is_tied(self._config)
        self.plan: StagePlan = even_plan(self._source.manifest.layers, stages, tied=tied)
        self._wire, self._spare, self.stages = wire, spare, stages
        self.redone: list[Redone] = []
        self._present: dict[int, list[Attendee]] = {}

    def _compute(self, stage: int, kind: type[ByteCompute]) -> Any:  # noqa: ANN401  of that kind
        module = load_stage(self._config, self.plan, stage, self._source, 0)
        with uncompiled():
            optimizer = InnerOptimizer(InnerSettings(learning_rate=1e-4), module.model.named_parameters())
        steps = StageSteps(module, optimizer, BatchSettings(sequences=SEQUENCES), torch.device("cpu"))
        return kind(steps, LENGTH, int(self._config["hidden_size"]), self._wire, SEQUENCES, self._config["vocab_size"])

    async def start(self, network: MemoryNetwork, tasks: anyio.abc.TaskGroup) -> None:
        self.network = network
        names = [(stage, f"{self.stages}-{stage}") for stage in range(1, self.stages)]
        for stage, name in [*names, *([(1, "spare")] if self._spare else [])]:
            transport = network.join(PeerId(name))
            links = WorkLinks(transport, _Open(), PROTOCOL, PIPELINE, MAX_TENSOR_BYTES, tasks)
            compute = self._compute(stage, ByteCompute)
            server = StageServer(transport, _Open(), self.plan, stage, PIPELINE, PROTOCOL, compute, links)
            await server.serve()
            tasks.start_soon(_train, server, compute)
            self._present.setdefault(stage, []).append(Attendee(PeerId(name), ()))
        self.me = PeerId(f"{self.stages}-driver")
        transport = network.join(self.me)
        links = WorkLinks(transport, _Open(), PROTOCOL, PIPELINE, MAX_TENSOR_BYTES, tasks)
        self.home = self._compute(0, HomeByteCompute)
        roll = RollCall(transport, _Open(), self.plan, PIPELINE, PROTOCOL, self._found, lambda _: None)
        me = Hop(self.me, ())
        self.driver = StepDriver(me, roll, links, self.home, 30.0, 2 * self.stages, self.redone.append)
        await serve_home(transport, _Open(), PROTOCOL, PIPELINE, MAX_TENSOR_BYTES, self.driver.head)
        tasks.start_soon(roll.run, tasks)

    async def _found(self, stage: int) -> Sequence[Attendee]:
        return self._present.get(stage, [])

    async def step(self, seed: int) -> float:
        """returns: tokens a second"""
        ids = np.random.default_rng(seed).integers(0, self._config["vocab_size"], (SEQUENCES, LENGTH + 1))
        batch = Batch(ids[:, :-1].astype(np.int64).copy(), ids[:, 1:].astype(np.int64).copy(), None)
        began = time.perf_counter()
        done = await self.driver.learn(self.home.works(batch, MICRO, self.me, learns=True))
        self.home.steps.settled(done.norm, done.loss, done.step, batch.tokens, moves=True)
        return batch.tokens / (time.perf_counter() - began)


async def _train(server: StageServer, compute: ByteCompute) -> None:
    while (gathered := await server.gather()) is not None:
        compute.steps.settled(gathered.norm, gathered.loss, gathered.step, gathered.sequences * LENGTH, moves=True)
        server.advance()


async def measured(model: str, rounds: int, cache: Path) -> dict[str, Any]:
    speeds: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(anyio.create_task_group())
        rows = [Row(model, stages, cache) for stages in (1, 2, 3)]
        for row in rows:
            network = await stack.enter_async_context(MemoryNetwork(conditions=Conditions(latency_s=(0.0, 0.0))))
            await row.start(network, tasks)
            await row.step(0)
        for turn in range(rounds):
            for row in rows:
                speeds.setdefault(str(row.stages), []).append(await row.step(1 + turn))
        three = rows[2]
        path = [three.me, PeerId("3-1"), PeerId("3-2"), *([three.me] if three.plan.head_at_home else [])]
        steps = rounds + 1
        sent = [
            three.network.traffic(a, b).payload_bytes + three.network.traffic(b, a).payload_bytes
            for a, b in pairwise(path)
        ]
        a_microbatch = [round(total / steps / (SEQUENCES // MICRO)) for total in sent]
        doubled = Row(model, 3, cache, spare=True)
        network = await stack.enter_async_context(MemoryNetwork(conditions=Conditions(latency_s=(0.0, 0.0))))
        await doubled.start(network, tasks)
        await doubled.step(0)
        undisturbed_s = SEQUENCES * LENGTH / await doubled.step(1)
        tasks.start_soon(_kill, network, undisturbed_s / 2)
        disturbed_s = SEQUENCES * LENGTH / await doubled.step(2)
        tasks.cancel_scope.cancel()
    return {
        "tokens_s": {stages: statistics.median(found) for stages, found in speeds.items()},
        "spread": {stages: [min(found), max(found)] for stages, found in speeds.items()},
        "bytes_each_hop_of_a_microbatch": a_microbatch,
        "tokens_of_a_microbatch": MICRO * LENGTH,
        "killed": {
            "redone": len(doubled.redone),
            "step_s": disturbed_s,
            "undisturbed_step_s": undisturbed_s,
            "pauses_s": [round(each.pause_s, 3) for each in doubled.redone],
        },
    }


async def _kill(network: MemoryNetwork, after_s: float) -> None:
    await anyio.sleep(after_s)
    network.kill(PeerId("3-1"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="novels-6m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        found = anyio.run(measured, given.model, given.rounds, Path(cache))
    found |= {"machine": platform.platform(), "python": sys.version.split()[0], "torch": str(torch.__version__)}
    print(json.dumps(found, indent=1))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
