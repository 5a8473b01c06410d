"""Caches on the move: a failover with a standby against a full replay, bytes and memory of what is moved, and a drain.

    python scripts/bench/kv_move.py [--parts failover,bytes,memory,drain] [--runs 20] [--model novels-6m|random]
                                    [--mbit 100] [--rtt-ms 30] [--json FILE]

failover and bytes: real engines, sessions and codecs in one process; what joins them is the simulator's network in real
time, each link paced to so many Mbit/s each way and delayed by half the round trip. Losing a hop is noticed at once, as
after a kill -9. Runs with a snapshot and without alternate. drain: nodes in processes of their own on loopback.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import anyio
import numpy as np
import torch
from random_llama import write_random_llama

from shoal.compression.kv_bitstream import decode_kv, encode_kv
from shoal.compression.kv_block import KvBlock, KvShape, from_floats
from shoal.node.kv_calibration import calibrate_files
from shoal.node.local_swarm import LocalNode, create_invite, environment, local_swarm
from shoal.node.model_source import LocalModel, resolve
from shoal.node.paced_swarm import PacedSwarm
from shoal.swarm.home import Home
from shoal.swarm.identifiers import SessionId
from shoal.swarm.manifest import KV_PROFILE
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Work
from shoal.swarm.sessions.driver import Driver
from shoal.swarm.sessions.generation import Exactness, TokenRequest
from shoal.swarm.thin_client import thin_driver

ROOT = Path(__file__).parents[2]
NOVELS = ROOT / "node/embedded/novels-6m"
CONTEXT = 1024
NEW = 800  # of the drained sessions: a command has time to start meanwhile
SESSIONS = 8
PARTS = ("failover", "bytes", "memory", "drain")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--model", choices=("novels-6m", "random"), default="random", help="of the failovers")
    parser.add_argument("--mbit", type=float, default=100.0)
    parser.add_argument("--rtt-ms", type=float, default=30.0)
    parser.add_argument("--text", type=Path, nargs="*", help="to calibrate on; else the standard library's sources")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"machine": platform.processor(), "torch": version("torch"), "python": sys.version[:6]}
    with tempfile.TemporaryDirectory(prefix="kv-move-") as folder, ExitStack() as stack:
        for part in given.parts.split(","):
            match part:
                case "failover":
                    figures[part] = failovers(given, Path(folder), stack)
                case "bytes":
                    figures[part] = moved_bytes(given, Path(folder))
                case "memory":
                    figures[part] = [memory(*shape) for shape in ((4, 2, 64, "float32"), (32, 8, 128, "bfloat16"))]
                case "drain":
                    figures[part] = drains(Path(folder))
                case _:
                    parser.error(f"no part {part!r}; there are {', '.join(PARTS)}")
            print(part, json.dumps(figures[part], indent=1))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))
    return 0


def failovers(given: argparse.Namespace, folder: Path, stack: ExitStack) -> dict[str, Any]:
    source = NOVELS if given.model == "novels-6m" else write_random_llama(folder / "random", NOVELS)
    model = resolve(str(source), folder / "cache")
    kinds: list[Exactness] = ["replay", "exact"]
    pauses: dict[str, list[float]] = {kind: [] for kind in kinds}
    equal: dict[str, int] = dict.fromkeys(kinds, 0)
    loaded: list[int] = []
    generator = random.Random(1)
    world = stack.enter_context(PacedSwarm(model, given.mbit, given.rtt_ms, 4 * CONTEXT))

    async def measure() -> None:
        for run in range(given.runs):
            prompt = tuple(generator.randrange(model.manifest.vocabulary) for _ in range(CONTEXT - 24))
            at, victim = generator.randrange(20, 40), generator.randrange(2)
            whole, _ = await world.generate(prompt, 64)
            for kind in kinds:
                tokens, route = await world.generate(prompt, 64, kind, kill_at=at, victim=victim)
                (failover,) = route.failovers
                pauses[kind].append(failover.pause_s)
                equal[kind] += tokens == whole
                if kind == "exact":
                    loaded.append(failover.loaded)
            print(f"run {run}: { ({k: round(v[-1], 3) for k, v in pauses.items()}) }", file=sys.stderr)

    anyio.run(world.running, measure)
    median = {kind: statistics.median(each) for kind, each in pauses.items()}
    return {
        "model": given.model,
        "link": f"{given.mbit} Mbit/s, round trip {given.rtt_ms} ms, paced in process",
        "context": CONTEXT,
        "pause_s": {kind: [min(each), median[kind], max(each)] for kind, each in pauses.items()},
        "ratio": median["exact"] / median["replay"],
        "equal": {kind: f"{count} of {given.runs}" for kind, count in equal.items()},
        "loaded_at_least": min(loaded),
    }


def moved_bytes(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Of a session of novels-6m over half the layers, in each level, against its cache in bfloat16."""
    from shoal.node.engine import Engine
    from shoal.node.shard import Shard
    from shoal.swarm.units import Span

    texts = given.text or sorted(Path(os.__file__).parent.glob("*.py"))[:60]
    texts, held_out = texts[:-1], texts[-1:]
    profile = calibrate_files(NOVELS, texts, 30, 512)
    target = folder / "calibrated"
    target.mkdir()
    for file in NOVELS.iterdir():
        (target / file.name).symlink_to(file)
    (target / KV_PROFILE).write_bytes(profile.packed)
    model = resolve(str(target), folder / "cache")
    ids = _text_ids(model, held_out)
    sizes: dict[str, float] = {}

    async def move() -> None:
        for dtype in ("float32", "bfloat16"):
            span = Span(0, 5)
            engine = Engine(Shard.load(model, span, dtype, torch.device("cpu")), 4096, kv_profile=profile)
            session = SessionId(dtype)
            await engine.open(session, span, CONTEXT, Sampling(), ())
            await engine.run(Work(session, 0, CONTEXT, ids=ids))
            heads, width = 2, 64
            plain = 2 * (len(span) - 1) * CONTEXT * heads * width * 2
            for level in ("lossless", "near-lossless", "default", "small"):
                chunks = await engine.export_kv(session, 0, CONTEXT, level)  # type: ignore[arg-type]
                sizes[f"{dtype} {level}"] = round(sum(map(len, chunks)) / plain, 4)
            engine.stop()

    anyio.run(move)
    return {"against": "the same cache in bfloat16, text that calibration did not see", "context": CONTEXT, **sizes}


