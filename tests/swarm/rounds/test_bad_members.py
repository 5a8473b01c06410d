"""One member spoils what it sends or never answers: the round happens all the same, alike for all, without its lies."""

from collections.abc import Callable

import msgspec
import pytest

from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.decisions import Done, indices
from shoal.swarm.rounds.events import Effect, Report, RoundOptions, Run, UpdateRefused
from shoal.swarm.rounds.messages import Aggregate, AnyMessage, Progress, Upload
from shoal.swarm.rounds.reducing import ReduceJob
from shoal.swarm.rounds.simulated_trainer import SimulatedTrainer
from shoal.swarm.rounds.simulation import RoundSimulation
from shoal.swarm.rounds.simulation_scenario import SPEC, RoundConditions, RoundScenario

CULPRIT = PeerId("peer00002")
ROUNDS = 4
CALM = RoundConditions(
    loss=0.0, repeats=0.0, latency_s=(0.01, 0.05), bulk_s=(0.02, 0.1), compute_s=(0.5, 1.0), stragglers=0.0
)
SMALL = msgspec.structs.replace(SPEC, fragments=(8 * 4096,), shards=8, grace_s=3.0, deadline_s=40.0)
OPTIONS = RoundOptions(beat_s=0.5, leader_silence_s=3.0, owner_silence_s=4.0)
Spoil = Callable[[AnyMessage, "Spoiled"], list[AnyMessage]]


class Spoiled(RoundSimulation):
    """One peer's messages pass through `spoil`; it never reduces when `works` is False."""

    def __init__(self, spoil: Spoil = lambda message, _: [message], *, works: bool = True, seed: int = 0) -> None:
        scenario = RoundScenario(
            peers=5, rounds=ROUNDS, churn=0.0, seed=seed, spec=SMALL, options=OPTIONS, conditions=CALM, limit_s=400.0
        )
        super().__init__(scenario)
        self._spoil, self._works = spoil, works
        self.uploads: dict[tuple[PeerId, int, int], Upload] = {}  # by contributor, round and shard
        self.spoilt = 0
        self.complaints: list[UpdateRefused] = []
        self.disowned: set[PeerId] = set()
        self.counted: dict[int, list[int]] = {}  # round to how many contributions each of its shards holds

    def _send(self, trainer: SimulatedTrainer, to: PeerId, message: AnyMessage) -> None:
        if isinstance(message, Upload):
            self.uploads[message.contributor, message.round, message.shard] = message
        if trainer.peer != CULPRIT:
            super()._send(trainer, to, message)
            return
        for each in self._spoil(message, self):
            self.spoilt += each is not message
            super()._send(trainer, to, each)

    def _carry_out(self, trainer: SimulatedTrainer, effect: Effect) -> None:
        match effect:
            case Report(UpdateRefused() as complaint):
                self.complaints.append(complaint)
            case Run(ReduceJob()) if trainer.peer == CULPRIT and not self._works:
                self.spoilt += 1
                return
            case _:
                pass
        super()._carry_out(trainer, effect)

    def _note(self, trainer: SimulatedTrainer, round_: int) -> None:
        super()._note(trainer, round_)
        decision = trainer.machine.state.history.decisions.get(round_)
        if decision is not None and isinstance(decision.value, Done):
            members = self.report.happened[round_]
            self.disowned |= set(decision.value.disowned)
            self.counted[round_] = [len(indices(shard.arrived, members)) for shard in decision.value.shards]


def assert_all_rounds_happened(simulation: Spoiled) -> None:
    report = simulation.report
    assert simulation.spoilt
    assert report.faults == []
    assert report.skipped == []
    assert report.behind == []
    assert sorted(report.happened) == list(range(ROUNDS))
    assert all(members == 5 for members in report.happened.values())


def of_the_round_before(message: AnyMessage, simulation: Spoiled) -> list[AnyMessage]:
    """Under this round's number, with this round's path."""
    if not isinstance(message, Upload) or not message.round:
        return [message]
    before = simulation.uploads.get((CULPRIT, message.round - 1, message.shard))
    return [message if before is None else msgspec.structs.replace(message, payload=before.payload)]


def of_the_round_before_with_its_path(message: AnyMessage, simulation: Spoiled) -> list[AnyMessage]:
    if not isinstance(message, Upload) or not message.round:
        return [message]
    before = simulation.uploads.get((CULPRIT, message.round - 1, message.shard))
    return [message if before is None else msgspec.structs.replace(before, round=message.round)]


def of_somebody_else(message: AnyMessage, simulation: Spoiled) -> list[AnyMessage]:
    """The newest payload of a peer that is not the culprit, as its own."""
    if not isinstance(message, Upload):
        return [message]
    others = [u for (peer, _, shard), u in simulation.uploads.items() if peer != CULPRIT and shard == message.shard]
    return [
        message if not others else msgspec.structs.replace(message, payload=others[-1].payload, path=others[-1].path)
    ]


@pytest.mark.parametrize("spoil", [of_the_round_before, of_the_round_before_with_its_path, of_somebody_else])
def test_a_payload_that_was_not_committed_to_counts_nowhere(spoil: Spoil) -> None:
    simulation = Spoiled(spoil)
    simulation.run()
    assert_all_rounds_happened(simulation)
    assert simulation.complaints
    assert {complaint.peer for complaint in simulation.complaints} == {CULPRIT}
    assert {complaint.reason for complaint in simulation.complaints} == {"not the payload it committed to"}
    last = simulation.counted[ROUNDS - 1]
    assert last.count(4) >= 5, "only in the shards that the culprit reduces itself its own payload is there"


def test_payloads_that_are_sent_again_later_change_nothing() -> None:
    """Every upload and aggregate so far, again, with each message: of this round and of all before."""

    def again(message: AnyMessage, simulation: Spoiled) -> list[AnyMessage]:
        if not isinstance(message, Upload | Aggregate | Progress):
            return [message]
        return [message, *(msgspec.structs.replace(old) for old in simulation.uploads.values())]

    simulation = Spoiled(again)
    simulation.run()
    assert_all_rounds_happened(simulation)
    assert simulation.complaints == []
    for counted in simulation.counted.values():
        assert counted == [5] * 8
    honest = Spoiled()
    honest.run()
    assert simulation.report.states == honest.report.states


@pytest.mark.parametrize("seed", range(4))
def test_a_reducer_that_says_nothing_costs_no_round(seed: int) -> None:
    """It takes uploads, and votes, but neither reports nor sends an aggregate."""

    def silent(message: AnyMessage, _: Spoiled) -> list[AnyMessage]:
        return [] if isinstance(message, Progress | Aggregate) else [message]

    simulation = Spoiled(silent, seed=seed)
    simulation.spoilt = 1
    simulation.run()
    assert_all_rounds_happened(simulation)


@pytest.mark.parametrize("seed", range(4))
def test_a_reducer_that_shows_life_and_never_reduces_costs_no_round(seed: int) -> None:
    simulation = Spoiled(works=False, seed=seed)
    simulation.run()
    assert_all_rounds_happened(simulation)
    took_s = [simulation.report.decided_at[r] - simulation.report.decided_at[r - 1] for r in range(1, ROUNDS)]
    assert max(took_s) < SMALL.deadline_s / 2, "only once: it owns no shards any more"
    assert simulation.disowned == {CULPRIT}
