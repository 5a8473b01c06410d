"""A trainer's outer state as something that can catch up with its group: `swarm.rounds.catch_up.Replica`."""

from pathlib import Path

from shoal.node.training.parameter_layout import ParameterLayout
from shoal.node.training.strategies.strategy import Strategy
from shoal.swarm.block_transfer_listing import BundleId, Listing
from shoal.swarm.errors import MalformedMessage
from shoal.swarm.rounds.catch_up_messages import CheckpointOffer
from shoal.swarm.rounds.exchange import Outcome

from .reader import read_shared
from .store import CheckpointStore


class StrategyReplica:
    """The caller sets the model's parameters to the outer ones when the catch-up is done."""

    def __init__(self, strategy: Strategy, run: str, layout: ParameterLayout, store: CheckpointStore) -> None:
        self._strategy, self._run, self._layout, self._store = strategy, run, layout, store

    @property
    def state(self) -> bytes:
        return self._strategy.outer.hash()

    def load(self, folder: Path, listing: Listing) -> None:
        """raises: MalformedMessage (of another run, or not what its header says), ValueError, OutOfMemory

        Nothing has changed then, and no such checkpoint is kept.
        """
        snapshot = read_shared(folder, listing)
        if snapshot.run != self._run:
            raise MalformedMessage("a checkpoint of another run")
        shapes = [(name, tuple(array.shape)) for name, array in snapshot.parameters.items()]
        if shapes != [(place.name, place.shape) for place in self._layout.places]:
            raise MalformedMessage("a checkpoint of another model")
        before = self._strategy.outer.state()
        self._strategy.outer.restore(snapshot.outer_state)
        if self.state != snapshot.state:
            self._strategy.outer.restore(before)
            raise MalformedMessage("it holds another state than it says")
        self._strategy.rejoin(snapshot.round + 1)
        self._store.adopt(folder, listing)

    def apply(self, outcome: Outcome) -> None:
        """raises: MalformedPayload, ValueError"""
        self._strategy.replay(outcome)


def checkpoint_offers(store: CheckpointStore, run: str) -> tuple[CheckpointOffer, ...]:
    """What a peer of this run can give to joiners, newest first."""
    return tuple(
        CheckpointOffer(BundleId(bundle), about.round, about.state, total_bytes)
        for bundle, about, total_bytes in store.offers()
        if about.run == run
    )
