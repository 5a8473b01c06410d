"""Hundreds of volunteers train one run, a fifth of them killed in every round: every round ends, all hold the same."""

import time

import msgspec
import pytest

from shoal.swarm.rounds.events import RoundOptions
from shoal.swarm.rounds.simulation import RoundSimulation
from shoal.swarm.rounds.simulation_report import RoundsReport
from shoal.swarm.rounds.simulation_scenario import SPEC, RoundConditions, RoundScenario

PATIENT = RoundOptions(beat_s=1.0)


def check(report: RoundsReport, rounds: int) -> None:
    assert report.faults == []
    assert report.behind == []
    assert set(range(rounds)) <= report.decisions.keys()


def test_five_hundred_peers_with_a_fifth_killed_in_each_round() -> None:
    began = time.process_time()
    report = RoundSimulation(RoundScenario(peers=500, rounds=4, churn=0.2, options=PATIENT)).run()
    check(report, 4)
    assert report.skipped == []
    assert (report.killed, report.joined) == (300, 300)
    assert report.alive == 500
    assert min(report.happened.values()) > 300, "most of those alive take part in every round"
    assert len(set(report.states.values())) == len(report.states), "parameters move in every round"
    assert time.process_time() - began < 60.0


@pytest.mark.parametrize("seed", range(4))
def test_a_small_group_under_heavy_churn_loses_time_but_never_agreement(seed: int) -> None:
    """A third of eight: now and then half of a group is gone, and the rest must wait until it is forgotten."""
    report = RoundSimulation(RoundScenario(peers=8, rounds=6, churn=0.33, seed=seed, options=PATIENT)).run()
    check(report, 6)
    assert report.killed >= 10


def test_heavy_loss_and_repeats_cost_time_only() -> None:
    conditions = RoundConditions(loss=0.25, repeats=0.2, noticed=0.3)
    spec = msgspec.structs.replace(SPEC, deadline_s=120.0)
    scenario = RoundScenario(peers=40, rounds=3, churn=0.1, spec=spec, conditions=conditions, options=PATIENT)
    report = RoundSimulation(scenario).run()
    check(report, 3)
    assert report.skipped == []


def test_lying_owners_are_named_and_nobody_else() -> None:
    """Every shard of every round is checked; liars are out as soon as they have owned one."""
    thorough = RoundOptions(beat_s=1.0, audit_share=1.0)
    spec = msgspec.structs.replace(SPEC, fragments=(9 * 4096,), shards=9)
    scenario = RoundScenario(peers=9, rounds=8, churn=0.0, liars=3, spec=spec, options=thorough)
    report = RoundSimulation(scenario).run()
    check(report, 8)
    assert report.named == report.refused == report.liars
    lying = {round_ for round_, owners in report.owners.items() if owners & report.liars}
    assert max(lying) < 4, "nobody who lies owns anything for long"


def test_the_default_share_of_audits_finds_a_liar_within_a_few_rounds() -> None:
    scenario = RoundScenario(peers=4, rounds=30, churn=0.0, liars=1, options=PATIENT, limit_s=3600.0)
    report = RoundSimulation(scenario).run()
    check(report, 30)
    assert report.named == report.liars


def test_no_honest_owner_is_ever_named_under_churn() -> None:
    thorough = RoundOptions(beat_s=1.0, audit_share=1.0)
    for preset, robust in (("sparse", "mean"), ("sparse", "clipped"), ("fp4", "trimmed"), ("cocktail", "mean")):
        fragments = (2 * 4096 + 100, 4096)
        spec = msgspec.structs.replace(SPEC, preset=preset, robust=robust, fragments=fragments, reducer_decay=0.95)
        scenario = RoundScenario(peers=10, rounds=5, churn=0.2, spec=spec, options=thorough, seed=3)
        report = RoundSimulation(scenario).run()
        check(report, 5)
        assert report.named == set()
        assert report.audits >= 3


def test_a_run_is_a_function_of_its_seed() -> None:
    def run(seed: int) -> RoundsReport:
        return RoundSimulation(RoundScenario(peers=6, rounds=3, seed=seed, options=PATIENT)).run()

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_stragglers_beyond_the_grace_cost_their_own_work_only() -> None:
    conditions = RoundConditions(stragglers=0.2, straggler_factor=20.0)
    report = RoundSimulation(RoundScenario(peers=20, rounds=4, churn=0.0, conditions=conditions, options=PATIENT)).run()
    check(report, 4)
    assert report.skipped == []
    assert report.decided_at[3] < 4 * 45
