"""For benches of what a session costs: two engines in this process that hold half of `novels-6m` each, asked in turns.

They stand on a network without delay. Whoever compares gives each variant peers and a driver of its own over the same
engines; the ids must be equal.
"""

import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import torch
from anyio.abc import TaskGroup
from inference import NEW, generate, quantiles

from shoal.node.engine import Engine
from shoal.node.model_source import resolve
from shoal.node.shard import Shard
from shoal.swarm.identifiers import ModelId, PeerId, SwarmId
from shoal.swarm.identity import Identity
from shoal.swarm.manifest import Manifest, model_id
from shoal.swarm.routing.chain_plan import ChainPlan, PlannedHop
from shoal.swarm.sessions.compute import Compute
from shoal.swarm.sessions.driver import Driver
from shoal.swarm.sessions.generation import ServedModel, TokenRequest
from shoal.swarm.sessions.session_events import Plan
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.transports.memory_link import Conditions
from shoal.swarm.units import Span

EMBEDDED = Path(__file__).parents[2] / "node" / "embedded" / "novels-6m"


class OpenGate:
    swarm = SwarmId("0" * 64)
    certificate = b""

    def admit(self, peer: PeerId, certificate: bytes) -> None:
        return


class TwoEngines:
    """A planner and a hosting for two engines that hold half of the model each."""

    def __init__(self, manifest: Manifest, engines: dict[PeerId, tuple[Span, Compute]]) -> None:
        self._manifest = manifest
        self._engines = engines

    def find(self, model: ModelId, dtype: str, span: Span) -> Compute:
        return next(compute for held, compute in self._engines.values() if held == span)

    async def plan(self, request: TokenRequest, wanted: Plan, dtype: str | None) -> ChainPlan:
        hops = tuple(PlannedHop(peer, peer, span, ()) for peer, (span, _) in self._engines.items())
        return ChainPlan(hops, "float32")

    def blame(self, peer: PeerId) -> None:
        raise SystemExit(f"{peer} failed")

    async def models(self) -> list[ServedModel]:
        return [ServedModel(model_id(self._manifest), "novels-6m", self._manifest.layers, 4096, ("float32",), 2, "")]

    async def manifest(self, model: ModelId) -> Manifest:
        return self._manifest

    async def text_files(self, model: ModelId) -> dict[str, bytes]:
        return {}


def compared(runs: dict[str, list[dict[str, Any]]], base: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, each in runs.items():
        ratios = [b["seconds"] / r["seconds"] for b, r in zip(runs[base], each, strict=True)]
        result[name] = {
            "tokens_s": quantiles([NEW / r["seconds"] for r in each]),
            "first_s": quantiles([r["first"] for r in each]),
            "of_off": quantiles(ratios),
            "of_off_by_medians": statistics.median(r["seconds"] for r in runs[base])
            / statistics.median(r["seconds"] for r in each),
        }
        speed, of_off = result[name]["tokens_s"], result[name]["of_off_by_medians"]
        print(
            f"{name:12} {speed['median']:7.1f} tokens/s ({speed['min']:.1f}..{speed['max']:.1f}), {of_off:.3f} of off, "
            f"median of pairs {result[name]['of_off']['median']:.3f}, "
            f"first token {result[name]['first_s']['median'] * 1e3:.1f} ms"
        )
    return result


async def take_turns(drivers: dict[str, Driver], rounds: int, prompts: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    expected: list[int] = []
    for driver in drivers.values():  # warm, and equal
        for _ in range(2):
            got = (await generate(driver, prompts[0], NEW))["ids"]
        expected = expected or got
        if got != expected:
            raise SystemExit("the ids differ")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in drivers}
    for number in range(rounds):
        order = list(drivers) if number % 2 else list(reversed(drivers))
        for name in order:
            runs[name].append(await generate(drivers[name], prompts[0], NEW))
    return compared(runs, "off")


@dataclass(frozen=True, slots=True)
class Halves:
    manifest: Manifest
    network: MemoryNetwork
    tasks: TaskGroup
    engines: tuple[tuple[Span, Engine], ...]

    def hosting(self, servers: Sequence[Identity]) -> TwoEngines:
        return TwoEngines(self.manifest, dict(zip((who.peer_id for who in servers), self.engines, strict=True)))


@asynccontextmanager
async def halves_of_a_model(folder: Path) -> AsyncIterator[Halves]:
    """folder: for what is made of the model; one compute thread each"""
    torch.set_num_threads(1)
    model = resolve(str(EMBEDDED), folder)
    layers = model.manifest.layers
    spans = (Span(0, 1 + layers // 2), Span(1 + layers // 2, layers + 2))
    engines = [Engine(Shard.load(model, span, "float32", torch.device("cpu")), 4096) for span in spans]
    try:
        async with (
            MemoryNetwork(0, Conditions(latency_s=(0.0, 0.0))) as network,
            anyio.create_task_group() as tasks,
        ):
            yield Halves(model.manifest, network, tasks, tuple(zip(spans, engines, strict=True)))
            tasks.cancel_scope.cancel()
    finally:
        for engine in engines:
            engine.stop()
