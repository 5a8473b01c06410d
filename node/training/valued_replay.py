"""A run's rounds again, with the offers of some peers alone: where the parameters would have gone in that round.

Each round starts from the state that the run was in, as offers only mean something there; replayed from the start of
the run without the others, they would be steps from somewhere else (a peer that offered the opposite of what it had
learned then looked like the best of all).

source: Wang et al., A Principled Approach to Data Valuation for Federated Learning, arXiv:2009.06192
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from shoal.compression.update_codec import Values
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.exchange import RunSpec
from shoal.swarm.rounds.robust import robust_mean

from .optimizers.outer import OuterSettings
from .strategies.outer_parameters import OuterParameters
from .valued_rounds import ValuedRound


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """One round of the run. before: (N,); rate: of plain descent along the mean of the offers"""

    before: Values
    start: int  # of the round's fragment in the parameters
    rate: float
    round: ValuedRound
    robust: str

    def after(self, group: Collection[PeerId]) -> Values:
        """(N,) had only this group taken part."""
        chosen = [offer for peer, offer in self.round.offers.items() if peer in group]
        if not chosen:
            return self.before
        return self.before + self._placed(robust_mean(self.robust, chosen))

    def moves(self) -> dict[PeerId, Values]:
        """(N,) each peer's part of the step that all of them took together, by its tokens."""
        total = sum(offer.tokens for offer in self.round.offers.values())
        return {
            peer: self._placed(np.float32(offer.tokens / total) * offer.values)
            for peer, offer in self.round.offers.items()
        }

    def _placed(self, update: Values) -> Values:
        whole = np.zeros_like(self.before)
        whole[self.start : self.start + len(update)] = np.float32(-self.rate) * update
        return whole


@dataclass(frozen=True, slots=True, eq=False)
class RunReplay:
    """initial: (N,) before the first of the rounds; undecayed: as the run's"""

    settings: OuterSettings
    spec: RunSpec
    initial: Values
    undecayed: Sequence[tuple[int, int]]
    rounds: Sequence[ValuedRound]

    def points(self, most: int) -> list[Point]:
        """Of the rounds whose offers are all there and in which somebody had learned something, spread evenly."""
        told = [i for i, each in enumerate(self.rounds) if any(offer.values.any() for offer in each.offers.values())]
        chosen = {told[int(i)] for i in np.linspace(0, len(told) - 1, min(most, len(told)))}
        outer = OuterParameters(self.settings, self.spec, self.initial, self.undecayed)
        found = []
        for index, each in enumerate(self.rounds):
            if index in chosen:
                factor = self.settings.schedule.factor(outer.optimizer.updates[each.fragment])
                start, _ = outer.bounds[each.fragment]
                rate = self.settings.learning_rate * factor
                found.append(Point(outer.values.copy(), start, rate, each, self.spec.robust))
            outer.optimizer.step(outer.values, each.fragment, each.aggregate)
        return found