def _text_ids(model: LocalModel, texts: list[Path]) -> tuple[int, ...]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    ids = tokenizer("\n".join(path.read_text("utf-8") for path in texts)).input_ids
    return tuple(ids[len(ids) // 2 :][:CONTEXT])


def memory(layers: int, heads: int, width: int, dtype: str) -> dict[str, Any]:
    """The most that coding one chunk takes beyond the chunk's tensors and payload, MiB: as tracked, and resident."""
    shape = KvShape(layers, 64, heads, width, dtype)
    values = np.random.default_rng(0).normal(size=(2, *shape.specs[0].shape)).astype(np.float32)
    block = KvBlock(shape, *(from_floats(each, dtype) for each in values))
    del values
    (payload,) = encode_kv(block)  # what is compiled is compiled
    decode_kv([payload], shape)
    result: dict[str, Any] = {
        "chunk": f"{layers} layers, {heads} heads of {width}, {dtype}: {shape.raw_bytes / 2**20:.1f} MiB"
    }
    for name, action, made in (
        ("encode", lambda: encode_kv(block), len(payload)),
        ("decode", lambda: decode_kv([payload], shape), shape.raw_bytes),
    ):
        resident = _peak_resident(action)
        tracemalloc.start()
        action()
        tracked = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        result[f"{name}_tracked_mib"] = round((tracked - made) / 2**20, 1)
        result[f"{name}_resident_mib"] = round((resident - made) / 2**20, 1)
    return result


def _peak_resident(action: Callable[[], object]) -> int:
    """Bytes by which this process grows at most meanwhile."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    before = _status_bytes("VmRSS")
    action()
    return _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":")]
    return int(line.split()[1]) * 1024


def drains(folder: Path) -> dict[str, Any]:
    layout = {
        "front": ["--layers", "embed+0:4"],
        "back1": ["--layers", "4:8+head"],
        "back2": ["--layers", "4:8+head"],
    }
    with local_swarm(folder, layout) as nodes:
        return anyio.run(_drain, folder, nodes, create_invite(nodes["front"]), backend_options={"use_uvloop": True})


async def _drain(folder: Path, nodes: dict[str, LocalNode], invite: str) -> dict[str, Any]:
    generator = random.Random(2)
    prompts = [tuple(generator.randrange(100, 4000) for _ in range(200)) for _ in range(SESSIONS)]
    async with anyio.create_task_group() as tasks, thin_driver(Home(folder / "client"), tasks, invite) as driver:
        model = (await driver.models())[0].id
        expected = [(await _tokens(driver, TokenRequest(model, prompt, NEW)))[0] for prompt in prompts]
        got: list[list[int]] = [[] for _ in prompts]
        routes: list[Any] = [None] * SESSIONS
        under_way = anyio.Event()
        counts = [0] * SESSIONS

        async def one(index: int) -> None:
            request = TokenRequest(model, prompts[index], NEW, exactness="exact")
            async with driver.generate(request) as stream:
                async for choice in stream:
                    got[index].append(choice.id)
                    counts[index] += 1
                    if min(counts) >= 10:
                        under_way.set()
            routes[index] = stream.route

        said: list[str] = []

        async def drain(name: str) -> None:
            command = [sys.executable, "-P", "-m", "shoal", "down", "--drain", "--home", str(nodes[name].home.root)]
            done = await anyio.run_process([*command, "--json"], env=environment(), check=False)
            said.extend(done.stdout.decode().splitlines())

        async with anyio.create_task_group() as sessions:
            for index in range(SESSIONS):
                sessions.start_soon(one, index)
            await under_way.wait()
            for name in ("back1", "back2"):
                busy = json.loads(await _status(nodes[name]))["sessions"]
                if busy:
                    await drain(name)
                    break
        tasks.cancel_scope.cancel()
    moves = [move for route in routes for move in route.failovers]
    return {
        "sessions": SESSIONS,
        "moved": sum(move.planned for move in moves),
        "lost": sum(not move.planned for move in moves),
        "pause_s": [min(m.pause_s for m in moves), statistics.median(m.pause_s for m in moves),
                    max(m.pause_s for m in moves)] if moves else None,
        "equal": f"{sum(a == b for a, b in zip(got, expected, strict=True))} of {SESSIONS}",
        "down_said": [json.loads(line) for line in said if "draining" in line][-1:],
    }  # fmt: skip


async def _tokens(driver: Driver, request: TokenRequest) -> tuple[list[int], Any]:
    async with driver.generate(request) as stream:
        return [choice.id async for choice in stream], stream.route


async def _status(node: LocalNode) -> bytes:
    import httpx

    async with httpx.AsyncClient(timeout=30) as http:
        answer = await http.get(f"{node.api}/shoal/v1/status", headers={"authorization": f"Bearer {node.key}"})
    return answer.content


if __name__ == "__main__":
    raise SystemExit(main())
