"""Tokens per second of one session, side by side in one run: local `transformers.generate`, one, two and four nodes.

Every process has one compute thread; the client is a thin driver in this process (ids in, ids out, no torch). Rounds of
all configurations alternate, so that a slow minute of the machine hits all of them alike. Greedy, 64-token prompt, 64
new tokens; the ids must be equal everywhere. Then: eight sessions at once on two nodes, start-up times.

    python scripts/bench/inference.py [--rounds 7] [--models novels-6m,random] [--json FILE]
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio

from shoal.node.local_swarm import LocalNode, create_invite, environment, local_swarm, start_node
from shoal.swarm.home import Home
from shoal.swarm.sessions.driver import Driver
from shoal.swarm.sessions.generation import TokenRequest
from shoal.swarm.thin_client import thin_driver

PROMPT, NEW = 64, 64
SPLITS = {1: ["all"], 2: ["embed+0:4", "4:8+head"], 4: ["embed+0:2", "2:4", "4:6", "6:8+head"]}


class LocalGenerate:
    def __init__(self, folder: Path) -> None:
        script = Path(__file__).with_name("local_generate.py")
        self.process = subprocess.Popen(  # noqa: S603  our own script
            [sys.executable, str(script), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(),
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def run(self, ids: tuple[int, ...], new: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"ids": ids, "new": new}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)


async def generate(driver: Driver, ids: tuple[int, ...], new: int) -> dict[str, Any]:
    model = (await driver.models())[0].id
    began = time.perf_counter()
    got: list[int] = []
    first = 0.0
    async with driver.generate(TokenRequest(model, ids, new)) as stream:
        async for choice in stream:
            first = first or time.perf_counter() - began
            got.append(choice.id)
    return {"seconds": time.perf_counter() - began, "first": first, "ids": got}


async def at_once(driver: Driver, prompts: list[tuple[int, ...]], new: int) -> float:
    """Tokens per second of all sessions together."""
    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for ids in prompts:
            tasks.start_soon(generate, driver, ids, new)
    return len(prompts) * new / (time.perf_counter() - began)


def prompts_of(model: str, count: int) -> list[tuple[int, ...]]:
    size = 4096 if model == "novels-6m" else 32000
    return [tuple((7 + 13 * i + 101 * k) % (size - 10) + 5 for i in range(PROMPT)) for k in range(count)]


def quantiles(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


@contextlib.contextmanager
def swarms(folder: Path, model: str) -> Iterator[dict[int, dict[str, LocalNode]]]:
    with contextlib.ExitStack() as stack:
        running = {}
        for count, splits in SPLITS.items():
            nodes = {f"n{count}-{i}": [model, "--layers", layers] for i, layers in enumerate(splits)}
            running[count] = stack.enter_context(local_swarm(folder / f"swarm{count}", nodes))
        yield running


async def measure(name: str, model: str, model_folder: Path, folder: Path, rounds: int) -> dict[str, Any]:
    local = LocalGenerate(model_folder)
    prompts = prompts_of(name, 8)
    result: dict[str, Any] = {"model": name, "rounds": rounds}
    try:
        with swarms(folder, model) as running:
            async with anyio.create_task_group() as tasks, contextlib.AsyncExitStack() as stack:
                drivers = {}
                for count, nodes in running.items():
                    invite = create_invite(next(iter(nodes.values())))
                    home = Home(folder / f"client{count}")
                    drivers[count] = await stack.enter_async_context(thin_driver(home, tasks, invite))
                expected = local.run(prompts[0], NEW)["ids"]
                for driver in drivers.values():  # warm, and equal
                    got = (await generate(driver, prompts[0], NEW))["ids"]
                    if got != expected:
                        raise SystemExit(f"{name}: the swarm's ids differ from transformers.generate: {got} {expected}")
                times: dict[str, list[dict[str, Any]]] = {"local": [], **{f"nodes{c}": [] for c in drivers}}
                for _ in range(rounds):
                    times["local"].append(await anyio.to_thread.run_sync(local.run, prompts[0], NEW))
                    for count, driver in drivers.items():
                        times[f"nodes{count}"].append(await generate(driver, prompts[0], NEW))
                eight = [await at_once(drivers[2], prompts, NEW) for _ in range(max(3, rounds // 2))]
                result["eight_sessions_tokens_s"] = quantiles(eight)
                tasks.cancel_scope.cancel()
    finally:
        local.stop()
    for key, runs in times.items():
        result[key] = {
            "tokens_s": quantiles([NEW / r["seconds"] for r in runs]),
            "decode_ms": quantiles([(r["seconds"] - r["first"]) / (NEW - 1) * 1e3 for r in runs]),
            "first_s": quantiles([r["first"] for r in runs]),
        }
    for key in times:
        ratios = [base["seconds"] / run["seconds"] for base, run in zip(times["local"], times[key], strict=True)]
        result[key]["of_local"] = quantiles(ratios)
    one = result["nodes1"]["decode_ms"]["median"]
    for count in (2, 4):
        result[f"nodes{count}"]["hop_ms"] = (result[f"nodes{count}"]["decode_ms"]["median"] - one) / (count - 1)
    result["eight_of_one"] = result["eight_sessions_tokens_s"]["median"] / result["nodes2"]["tokens_s"]["median"]
    return result


def start_up(folder: Path, rounds: int) -> dict[str, Any]:
    """`shoal up` to ready, and `shoal generate` (a fresh process, no node beside it) to its first token."""
    ready, first = [], []
    for i in range(rounds):
        began = time.perf_counter()
        node = start_node(folder, f"start{i}")
        try:
            node.wait_for("ready")
            ready.append(time.perf_counter() - began)
            home = Home(folder / f"fresh{i}")
            command = [sys.executable, "-m", "shoal", "generate", "It was", "--max-tokens", "1"]
            command += ["--home", str(home.root), "--invite", create_invite(node)]
            quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "env": environment()}
            began = time.perf_counter()
            with subprocess.Popen(command, **quiet) as client:  # noqa: S603  our own command
                assert client.stdout is not None
                client.stdout.read(1)
                first.append(time.perf_counter() - began)
                client.communicate()
        finally:
            node.stop()
    return {"ready_s": quantiles(ready), "client_first_token_s": quantiles(first)}


def machine() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    versions = {name: version(name) for name in ("shoal", "torch", "transformers", "hivemind", "uvloop")}
    return {"cpu": cpu, "cores": str(os.cpu_count()), "python": platform.python_version(), **versions}


def show(result: dict[str, Any]) -> None:
    print(f"\n{result['model']}: {PROMPT} + {NEW} tokens, greedy, {result['rounds']} rounds, median (min..max)")
    print(f"{'':10} {'tokens/s':>22} {'of local':>8} {'ms/token':>9} {'first s':>8} {'hop ms':>7}")
    for key in ("local", "nodes1", "nodes2", "nodes4"):
        row = result[key]
        speed = row["tokens_s"]
        hop = f"{row['hop_ms']:7.2f}" if "hop_ms" in row else ""
        rate = f"{key:10} {speed['median']:8.1f} ({speed['min']:.1f}..{speed['max']:.1f})".ljust(33)
        of_local, decode_ms, first_s = (row[name]["median"] for name in ("of_local", "decode_ms", "first_s"))
        print(f"{rate} {of_local:8.2f} {decode_ms:9.2f} {first_s:8.3f} {hop}")
    eight = result["eight_sessions_tokens_s"]
    print(f"eight sessions on two nodes: {eight['median']:.1f} tokens/s, {result['eight_of_one']:.2f}x one session")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", default="novels-6m,random")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    embedded = Path(__file__).parents[2] / "node" / "embedded" / "novels-6m"
    report: dict[str, Any] = {"machine": machine(), "models": []}
    print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        folder = Path(name)
        if chosen.starts:
            report["start"] = start_up(folder, chosen.starts)
            for key, seconds in report["start"].items():
                print(f"{key}: {seconds['median']:.2f} ({seconds['min']:.2f}..{seconds['max']:.2f})")
        for model in chosen.models.split(","):
            place = embedded if model == "novels-6m" else folder / "random"
            if model == "random":
                script = Path(__file__).with_name("random_llama.py")  # this process stays without torch
                subprocess.run([sys.executable, script, place, embedded], check=True)  # noqa: S603  our own script
            served = model if model == "novels-6m" else str(place)
            arguments = (model, served, place, folder / model, chosen.rounds)
            result = anyio.run(measure, *arguments, backend_options={"use_uvloop": True})
            report["models"].append(result)
            show(result)
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
