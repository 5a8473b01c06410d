"""Share of the time that goes into inner steps, with peers on ordinary links.

    python scripts/bench/training_utilisation.py [--peers 4] [--mbit 10] [--rtt-ms 50] [--interval 30] [--step-s 1.0]
                                                 [--rounds 3] [--strategy sparse] [--wan FILE] [--json FILE]

The parameters are those of novels-6m, encoding, exchange and daemons are the real ones, each peer in a process of its
own. An inner step is declared: it takes `--step-s` and computes nothing, as one machine cannot be several volunteers.
The links are emulated by the project's user-space WAN between network namespaces (needs root); where that is not
possible, uploads are throttled on loopback instead, without delay, and the result says so.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import anyio
import numpy as np
from round_trainer import FolderMeeting, OpenGate, fresh_key

from shoal.compression.update_codec import Values
from shoal.node.model_source import embedded_folder
from shoal.node.training.limits_rate import Throttle
from shoal.node.training.limits_transport import ThrottledTransport
from shoal.node.training.strategies.outer_loop import OuterLoop, RoundApplied, RoundLost
from shoal.node.training.strategies.settings import strategy_settings
from shoal.node.training.strategies.strategy import Strategy
from shoal.swarm.rounds.exchange import RunSpec
from shoal.swarm.rounds.meeting import Attendee
from shoal.swarm.rounds.round_exchange import RoundExchange
from shoal.swarm.transports.libp2p import Libp2pTransport
from shoal.swarm.transports.p2pd import NetworkOptions

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = f"shoal{os.getpid()}-"  # several benchmarks may run side by side
WAN = ROOT.parent / "shared" / "tools" / "wan.py"


class DeclaredParameters:
    """`outer_loop.LiveParameters` that drift as if they were trained: a little, elsewhere at each peer."""

    def __init__(self, values: Values, seed: int) -> None:
        self.values = values.copy()
        self._draw = np.random.default_rng(seed)

    def learn(self) -> None:
        self.values += self._draw.standard_normal(len(self.values), np.float32) * np.float32(1e-3)

    def read(self, start: int = 0, stop: int | None = None) -> Values:
        return self.values[start:stop].copy()

    def gradients(self, start: int = 0, stop: int | None = None) -> Values:
        return np.zeros_like(self.values[start:stop])

    def write(self, start: int, values: Values) -> None:
        self.values[start : start + len(values)] = values


def initial_parameters() -> Values:
    """Those of novels-6m, flat; bfloat16 is the upper half of float32."""
    path = embedded_folder() / "model.safetensors"
    content = path.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    halves = np.frombuffer(data, np.uint16)
    return (halves.astype(np.uint32) << 16).view(np.float32)


async def peer(chosen: argparse.Namespace) -> None:
    """One volunteer; prints a JSON line for each round."""
    settings = strategy_settings(chosen.strategy)
    settings = strategy_settings(chosen.strategy, interval=chosen.interval) if settings.interval > 1 else settings
    values = initial_parameters()
    spec = RunSpec(
        "bench", "m" * 64, "d" * 64, settings.canonical(), (len(values),), settings.preset, quorum=chosen.peers,
        grace_s=30.0,
    )  # fmt: skip
    parameters = DeclaredParameters(values, chosen.peer)
    transport = await Libp2pTransport.start(fresh_key(), NetworkOptions(host=chosen.host, nat=False))
    rounds: list[dict[str, Any]] = []

    def told(event: RoundApplied | RoundLost) -> None:
        rounds.append({"applied": isinstance(event, RoundApplied), "waited_s": event.waited_s})

    try:
        throttle = Throttle(chosen.mbit * 1e6 if chosen.throttled else None)
        link = ThrottledTransport(transport, throttle)
        meeting = FolderMeeting(Path(chosen.folder), Attendee(transport.me, transport.addresses))
        async with anyio.create_task_group() as tasks, RoundExchange(link, OpenGate(), meeting, spec) as exchange:
            loop = OuterLoop(Strategy(settings, spec, values), exchange, parameters, tasks, told)
            await loop.arrive()
            rounds.clear()
            began, sent = anyio.current_time(), link.traffic.sent_bytes
            for _ in range(chosen.rounds * settings.interval):
                step_began = anyio.current_time()
                if loop.strategy.step % settings.interval == 0:
                    parameters.learn()
                await anyio.sleep(max(0.0, chosen.step_s - (anyio.current_time() - step_began)))
                await loop.after_step(1000)
            took = anyio.current_time() - began
            sent = link.traffic.sent_bytes - sent
            await anyio.sleep(3.0)  # others may still need our shards
            tasks.cancel_scope.cancel()
    finally:
        await transport.stop()
    steps_s = chosen.rounds * settings.interval * chosen.step_s
    print(json.dumps({"rounds": rounds, "took_s": took, "steps_s": steps_s, "sent": sent, "values": len(values)}))


def started(chosen: argparse.Namespace, folder: str, emulated: bool) -> list[subprocess.Popen[str]]:
    processes = []
    for index in range(chosen.peers):
        host = f"10.77.0.{index + 1}" if emulated else "127.0.0.1"
        command = [sys.executable, str(Path(__file__).resolve()), "--peer", str(index), "--host", host]
        command += ["--folder", folder, "--peers", str(chosen.peers), "--mbit", str(chosen.mbit)]
        command += ["--interval", str(chosen.interval), "--step-s", str(chosen.step_s), "--rounds", str(chosen.rounds)]
        command += ["--strategy", chosen.strategy, *([] if emulated else ["--throttled"])]
        if emulated:
            command = ["ip", "netns", "exec", f"{NAMESPACE}{index + 1}", *command]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))  # noqa: S603  our own
    return processes


def emulation(chosen: argparse.Namespace, folder: str) -> subprocess.Popen[str] | None:
    """The running WAN; None where it cannot run."""
    link = {"up": chosen.mbit, "down": chosen.mbit, "delay": chosen.rtt_ms / 4}
    nodes = {f"{NAMESPACE}{i + 1}": {"ip": f"10.77.0.{i + 1}", **link} for i in range(chosen.peers)}
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists() or not chosen.wan.exists():
        return None
    config = Path(folder) / "wan.conf"
    config.write_text(json.dumps({"nodes": nodes}))
    command = [sys.executable, str(chosen.wan), str(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603  the user names it
    assert process.stdout is not None
    if "READY" in process.stdout.readline():
        return process
    process.wait(10)
    return None


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        wan = emulation(chosen, folder)
        processes = started(chosen, folder, wan is not None)
        try:
            patience_s = 60 + chosen.rounds * (chosen.interval * chosen.step_s + 60)
            told = [json.loads(process.communicate(timeout=patience_s)[0]) for process in processes]
        finally:
            for process in processes:
                process.kill()
            if wan is not None:
                wan.send_signal(signal.SIGTERM)
                wan.communicate(timeout=20)
    waited = [r["waited_s"] for peer_ in told for r in peer_["rounds"]]
    shares = [peer_["steps_s"] / peer_["took_s"] for peer_ in told]
    sent = [8 * peer_["sent"] / peer_["values"] / chosen.rounds for peer_ in told]
    return {
        "link": f"{chosen.mbit:g} Mbit/s, " + (f"{chosen.rtt_ms:g} ms round trip, emulated WAN" if wan else "no delay: "
                "uploads throttled on loopback"),
        "peers": chosen.peers, "strategy": chosen.strategy, "interval": chosen.interval, "step_s": chosen.step_s,
        "parameters": told[0]["values"], "rounds": chosen.rounds,
        "lost_rounds": sum(not r["applied"] for peer_ in told for r in peer_["rounds"]),
        "waited_s": {"median": statistics.median(waited), "largest": max(waited)},
        "sent_bits_a_parameter_and_round": statistics.mean(sent),
        "utilisation": {"mean": statistics.mean(shares), "smallest": min(shares)},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--mbit", type=float, default=10.0)
    parser.add_argument("--rtt-ms", type=float, default=50.0)
    parser.add_argument("--interval", type=int, default=30)
    parser.add_argument("--step-s", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--strategy", default="sparse")
    parser.add_argument("--wan", type=Path, default=WAN)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peer", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--host", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--throttled", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peer is not None:
        anyio.run(peer, chosen, backend="asyncio", backend_options={"use_uvloop": True})
        return
    found = measure(chosen)
    machine = f"{os.cpu_count()} x {platform.processor() or platform.machine()}"
    result = {"machine": machine, "python": platform.python_version(), "hivemind": version("hivemind"), **found}
    print(json.dumps(result, indent=2))
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
