"""The outer round against hivemind's own averager: bytes and time for the same tensors over an emulated network.

    python scripts/bench/round_against_hivemind.py --wan ../shared/tools/wan.py [--values 16777216] [--peers 4]
        [--mbit 100] [--delay-ms 5] [--rounds 3] [--json FILE]

Each peer is a process in a network namespace of its own (needs root and /dev/net/tun); bytes are what its interface
carried, TCP and IP headers included. hivemind averages the values as float16 (`DecentralizedAverager`); shoal exchanges
a `sparse` update of as many values. Time begins when all peers have their update ready and ends with the result in the
slowest peer; hivemind's matchmaking is left out of it (shown apart). The first round of both is a warm-up.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

INTERFACE = "wan0"
SETTLE_S = 2.0


def ours(chosen: argparse.Namespace) -> list[dict[str, float]]:
    """One shoal peer, in its namespace."""
    import anyio
    from round_trainer import bench_spec, bench_trainer, interface_bytes

    rows = []

    async def run() -> None:
        spec = bench_spec(chosen.values, 16, "sparse", chosen.peers)
        async with bench_trainer(chosen.host, Path(chosen.folder), spec, chosen.number) as trainer:
            for round_ in range(chosen.rounds + 1):

                async def all_ready(round_: int = round_) -> None:
                    await anyio.to_thread.run_sync(wait_for_all, Path(chosen.folder), f"round{round_}", chosen)

                before = interface_bytes(INTERFACE)
                await trainer.train(1, all_ready)
                await anyio.sleep(SETTLE_S)  # the audit of this round is counted with it
                after = interface_bytes(INTERFACE)
                rows.append({"s": trainer.waited_s[-1], "up": after[0] - before[0], "down": after[1] - before[1]})

    anyio.run(run)
    return rows[1:]


def theirs(chosen: argparse.Namespace) -> list[dict[str, float]]:
    """One hivemind peer, in its namespace."""
    import hivemind
    import torch
    from hivemind.averaging.averager import DecentralizedAverager
    from hivemind.compression import Float16Compression
    from round_trainer import interface_bytes

    torch.set_num_threads(1)
    folder = Path(chosen.folder)
    first = folder / "first"
    while chosen.number and not first.exists():
        time.sleep(0.1)
    known = json.loads(first.read_text()) if chosen.number else []
    dht = hivemind.DHT(host_maddrs=[f"/ip4/{chosen.host}/tcp/0"], initial_peers=known, start=True)
    if not chosen.number:
        part = folder / "part"
        part.write_text(json.dumps([str(address) for address in dht.get_visible_maddrs()]))
        part.rename(first)
    tensor = torch.randn(chosen.values, generator=torch.Generator().manual_seed(chosen.number))
    rows = []
    averager = DecentralizedAverager(
        [tensor],
        dht,
        prefix="bench",
        target_group_size=chosen.peers,
        min_group_size=chosen.peers,
        initial_group_bits="",
        compression=Float16Compression(),
        min_matchmaking_time=3.0,
        request_timeout=2.0,
        allreduce_timeout=120.0,
        start=True,
    )
    try:
        for round_ in range(chosen.rounds + 1):
            wait_for_all(folder, f"round{round_}", chosen)
            before = interface_bytes(INTERFACE)
            control = averager.step(wait=False, require_trigger=True, timeout=180.0)
            began = time.perf_counter()
            while control.stage.name == "LOOKING_FOR_GROUP":
                time.sleep(0.02)
            matched = time.perf_counter()
            control.allow_allreduce()
            group = control.result(180.0)
            done = time.perf_counter()
            time.sleep(SETTLE_S)
            after = interface_bytes(INTERFACE)
            row = {"s": done - matched, "matchmaking_s": matched - began, "group": len(group or ())}
            rows.append({**row, "up": after[0] - before[0], "down": after[1] - before[1]})
    finally:
        averager.shutdown()
        dht.shutdown()
    return rows[1:]


def wait_for_all(folder: Path, name: str, chosen: argparse.Namespace) -> None:
    (folder / f"{name}.{chosen.number}").touch()
    while len(list(folder.glob(f"{name}.*"))) < chosen.peers:
        time.sleep(0.02)


def compare(chosen: argparse.Namespace) -> int:
    names = [f"shoalbench{number}" for number in range(chosen.peers)]
    hosts = [f"10.79.0.{number + 1}" for number in range(chosen.peers)]
    link = {"up": chosen.mbit, "down": chosen.mbit, "delay": chosen.delay_ms}
    nodes = {name: {"ip": host, **link} for name, host in zip(names, hosts, strict=True)}
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "network.json"
        plan.write_text(json.dumps({"mtu": 1500, "queue_bytes": 4 << 20, "nodes": nodes}))
        command = [sys.executable, str(chosen.wan), str(plan)]
        wan = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603  the user's own emulator
        try:
            assert wan.stdout is not None
            if wan.stdout.readline().strip() != "READY":
                print("the network could not be emulated here: nothing was measured", file=sys.stderr)
                return 1
            results = {mode: run_all(mode, names, hosts, chosen) for mode in ("theirs", "ours")}
        finally:
            wan.send_signal(signal.SIGTERM)
            wan.wait(20)
    return show(results, chosen)


def run_all(mode: str, names: list[str], hosts: list[str], chosen: argparse.Namespace) -> list[list[dict[str, float]]]:
    """Every peer of one kind, in its namespace; what each of them measured."""
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for number, (name, host) in enumerate(zip(names, hosts, strict=True)):
            command = ["ip", "netns", "exec", name, sys.executable, __file__, "--mode", mode, "--host", host]
            command += ["--folder", folder, "--number", str(number), "--values", str(chosen.values)]
            command += ["--peers", str(chosen.peers), "--rounds", str(chosen.rounds)]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))  # noqa: S603  this script
        try:
            outputs = [process.communicate(timeout=chosen.timeout)[0] for process in started]
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()
                    process.wait()
    return [json.loads(output.strip().splitlines()[-1]) for output in outputs]


def show(results: dict[str, list[list[dict[str, float]]]], chosen: argparse.Namespace) -> int:
    print(f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}")
    link = f"{chosen.mbit:g} Mbit/s, {4 * chosen.delay_ms:g} ms round trip"
    print(f"{chosen.values:,} values, {chosen.peers} peers, {link}, load {os.getloadavg()[0]:.1f} at the end")
    figures: dict[str, Any] = {}
    print(f"{'':28}{'MB up':>10}{'MB down':>10}{'seconds':>10}{'spread':>16}")
    for mode, label in (("theirs", "hivemind, float16"), ("ours", "shoal, sparse")):
        peers = results[mode]
        slowest = [max(peer[round_]["s"] for peer in peers) for round_ in range(chosen.rounds)]
        up = statistics.mean(row["up"] for peer in peers for row in peer) / 1e6
        down = statistics.mean(row["down"] for peer in peers for row in peer) / 1e6
        figures[mode] = {"up_mb": up, "down_mb": down, "s": statistics.median(slowest), "all_s": slowest}
        print(
            f"{label:28}{up:10.3f}{down:10.3f}{statistics.median(slowest):10.2f}{min(slowest):8.2f}..{max(slowest):.2f}"
        )
    matchmaking = statistics.median(row["matchmaking_s"] for peer in results["theirs"] for row in peer)
    theirs_, ours_ = figures["theirs"], figures["ours"]
    fewer = (theirs_["up_mb"] + theirs_["down_mb"]) / (ours_["up_mb"] + ours_["down_mb"])
    print(f"{fewer:.0f} times fewer bytes, {theirs_['s'] / ours_['s']:.1f} times less time", end=" ")
    print(f"(hivemind's matchmaking took another {matchmaking:.1f} s a round)")
    if chosen.json:
        chosen.json.write_text(json.dumps({"figures": figures, "fewer_bytes": fewer, "results": results}, indent=1))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wan", type=Path, default=Path(__file__).parents[3] / "shared/tools/wan.py")
    parser.add_argument("--values", type=int, default=1 << 24)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mbit", type=float, default=100.0)
    parser.add_argument("--delay-ms", type=float, default=5.0, help="one way from a peer to the middle")
    parser.add_argument("--timeout", type=float, default=400.0, help="seconds for all rounds of one kind")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--mode", choices=["compare", "ours", "theirs"], default="compare", help=argparse.SUPPRESS)
    parser.add_argument("--host", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, default=0, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.mode == "compare":
        if not chosen.wan.exists():
            print(f"no network emulator at {chosen.wan}: nothing was measured; name one with --wan", file=sys.stderr)
            return 1
        return compare(chosen)
    rows = ours(chosen) if chosen.mode == "ours" else theirs(chosen)
    print(json.dumps(rows), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
