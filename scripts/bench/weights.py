"""Weights of a model from one donor and from three, with one killed on the way, one cut off, one corrupt.

Every peer is a real node in a process of its own with its own libp2p daemon; the fetcher asks for the whole model as
`shoal up NAME` does. Each donor's uplink is 50 Mbit/s: by the donors' own limit, or, with --netns, by links between
network namespaces that exist already, named PREFIXalice, PREFIXben, PREFIXcleo, PREFIXdora and PREFIXfetcher, each with
one IPv4 address on the interface wan0 (the emulator is not part of this project). The cost of a killed donor is the
time beyond what the other two need, at the measured rate of three, for what was missing when it died. The model is
random. Ends with 1 when a figure is not reached.

    python scripts/bench/weights.py [--mib 96] [--repeats 2] [--netns PREFIX] [--json FILE]
"""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import psutil
from safetensors.numpy import save_file

from shoal.node.node import Node, running_node
from shoal.node.node_events import DonorDropped, NodeEvent, WeightsFetched
from shoal.node.options import NodeOptions
from shoal.node.peer_model import peer_model
from shoal.swarm.home import Home
from shoal.swarm.identifiers import ModelId
from shoal.swarm.manifest import CHUNK_BYTES
from shoal.swarm.transports.p2pd import NetworkOptions

UPLINK_BYTE_S = 50e6 / 8
DONORS = ("alice", "ben", "cleo")
CORRUPT = "dora"
KILL_AT = 0.4  # of the bytes
WIDTH = 1024


def write_model(folder: Path, mib: int) -> None:
    folder.mkdir()
    layers = max(1, mib // 4)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": layers}
    config |= {"hidden_size": WIDTH, "vocab_size": 512, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(config))
    draw = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (512, WIDTH), "model.norm.weight": (WIDTH,)}
    shapes |= {f"model.layers.{n}.mlp.weight": (1024, WIDTH) for n in range(layers)}
    arrays = {name: draw.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    save_file(arrays, folder / "model.safetensors")


def spoil(folder: Path) -> None:
    """One bit of every chunk but the first, which holds the header."""
    with (folder / "model.safetensors").open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for at in range(CHUNK_BYTES, size, CHUNK_BYTES):
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def options_of(arguments: argparse.Namespace) -> NodeOptions:
    home = Home(arguments.home)
    network = NetworkOptions(host=arguments.host, nat=False)
    rate = None if arguments.child == "fetcher" else arguments.rate
    return NodeOptions(
        home=home, name=arguments.name, model=None, network=network, api_port=0, invite=arguments.invite,
        upload_byte_s=rate,
    )  # fmt: skip


async def child(arguments: argparse.Namespace) -> None:
    async with anyio.create_task_group() as tasks:
        async with running_node(options_of(arguments), lambda _: None, tasks) as node:
            if arguments.child == "donor":
                await donate(node, arguments)
            else:
                await answer(node)
        tasks.cancel_scope.cancel()


async def donate(node: Node, arguments: argparse.Namespace) -> None:
    made = await node.publications.publish(str(arguments.model))
    if arguments.spoil:
        spoil(arguments.model)
    invites = [node.invites.create(node.full_addresses, time.time()) for _ in range(8)] if node.invites else []  # noqa: TID251
    say(ready=True, peer=node.transport.me, model=made.model, invites=invites, daemon=node.transport.daemon_pid)
    await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)


async def answer(node: Node) -> None:
    say(ready=True, peer=node.transport.me)
    while line := await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        say(**await fetched(node, json.loads(line)))


class Memory:
    """The most that this process holds, seen every 20 ms."""

    def __init__(self) -> None:
        self._process, self._stop = psutil.Process(), threading.Event()
        self.before = self.most = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.most = max(self.most, self._process.memory_info().rss)

    def more(self) -> int:
        self._stop.set()
        self._thread.join()
        return self.most - self.before


