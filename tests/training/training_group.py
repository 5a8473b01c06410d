"""A group that trains without a network among its peers, and gives to joiners over one: real outer parameters, logs,
checkpoints and donors; the rounds' updates are drawn from a seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import numpy as np
from swarm.bundles import AtOnce, member, read_at_once

from shoal.node.training.checkpoints.replica import OuterReplica
from shoal.node.training.checkpoints.retention import Retention
from shoal.node.training.checkpoints.snapshot import Snapshot
from shoal.node.training.checkpoints.store import CheckpointStore
from shoal.node.training.optimizers.outer import OuterSettings
from shoal.node.training.parameter_layout import ParameterLayout
from shoal.node.training.strategies.outer_parameters import OuterParameters
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.rounds.catch_up import CatchUp
from shoal.swarm.rounds.catch_up_fetch import CatchUpLimits
from shoal.swarm.rounds.catch_up_messages import CheckpointOffer, serve_catch_up
from shoal.swarm.rounds.delta_log import DeltaLog, LogLimits
from shoal.swarm.rounds.exchange import Outcome, RunSpec, seed_of
from shoal.swarm.transfer.block_transfer_donor import BlockDonor, OnThread
from shoal.swarm.transfer.block_transfer_fetch import Threads
from shoal.swarm.transport import Transport

LAYOUT = ParameterLayout.of(
    {"embed.weight": (400, 64), **{f"layers.{i}.up.weight": (128, 128) for i in range(4)}, "norm.weight": (64,)}
)
SPEC = RunSpec("test", "model", "data", "diloco", (LAYOUT.count,), "fp16", shards=3)
RUN = "run"


def new_outer() -> OuterParameters:
    initial = np.random.default_rng(0).normal(size=LAYOUT.count).astype(np.float32)
    return OuterParameters(OuterSettings(), SPEC, initial)


def drawn_outcome(round_: int, scale: float = 0.01) -> Outcome:
    draw = np.random.default_rng(round_)
    payloads = [
        SPEC.codec().encode(draw.normal(scale=scale, size=stop - start).astype(np.float32), seed_of(round_, 0, shard))
        for shard, (start, stop) in enumerate(SPEC.sharding(0).bounds())
    ]
    return Outcome(round_, 0, tuple(payloads), ((PeerId("alice"), 100), (PeerId("bob"), 90)))


@dataclass
class Peer:
    """One peer on disk: a log, checkpoints, and what it holds in memory."""

    folder: Path
    calls: MemberCalls
    limits: LogLimits = field(default_factory=LogLimits)
    rate_byte_s: float = 1e9
    thread: OnThread = read_at_once

    def __post_init__(self) -> None:
        self.store = CheckpointStore(self.folder / "checkpoints", Retention(last=2))
        self.log = DeltaLog(self.folder / "rounds", RUN, self.limits)
        self.replica = OuterReplica(new_outer(), RUN, LAYOUT, self.store)
        self.donor = BlockDonor((self.store, self.log), self.rate_byte_s, thread=self.thread)

    async def serve(self) -> None:
        await self.donor.serve(self.calls)
        await serve_catch_up(self.calls, RUN, self.standing, self.offers, self.log)

    def standing(self) -> tuple[bytes, int]:
        return self.replica.state, self.replica.round + 1

    def offers(self) -> list[CheckpointOffer]:
        return [CheckpointOffer(bundle, about.round, about.state, size) for bundle, about, size in self.store.offers()]

    def apply(self, outcome: Outcome) -> None:
        before = self.replica.state
        self.replica.apply(outcome)
        self.log.append(outcome, before, self.replica.state)

    def save(self) -> None:
        state = {f"outer.{name}": value for name, value in self.replica.outer.state().items()}
        self.store.save(Snapshot.of(RUN, self.replica.round, self.replica.state, LAYOUT, state))

    def catch_up(self, threads: Threads | None = None) -> CatchUp:
        return CatchUp(
            self.calls,
            RUN,
            self.replica,
            self.log,
            self.folder / "incoming",
            CatchUpLimits.of(SPEC),
            threads=threads or AtOnce(),
        )


class Group:
    """Peers that apply the same outcomes; every `every`th round they save a checkpoint."""

    def __init__(self, folder: Path, every: int = 5) -> None:
        self._folder, self._every = folder, every
        self.peers: dict[PeerId, Peer] = {}
        self.round = 0
        self.lost: set[int] = set()

    async def add(self, transport: Transport, limits: LogLimits | None = None) -> Peer:
        """A founding member: it has seen every round."""
        peer = Peer(self._folder / transport.me, member(transport), limits or LogLimits())
        await peer.serve()
        self.peers[transport.me] = peer
        return peer

    def advance(self, rounds: int = 1) -> None:
        for _ in range(rounds):
            outcome = drawn_outcome(self.round)
            for peer in self.peers.values():
                if self.round in self.lost:
                    continue
                peer.apply(outcome)
                if self.round % self._every == 0:
                    peer.save()
            self.round += 1

    async def advance_every(self, seconds: float) -> None:
        while True:
            await anyio.sleep(seconds)
            self.advance()

    async def names(self) -> Sequence[PeerId]:
        return list(self.peers)

    @property
    def state(self) -> bytes:
        states = {peer.replica.state for peer in self.peers.values()}
        assert len(states) == 1
        return states.pop()
