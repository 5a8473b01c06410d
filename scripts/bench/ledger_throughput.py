"""Tokens per second of one session with the ledger and without, side by side in one run.

First two real nodes, asked by a client that keeps no ledger ("off") and by one that does ("on, free": without credit,
with receipts), and two others with `--no-ledger`. Then two engines in this process on a network without delay, where
a client with credit pays: prompts in slices of 32, a word for each. Greedy, 64-token prompt, 64 new tokens; the ids
must be equal everywhere. All take turns.

    OMP_NUM_THREADS=1 python scripts/bench/ledger_throughput.py [--rounds 15] [--json FILE]
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
from inference import NEW, generate, prompts_of, quantiles

from shoal.incentives.ledger import Ledger
from shoal.incentives.session_meter import LedgerMetering
from shoal.incentives.session_payment import LedgerPaying
from shoal.incentives.store import Store
from shoal.node.local_swarm import create_invite, local_swarm
from shoal.swarm.home import Home
from shoal.swarm.identifiers import ModelId, PeerId, SwarmId
from shoal.swarm.identity import Identity
from shoal.swarm.manifest import Manifest, model_id
from shoal.swarm.routing.chain_plan import ChainPlan, PlannedHop
from shoal.swarm.sessions.compute import Compute
from shoal.swarm.sessions.driver import Driver
from shoal.swarm.sessions.generation import ServedModel, TokenRequest
from shoal.swarm.sessions.hop_server import HopServer
from shoal.swarm.sessions.session_events import Plan
from shoal.swarm.thin_client import thin_driver
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.transports.memory_link import Conditions
from shoal.swarm.units import Span

CREDIT = 10**9
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


async def over_nodes(folder: Path, rounds: int) -> dict[str, Any]:
    print("two real nodes:")
    layers = (["--layers", "embed+0:4"], ["--layers", "4:8+head"])
    with contextlib.ExitStack() as swarms:
        async with anyio.create_task_group() as tasks, contextlib.AsyncExitStack() as stack:
            drivers = {}
            swarm = {}
            for name, flag in (("off", "--ledger"), ("other nodes", "--no-ledger")):
                named = {f"{name[:5]}{n}": ["novels-6m", *layers[n], flag] for n in range(2)}
                swarm[name] = swarms.enter_context(local_swarm(folder / name[:5], named))
            swarm["on, free"] = swarm["off"]  # the same processes, so that nothing differs but the receipts
            for name, nodes in swarm.items():
                home, paying = Home(folder / f"client {name[:5]}"), None
                home.prepare()
                if name == "on, free":
                    me = Identity.load_or_create(home.identity)
                    ledger = Ledger(Store(home.ledger), me, time.time)  # noqa: TID251
                    tasks.start_soon(ledger.run)
                    paying = LedgerPaying(ledger)
                invite = create_invite(next(iter(nodes.values())))
                drivers[name] = await stack.enter_async_context(thin_driver(home, tasks, invite, paying))
            result = await take_turns(drivers, rounds, prompts_of("novels-6m", 1))
            tasks.cancel_scope.cancel()
    return result


async def in_process(folder: Path, rounds: int) -> dict[str, Any]:
    import torch

    from shoal.node.engine import Engine
    from shoal.node.model_source import resolve
    from shoal.node.shard import Shard

    print("two engines in this process:")
    torch.set_num_threads(1)
    model = resolve(str(EMBEDDED), folder)
    layers = model.manifest.layers
    spans = (Span(0, 1 + layers // 2), Span(1 + layers // 2, layers + 2))
    engines = [Engine(Shard.load(model, span, "float32", torch.device("cpu")), 4096) for span in spans]
    drivers: dict[str, Driver] = {}
    try:
        async with (
            MemoryNetwork(0, Conditions(latency_s=(0.0, 0.0))) as network,
            anyio.create_task_group() as tasks,
        ):
            for lane, credit in (("off", None), ("on, free", 0), ("on, paid", CREDIT)):
                people = [Identity.generate() for _ in range(3)]
                client = people[2]
                hosting = TwoEngines(
                    model.manifest,
                    {who.peer_id: (span, engine) for who, span, engine in zip(people[:2], spans, engines, strict=True)},
                )

                def ledger_of(who: Identity, client: Identity = client, credit: int | None = credit) -> Ledger:
                    ledger = Ledger(Store(folder / f"{who.peer_id}.sqlite"), who, time.time)  # noqa: TID251
                    now = ledger.now()
                    ledger.store.balances.mint(client.public_key, credit or 0, bytes(32), now - 25 * 3600)
                    list(ledger.store.balances.advance(client.public_key, now))
                    tasks.start_soon(ledger.run)
                    return ledger

                for who in people[:2]:
                    metering = None
                    if credit is not None:
                        metering = LedgerMetering(ledger_of(who), lambda _: model.manifest, anyio.current_time)
                    await HopServer(network.join(who.peer_id), OpenGate(), hosting, metering=metering).start()
                paying = LedgerPaying(ledger_of(client)) if credit is not None else None
                transport = network.join(client.peer_id)
                drivers[lane] = Driver(transport, OpenGate(), hosting, tasks, paying=paying)
            result = await take_turns(drivers, rounds, prompts_of("novels-6m", 1))
            tasks.cancel_scope.cancel()
    finally:
        for engine in engines:
            engine.stop()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    report = {}
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        for key, measure in (("nodes", over_nodes), ("in_process", in_process)):
            options = {"use_uvloop": True}
            report[key] = anyio.run(measure, Path(name), chosen.rounds, backend_options=options)
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
