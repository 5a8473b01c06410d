"""The outer state of a worker as others move it: their checkpoints, and outcomes that it has missed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shoal.swarm.rounds.exchange import Outcome
from shoal.swarm.transfer.block_transfer_listing import Listing

from .checkpoints.reader import read_shared
from .checkpoints.snapshot import Snapshot
from .checkpoints.store import CheckpointStore
from .data.assignment import Roster
from .worker import WorkerParts
from .worker_progress import unpacked

ROSTER = "outer.roster"  # the data order's part of the state that all replicas share


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """before, after: the outer state's hash; roster: after it"""

    outcome: Outcome
    before: bytes
    after: bytes
    roster: Roster


class WorkerReplica:
    """`catch_up.Replica`; called on a worker thread while no inner step is taken."""

    def __init__(self, parts: WorkerParts, store: CheckpointStore, run: str) -> None:
        self._parts, self._store, self._run = parts, store, run
        self.replayed: list[Replayed] = []  # since it was last emptied

    @property
    def state(self) -> bytes:
        return self._parts.strategy.outer.hash()

    def load(self, folder: Path, listing: Listing) -> None:
        """raises: MalformedMessage, ValueError (of another run, not what it says), OutOfMemory; it is not kept then"""
        self.take(read_shared(folder, listing))
        self._store.adopt(folder, listing)

    def take(self, snapshot: Snapshot) -> None:
        """The shared part of a checkpoint. raises: ValueError when it is of another run; nothing has changed then"""
        if snapshot.run != self._run:
            raise ValueError("it is of another run: model, data or settings were others")
        roster = snapshot.strategy.get(ROSTER, 0)
        found = unpacked(np.asarray(roster, np.uint8))
        outer = self._parts.strategy.outer
        before = outer.state()
        outer.restore(snapshot.outer_state)
        if outer.hash() != snapshot.state:
            outer.restore(before)
            raise ValueError("it holds another state than it says")
        self._parts.strategy.rejoin(snapshot.round + 1)
        self._parts.progress.adopt(found)
        self.replayed.clear()

    def apply(self, outcome: Outcome) -> None:
        """raises: ValueError, MalformedPayload"""
        mine = any(peer == self._parts.me for peer, _ in outcome.contributors)
        before = self.state
        self._parts.strategy.replay(outcome, mine)
        self._parts.progress.after(outcome)
        self.replayed.append(Replayed(outcome, before, self.state, self._parts.progress.roster))