async def fetched(node: Node, wanted: dict[str, Any]) -> dict[str, Any]:
    """One fetch of the whole model into a new folder."""
    model, peers = ModelId(wanted["model"]), wanted["peers"]
    with anyio.fail_after(60):
        while not set(peers) <= set(node.members()):
            await node.loops.look()
            await anyio.sleep(0.2)
        for peer in peers:
            await node.pinger.measure([record for record in node.known() if record.peer == peer])
    events: list[NodeEvent] = []
    cache = node.options.home.cache / "bench"
    memory = Memory()
    began = time.perf_counter()
    killed: dict[str, float] = {}

    def advance(_: str, done: int, total: int) -> None:
        if wanted["kill_at"] and not killed and done > wanted["kill_at"] * total > CHUNK_BYTES:
            killed.update(at_s=time.perf_counter() - began, missing=total - done)
            say(kill=True)

    local = await peer_model(node.calls, lambda: peers, model, cache, events.append)
    await anyio.to_thread.run_sync(partial(local.fetch, None, advance))
    seconds = time.perf_counter() - began
    more = memory.more()
    shutil.rmtree(cache)
    givers = {
        peer: count for event in events if isinstance(event, WeightsFetched) for peer, count in event.givers.items()
    }
    dropped = [
        {"peer": event.peer, "reason": event.reason, "fault": event.fault}
        for event in events
        if isinstance(event, DonorDropped)
    ]
    total = sum(entry.size_bytes for entry in local.manifest.weights)
    return {
        "seconds": seconds, "memory": more, "givers": givers, "dropped": dropped, "killed": killed, "total": total,
    }  # fmt: skip


