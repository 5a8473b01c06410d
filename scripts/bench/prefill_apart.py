"""Time to the first token of a long prompt at a slow chain, by itself and with a peer that prefills for it.

Real engines, sessions and codecs in one process; the links are the simulator's in real time, each paced to so many
Mbit/s each way and delayed by half the round trip. The two hops of the chain are slowed: each computation, and each
chunk that they take in, takes `--slow` times as long as this machine needs. `strong` holds all layers and is not
slowed. Runs take turns. `auto` is what a client gets; the planner's own estimates are printed beside.

    python scripts/bench/prefill_apart.py [--mbit 20,100,1000] [--rtt-ms 30] [--slow 8] [--runs 3] [--json FILE]
"""

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import anyio
import torch
from random_llama import write_random_llama

from shoal.compression.kv_profile import parse_profile
from shoal.node.kv_calibration import calibrate_files
from shoal.node.model_source import resolve
from shoal.node.paced_swarm import PacedSwarm
from shoal.swarm.identifiers import PeerId
from shoal.swarm.sessions.generation import Exactness, TokenRequest
from shoal.swarm.units import Span

ROOT = Path(__file__).parents[2]
NOVELS = ROOT / "node/embedded/novels-6m"
NEW = 16
MODES: dict[str, tuple[str, Exactness]] = {
    "alone": ("never", "replay"),
    "apart exact": ("strong", "exact"),
    "apart fast": ("strong", "fast"),
    "auto exact": ("auto", "exact"),
    "auto fast": ("auto", "fast"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mbit", type=lambda text: [float(each) for each in text.split(",")], default=[20, 100, 1000])
    parser.add_argument("--rtt-ms", type=float, default=30.0)
    parser.add_argument("--slow", type=float, default=8.0)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--modes", type=lambda text: text.split(","), default=list(MODES))
    parser.add_argument("--model", type=Path, help="a folder to keep the made model in; else it is made each time")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {version('torch')}", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        folder = given.model or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prefill-")))
        if not (folder / "random" / "kv").exists():
            make(folder)
        profile = (folder / "random" / "kv").read_bytes()
        figures = {str(mbit): measure(given, folder / "random", profile, mbit) for mbit in given.mbit}
    print(json.dumps(figures, indent=1))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))


def make(folder: Path) -> None:
    """The model, and the profile by which its caches are compressed, in a file that is none of the model's."""
    source = write_random_llama(folder / "random", NOVELS)
    text = folder / "text.txt"
    text.write_text("".join(f"On day {day} the rain fell on {day % 13} roofs. " for day in range(400)))
    (source / "kv").write_bytes(calibrate_files(source, [text], 5, 192, backward=False).packed)


def measure(given: argparse.Namespace, source: Path, profile: bytes, mbit: float) -> dict[str, Any]:
    model = resolve(str(source), source.parent / "cache")
    layers = model.manifest.layers
    half = 1 + layers // 2
    layout = {"front": Span(0, half), "back": Span(half, layers + 2), "strong": Span(0, layers + 2)}
    slowed = {"front": given.slow, "back": given.slow}
    seen: dict[str, list[float]] = {mode: [] for mode in given.modes}
    taken: dict[str, list[int]] = {mode: [] for mode in given.modes}
    equal: dict[str, int] = dict.fromkeys(given.modes, 0)
    estimates: dict[str, Any] = {}
    generator = random.Random(1)
    world = PacedSwarm(model, mbit, given.rtt_ms, 4 * given.tokens, parse_profile(profile), layout, slowed, ["strong"])

    async def run() -> None:
        chain = [(PeerId("front"), layout["front"]), (PeerId("back"), layout["back"])]
        await world.generate(tuple(range(5, 205)), 2, "exact", prefill="strong")  # pays for what is first
        for number in range(given.runs):
            prompt = tuple(generator.randrange(model.manifest.vocabulary) for _ in range(given.tokens))
            whole: list[int] | None = None
            for mode in given.modes:
                prefill, exactness = MODES[mode]
                tokens, route = await world.generate(prompt, NEW, exactness, prefill=prefill)
                whole = tokens if whole is None else whole
                seen[mode].append(route.first_token_s)
                taken[mode].append(sum(each.positions for each in route.prefills))
                equal[mode] += tokens == whole
                request = TokenRequest(model.model_id, prompt, NEW, exactness=exactness)
                choice = world.prefill_choice(chain, request)
                if choice is not None:
                    estimates[mode] = {"own_s": choice.own_s, "apart_s": choice.apart_s, "auto": choice.is_worth_it}
            print(f"{mbit:6.0f} run {number}: { ({m: round(v[-1], 2) for m, v in seen.items()}) }", file=sys.stderr)

    with world:
        anyio.run(world.running, run)
    return {
        "ttft_s": {m: [min(v), statistics.median(v), max(v)] for m, v in seen.items()},
        "positions_taken": taken,
        "equal_to_the_first_mode": equal,
        "estimates": estimates,
    }


if __name__ == "__main__":
    main()
