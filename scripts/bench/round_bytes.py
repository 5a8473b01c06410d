"""Bits per parameter, peer and round that the outer round puts on real sockets, up and down.

    python scripts/bench/round_bytes.py [--values 8388608] [--peers 2 4 8] [--rounds 6] [--preset sparse] [--json FILE]

All peers on this machine, each with a p2pd of its own. `payload` and `overhead` are counted by the shell; `sockets` by
the kernel on the daemons' TCP connections: encryption, multiplexing and all. Audits of the default share are included;
the first round, in which streams are opened, is not. Mean and largest of all peers.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import anyio
import psutil
from round_trainer import BenchTrainer, bench_spec, bench_trainer, socket_bytes

SETTLE_S = 3.0  # audits of the last round


def daemon_pid(trainer: BenchTrainer) -> int:
    guard = psutil.Process(trainer.transport.daemon_pid)
    return next(child.pid for child in guard.children() if child.name() == "p2pd")


def counted(trainers: list[BenchTrainer]) -> list[dict[str, int]]:
    pids = [daemon_pid(trainer) for trainer in trainers]
    sockets = socket_bytes(pids)
    return [
        {
            "payload_up": t.exchange.traffic.sent_payload_bytes,
            "payload_down": t.exchange.traffic.received_payload_bytes,
            "all_up": t.exchange.traffic.sent_bytes,
            "all_down": t.exchange.traffic.received_bytes,
            "sockets_up": sockets[pid][0],
            "sockets_down": sockets[pid][1],
        }
        for t, pid in zip(trainers, pids, strict=True)
    ]


async def measure(peers: int, chosen: argparse.Namespace) -> dict[str, Any]:
    spec = bench_spec(chosen.values, chosen.shards, chosen.preset, peers)
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            trainers = [
                await stack.enter_async_context(bench_trainer("127.0.0.1", Path(folder), spec, seed))
                for seed in range(peers)
            ]

            async def all_train(rounds: int) -> None:
                async with anyio.create_task_group() as tasks:
                    for trainer in trainers:
                        tasks.start_soon(trainer.train, rounds)

            await all_train(1)
            await anyio.sleep(SETTLE_S)
            before = counted(trainers)
            await all_train(chosen.rounds)
            await anyio.sleep(SETTLE_S)
            after = counted(trainers)
            equal = len({trainer.parameters.tobytes() for trainer in trainers}) == 1
            waited = [s for trainer in trainers for s in trainer.waited_s[1:]]
            full = all(count == peers for trainer in trainers for count in trainer.contributors)
    bits = {
        key: [8 * (b[key] - a[key]) / chosen.values / chosen.rounds for a, b in zip(before, after, strict=True)]
        for key in before[0]
    }
    return {
        "peers": peers,
        "equal": equal,
        "all_contributed": full,
        "exchange_s": statistics.median(waited),
        **{f"{key}_mean": statistics.mean(values) for key, values in bits.items()},
        **{f"{key}_most": max(values) for key, values in bits.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=1 << 23, help="parameters")
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--peers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--preset", default="sparse")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    machine |= {"shoal": version("shoal"), "hivemind": version("hivemind")}
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"{chosen.values:,} parameters in {chosen.shards} shards, {chosen.preset}, {chosen.rounds} rounds")
    print(f"{'bits per parameter':>18} {'payload':>15} {'with overhead':>15} {'on sockets':>23}")
    pairs = f"{'up':>7} {'down':>7} {'up':>7} {'down':>7}"
    print(f"{'peers':>6} {'s a round':>11} {pairs} {'up, most':>15} {'down, most':>15}")
    rows = []
    for peers in chosen.peers:
        row = anyio.run(measure, peers, chosen)
        rows.append(row)
        print(
            f"{peers:6} {row['exchange_s']:11.2f} {row['payload_up_mean']:7.3f} {row['payload_down_mean']:7.3f}"
            f" {row['all_up_mean']:7.3f} {row['all_down_mean']:7.3f}"
            f" {row['sockets_up_mean']:7.3f} {row['sockets_up_most']:7.3f}"
            f" {row['sockets_down_mean']:7.3f} {row['sockets_down_most']:7.3f}"
            f"{'' if row['equal'] and row['all_contributed'] else '  NOT EQUAL or not all took part'}",
            flush=True,
        )
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
    return int(not all(row["equal"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