class Peer:
    """A child of this benchmark."""

    def __init__(self, name: str, folder: Path, arguments: argparse.Namespace, invite: str | None, *more: str) -> None:
        self.name, self._netns = name, arguments.netns
        command = [*self._inside(), sys.executable, __file__, "--name", name, "--home", str(folder / name)]
        command += ["--host", self._address(), *([] if invite is None else ["--invite", invite]), *more]
        self.process = subprocess.Popen(  # noqa: S603  our own command
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _inside(self) -> list[str]:
        return [] if self._netns is None else ["ip", "netns", "exec", f"{self._netns}{self.name}"]

    def _address(self) -> str:
        if self._netns is None:
            return "127.0.0.1"
        shown = subprocess.run(  # noqa: S603
            [*self._inside(), "ip", "-j", "-4", "addr", "show", "wan0"], capture_output=True, text=True, check=True
        )
        return str(json.loads(shown.stdout)[0]["addr_info"][0]["local"])

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended")
        return dict(json.loads(line))

    def tell(self, **facts: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(facts) + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def cut(self, up: bool) -> None:
        state = "up" if up else "down"
        subprocess.run([*self._inside(), "ip", "link", "set", "wan0", state], check=True)  # noqa: S603

    def stop(self) -> None:
        if self.process.poll() is None and self.process.stdin is not None:
            self.process.stdin.close()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()


class Bench:
    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self._folder, self._arguments = folder, arguments
        self._rate = str(UPLINK_BYTE_S if arguments.netns is None else 1e9)
        self.peers: dict[str, Peer] = {}
        self.ids: dict[str, str] = {}
        self._invites: list[str] = []
        self._model = ""

    def start(self, name: str, *, spoiled: bool = False) -> None:
        source, target = self._folder / "model", self._folder / f"model-{name}"
        if not target.exists():
            shutil.copytree(source, target)
        invite = self._invites.pop() if self._invites and name not in self.ids else None
        more = ["--child", "donor", "--model", str(target), "--rate", self._rate, *(["--spoil"] if spoiled else [])]
        peer = self.peers[name] = Peer(name, self._folder, self._arguments, invite, *more)
        told = peer.hear()
        self.ids[name], self._model = told["peer"], told["model"]
        self._invites = told["invites"] or self._invites

    def start_fetcher(self) -> None:
        self.peers["fetcher"] = Peer(
            "fetcher", self._folder, self._arguments, self._invites.pop(), "--child", "fetcher"
        )
        self.peers["fetcher"].hear()

    def fetch(self, donors: tuple[str, ...], victim: str | None = None, how: str = "kill") -> dict[str, Any]:
        fetcher = self.peers["fetcher"]
        peers = [self.ids[name] for name in donors]
        fetcher.tell(model=self._model, peers=peers, kill_at=KILL_AT if victim else None)
        told = fetcher.hear()
        if victim and "kill" in told:
            if how == "kill":
                self.peers[victim].kill()
            else:
                self.peers[victim].cut(up=False)
            told = fetcher.hear()
        if victim:
            if how == "kill":
                self.start(victim)
            else:
                self.peers[victim].cut(up=True)
        after = f", {victim} {how}" if victim else ""
        print(f"{len(donors)} donors{after}: {told['seconds']:.2f} s, {told['killed']}", file=sys.stderr)
        return told

    def stop(self) -> None:
        for peer in reversed(self.peers.values()):
            peer.stop()


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {"one": [], "three": [], "corrupt": [], "killed": [], "cut": []}
    with tempfile.TemporaryDirectory(prefix="shoal-weights-") as name:
        folder = Path(name)
        write_model(folder / "model", arguments.mib)
        bench = Bench(folder, arguments)
        try:
            for donor in DONORS:
                bench.start(donor)
            bench.start(CORRUPT, spoiled=True)
            bench.start_fetcher()
            for _ in range(arguments.repeats):
                runs["one"].append(bench.fetch(DONORS[1:2]))
                runs["three"].append(bench.fetch(DONORS))
                runs["corrupt"].append(bench.fetch((*DONORS, CORRUPT)))
                if arguments.netns:
                    runs["cut"].append(bench.fetch(DONORS, DONORS[1], "cut"))
                runs["killed"].append(bench.fetch(DONORS, DONORS[2]))
        finally:
            bench.stop()
        ids = dict(bench.ids)
    return judged(runs, ids)


def judged(runs: dict[str, list[dict[str, Any]]], ids: dict[str, str]) -> dict[str, Any]:
    one, three = (statistics.median(run["seconds"] for run in runs[kind]) for kind in ("one", "three"))
    total = runs["one"][0]["total"]
    rate_of_three = total / three

    def cost(run: dict[str, Any]) -> float:
        return float(run["seconds"] - run["killed"]["at_s"] - run["killed"]["missing"] / (rate_of_three * 2 / 3))

    liar = ids[CORRUPT]
    bad = [run["givers"].get(liar, 0) for run in runs["corrupt"]]
    found = [any(d["peer"] == liar and d["fault"] for d in run["dropped"]) for run in runs["corrupt"]]
    wrongly = [d for kind in runs for run in runs[kind] for d in run["dropped"] if d["fault"] and d["peer"] != liar]
    return {
        "total_bytes": total,
        "one_s": [run["seconds"] for run in runs["one"]],
        "three_s": [run["seconds"] for run in runs["three"]],
        "speedup": one / three,
        "killed_cost_s": [cost(run) for run in runs["killed"]],
        "cut_cost_s": [cost(run) for run in runs["cut"]],
        "corrupt_s": [run["seconds"] for run in runs["corrupt"]],
        "corrupt_dropped": all(found),
        "corrupt_bytes": bad,
        "wrongly_blamed": len(wrongly),
        "memory_bytes": max(run["memory"] for kind in runs for run in runs[kind]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--netns", help="prefix of network namespaces that exist")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=("donor", "fetcher"), help=argparse.SUPPRESS)
    for hidden in ("--name", "--host", "--invite"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    for hidden in ("--home", "--model"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--spoil", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        anyio.run(child, arguments, backend="asyncio", backend_options={"use_uvloop": True})
        return
    found = run(arguments)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"shoal {version('shoal')}, hivemind {version('hivemind')}")  # fmt: skip
    for name, value in found.items():
        shown = (
            ", ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in value)
            if isinstance(value, list)
            else value
        )
        print(f"{name:18} {shown}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))
    costs = [*found["killed_cost_s"], *found["cut_cost_s"]]
    good = found["speedup"] >= 2.5 and max(costs) < 2.0 and found["corrupt_dropped"] and not found["wrongly_blamed"]
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
