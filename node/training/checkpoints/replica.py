"""Outer parameters without a trainer, moved by others' checkpoints and outcomes: for who follows or audits a run."""

from pathlib import Path

from shoal.compression.update_codec import Values
from shoal.node.training.parameter_layout import ParameterLayout
from shoal.node.training.strategies.outer_parameters import OuterParameters
from shoal.swarm.errors import MalformedMessage
from shoal.swarm.rounds.exchange import Outcome
from shoal.swarm.transfer.block_transfer_listing import Listing

from .reader import read_shared
from .snapshot import Snapshot
from .store import CheckpointStore


class OuterReplica:
    """`swarm.rounds.catch_up.Replica`. round: of the last outcome, -1 before the first"""

    def __init__(self, outer: OuterParameters, run: str, layout: ParameterLayout, store: CheckpointStore) -> None:
        self.outer, self.round = outer, -1
        self._run, self._layout, self._store = run, layout, store

    @property
    def state(self) -> bytes:
        return self.outer.hash()

    def tensors(self) -> dict[str, Values]:
        """Views of the parameters by name: `node.following.Followed`."""
        return self._layout.tensors(self.outer.values)

    def load(self, folder: Path, listing: Listing) -> None:
        """raises: MalformedMessage (of another run, or not what its header says), ValueError, OutOfMemory

        Nothing has changed then, and no such checkpoint is kept.
        """
        snapshot = read_shared(folder, listing)
        self.take(snapshot)
        self._store.adopt(folder, listing)

    def take(self, snapshot: Snapshot) -> None:
        """raises: MalformedMessage, ValueError; nothing has changed then"""
        if snapshot.run != self._run:
            raise MalformedMessage("a checkpoint of another run")
        shapes = [(name, tuple(array.shape)) for name, array in snapshot.parameters.items()]
        if shapes != [(place.name, place.shape) for place in self._layout.places]:
            raise MalformedMessage("a checkpoint of another model")
        before = self.outer.state()
        self.outer.restore(snapshot.outer_state)
        if self.state != snapshot.state:
            self.outer.restore(before)
            raise MalformedMessage("it holds another state than it says")
        self.round = snapshot.round

    def apply(self, outcome: Outcome) -> None:
        """raises: MalformedPayload, ValueError; nothing has changed then"""
        self.outer.apply(outcome)
        self.round = outcome.round
