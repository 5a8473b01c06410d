"""How long a model has a gap after the only holder of half of its layers was killed with -9, in real nodes.

Three nodes in processes of their own on loopback, each with room for half of `novels-6m`, choose their layers by
themselves; then the one that alone holds its half is killed. Seconds from the kill: until its record is out of the
survivors' listings, until one of them begins to move, until it serves the other half, until a client has an answer.

    python scripts/bench/closing_gaps.py [--runs 3] [--json FILE]
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from shoal.node.local_swarm import LocalNode, local_swarm

HALF = ["--max-memory", "88MB", "--api-port", "0"]
UNITS = 10
LOOK_S = 0.25
PATIENCE_S = 180.0
STEPS = ("out of the listings", "begins to move", "covered again", "answer")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    runs = []
    for _ in range(given.runs):
        with tempfile.TemporaryDirectory(prefix="cov-") as folder:
            runs.append(measure(Path(folder)))
        print(" ".join(f"{step} {runs[-1][step]:.1f} s;" for step in STEPS), file=sys.stderr)
    print(f"{platform.processor()}, Python {platform.python_version()}; {given.runs} runs; seconds since the kill")
    for step in STEPS:
        times = [run[step] for run in runs]
        print(f"{step:22} {statistics.median(times):6.1f}  ({min(times):.1f} to {max(times):.1f})")
    if given.json:
        given.json.write_text(json.dumps(runs, indent=1))
    return 0


def measure(folder: Path) -> dict[str, float]:
    with local_swarm(folder, {"ana": HALF, "ben": HALF, "cleo": HALF}) as nodes:
        wait(lambda: all(len(spans(node)) == len(nodes) for node in nodes.values()))
        held = spans(nodes["ana"])
        victim = next(name for name in held if gaps({n: s for n, s in held.items() if n != name}))
        alive = [node for name, node in nodes.items() if name != victim]
        began_s = time.perf_counter()
        nodes[victim].kill()
        found = {}
        for step, holds in (
            (STEPS[0], lambda: victim not in spans(alive[0])),
            (STEPS[1], lambda: any(event["event"] == "layers_moving" for node in alive for event in node.events)),
            (STEPS[2], lambda: any(event["event"] == "layers_moved" for node in alive for event in node.events)),
            (STEPS[3], lambda: answers(alive[0])),
        ):
            wait(holds)
            found[step] = time.perf_counter() - began_s
        return found


def wait(holds: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + PATIENCE_S
    while not holds():
        if time.perf_counter() > deadline:
            raise SystemExit(f"nothing came of it within {PATIENCE_S:.0f} s")
        time.sleep(LOOK_S)


def ask(node: LocalNode, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    key = {"authorization": f"Bearer {node.key}"}
    return httpx.request(method, node.api + path, json=body, headers=key, timeout=60)


def spans(node: LocalNode) -> dict[str, tuple[int, int]]:
    peers = ask(node, "GET", "/shoal/v1/peers").json()["peers"]
    return {peer["name"]: (held["start"], held["stop"]) for peer in peers for held in peer["hosted"]}


def gaps(held: dict[str, tuple[int, int]]) -> set[int]:
    return set(range(UNITS)) - {unit for start, stop in held.values() for unit in range(start, stop)}


def answers(node: LocalNode) -> bool:
    body = {"prompt": "It was a cold morning, and", "max_tokens": 1, "temperature": 0}
    return ask(node, "POST", "/v1/completions", body).status_code == 200


if __name__ == "__main__":
    raise SystemExit(main())
