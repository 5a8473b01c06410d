"""One peer of the rounds' benchmarks: real updates' bytes, no model; and the counters of real sockets."""

import hashlib
import json
import re
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import numpy as np
from anyio.lowlevel import checkpoint
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shoal.swarm.identifiers import PeerId, SwarmId
from shoal.swarm.rounds.events import RoundOptions
from shoal.swarm.rounds.exchange import Offer, RunSpec, seed_of
from shoal.swarm.rounds.meeting import Attendee
from shoal.swarm.rounds.round_exchange import RoundExchange
from shoal.swarm.transports.libp2p import Libp2pTransport
from shoal.swarm.transports.p2pd import NetworkOptions


class OpenGate:
    swarm = SwarmId("5a" * 32)
    certificate = b"c" * 320  # as long as a membership certificate

    def admit(self, peer: PeerId, certificate: bytes) -> None:
        return


class FolderMeeting:
    """Who is there, as files in one folder: the directory's own traffic is not what is measured here."""

    def __init__(self, folder: Path, attendee: Attendee) -> None:
        self._folder = folder
        self._attendee = attendee

    async def announce(self) -> None:
        part = self._folder / f".{self._attendee.peer}"
        part.write_text(json.dumps([self._attendee.peer, self._attendee.addresses]))
        part.rename(self._folder / f"{self._attendee.peer}.json")

    async def peers(self) -> Sequence[Attendee]:
        found = [json.loads(path.read_text()) for path in sorted(self._folder.glob("*.json"))]
        return [Attendee(PeerId(peer), tuple(addresses)) for peer, addresses in found]


def bench_spec(values: int, shards: int, preset: str, peers: int) -> RunSpec:
    return RunSpec("bench", "m" * 64, "d" * 64, "s", (values,), preset, shards, quorum=peers, grace_s=30.0)


def fresh_key() -> bytes:
    key = Ed25519PrivateKey.generate()
    return bytes.fromhex("08011240") + key.private_bytes_raw() + key.public_key().public_bytes_raw()


class BenchTrainer:
    """parameters move by the aggregates alone; waited_s: what each exchange took, from the offer to the outcome"""

    def __init__(self, transport: Libp2pTransport, exchange: RoundExchange, spec: RunSpec, seed: int) -> None:
        self.transport, self.exchange, self.spec = transport, exchange, spec
        self.parameters = np.zeros(spec.fragments[0], np.float32)
        self.waited_s: list[float] = []
        self.contributors: list[int] = []
        self.round = 0
        self._own = np.random.default_rng(seed)

    def offer(self) -> Offer:
        count = self.spec.fragments[0]
        common = np.random.default_rng(1000 + self.round).standard_normal(count, np.float32)
        update = common + self._own.standard_normal(count, np.float32)
        codec, bounds = self.spec.codec(), self.spec.sharding(0).bounds()
        payloads = [codec.encode(update[a:b], seed_of(self.round, 0, shard)) for shard, (a, b) in enumerate(bounds)]
        state = hashlib.sha256(self.parameters.tobytes()).digest()
        return Offer(self.round, 0, tuple(payloads), 1000, state)

    async def train(self, rounds: int, ready: Callable[[], Awaitable[None]] = checkpoint) -> None:
        """ready: awaited when the update is encoded, before it is offered"""
        codec, bounds = self.spec.codec(), self.spec.sharding(0).bounds()
        for _ in range(rounds):
            offer = await anyio.to_thread.run_sync(self.offer)
            await ready()
            began = time.perf_counter()
            outcome = await self.exchange.exchange(offer)
            self.waited_s.append(time.perf_counter() - began)
            self.contributors.append(len(outcome.contributors))
            for shard, (a, b) in enumerate(bounds):
                seed = seed_of(outcome.round, 0, shard)
                self.parameters[a:b] += codec.decode(outcome.aggregates[shard], b - a, seed)
            self.round += 1


@asynccontextmanager
async def bench_trainer(host: str, folder: Path, spec: RunSpec, seed: int) -> AsyncIterator[BenchTrainer]:
    transport = await Libp2pTransport.start(fresh_key(), NetworkOptions(host=host, nat=False))
    try:
        meeting = FolderMeeting(folder, Attendee(transport.me, transport.addresses))
        async with RoundExchange(transport, OpenGate(), meeting, spec, options=RoundOptions()) as exchange:
            yield BenchTrainer(transport, exchange, spec, seed)
    finally:
        with anyio.CancelScope(shield=True):
            await transport.stop()


def interface_bytes(name: str) -> tuple[int, int]:
    """Sent and received by a network interface of this namespace, headers and all."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith(name + ":"))
    fields = line.split(":")[1].split()
    return int(fields[8]), int(fields[0])


def socket_bytes(pids: Sequence[int]) -> dict[int, tuple[int, int]]:
    """What the kernel counts on each process's TCP sockets: encrypted stream bytes, without TCP and IP headers."""
    listing = subprocess.run(["ss", "-tinpHO"], capture_output=True, text=True, check=True).stdout  # noqa: S607
    totals = dict.fromkeys(pids, (0, 0))
    for line in listing.splitlines():
        owner = re.search(r"pid=(\d+)", line)
        if owner is None or int(owner[1]) not in totals:
            continue
        sent, received = (re.search(rf"\b{word}:(\d+)", line) for word in ("bytes_acked", "bytes_received"))
        before = totals[int(owner[1])]
        totals[int(owner[1])] = (
            before[0] + (int(sent[1]) if sent else 0),
            before[1] + (int(received[1]) if received else 0),
        )
    return totals
