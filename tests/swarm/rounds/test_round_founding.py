"""The first round among peers that start one after another and hear of one another late: several take themselves for
the leader at once, and one of them has to win.
"""

import random

import msgspec
import pytest

from shoal.swarm.rounds.events import Listed, RoundOptions
from shoal.swarm.rounds.simulated_trainer import SimulatedTrainer
from shoal.swarm.rounds.simulation import RoundSimulation
from shoal.swarm.rounds.simulation_report import RoundsReport
from shoal.swarm.rounds.simulation_scenario import SPEC, RoundConditions, RoundScenario

PEERS = 5
NOTICED = 0.35  # probability that a look at the directory shows a peer that is new there
CALM = RoundConditions(
    loss=0.0, repeats=0.0, latency_s=(0.005, 0.3), bulk_s=(0.1, 1.0), compute_s=(0.3, 1.0), stragglers=0.0
)
SMALL = msgspec.structs.replace(SPEC, fragments=(2 * 4096,), shards=2, grace_s=10.0, deadline_s=60.0)


class Founding(RoundSimulation):
    """Founders start within `spread_s`; each sees more and more of the others in the directory."""

    def __init__(self, seed: int, spread_s: float) -> None:
        options = RoundOptions()
        super().__init__(
            RoundScenario(
                peers=PEERS, rounds=2, churn=0.0, seed=seed, spec=SMALL, options=options, conditions=CALM, limit_s=200.0
            )
        )
        self._draw = random.Random(seed * 7 + 1)
        self._seen = {trainer.peer: {trainer.peer} for trainer in self.trainers.values()}
        for _ in range(PEERS):
            self.timeline.at(self._draw.uniform(0.0, spread_s), self._begin)

    def run(self) -> RoundsReport:
        while self.timeline.now < self.scenario.limit_s and not (len(self.trainers) == PEERS and self._over()):
            self.timeline.run(self.timeline.now + 1.0)
        self.report.close(self.timeline, list(self.trainers.values()), self.scenario.rounds)
        return self.report

    def _begin(self) -> None:
        self._start(self._make(liar=False, donor=None))

    def _list(self, trainer: SimulatedTrainer) -> None:
        seen = self._seen.setdefault(trainer.peer, {trainer.peer})
        seen |= {peer for peer in self.trainers if self._draw.random() < NOTICED}
        self.handle(trainer, Listed(seen - {trainer.peer}))
        self.timeline.after(1.0 if len(seen) < 2 else 5.0, self._list, trainer)


@pytest.mark.parametrize("seed", [1, 2, 3, 7, 9, 55, 86, 89])  # the last five of these hung, or lost the round
def test_founders_that_all_begin_to_lead_agree_within_a_minute(seed: int) -> None:
    report = Founding(seed, 4.0).run()
    assert report.faults == []
    assert report.behind == []
    assert report.skipped == []
    assert report.decided_at[0] < 60.0
