"""A thousand volunteers, a third of them killed and replaced: every lookup of covered layers finds a living chain."""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest

from shoal.swarm.identifiers import ModelId
from shoal.swarm.records import CLOCK_SLACK_S, NodeRecord
from shoal.swarm.routing.mover import MoveTiming
from shoal.swarm.routing.placement import Budget
from shoal.swarm.simulated.client import Judge, Query
from shoal.swarm.simulated.directory import DirectoryConditions, Heard
from shoal.swarm.simulated.model import SimulatedModel
from shoal.swarm.simulated.peer import Population, SimulatedPeer
from shoal.swarm.simulated.report import Report
from shoal.swarm.simulation import Placer, Scenario, Simulation, placed_by_need
from shoal.swarm.units import Span, whole

GONE_AFTER_S = 30.0
MODEL, MODEL_ID = SimulatedModel(8), ModelId("cd" * 32)


def check(report: Report) -> None:
    """What must hold in every swarm, large or small, lucky or not."""
    assert report.lookups == report.covered + report.uncovered
    assert report.missed == 0, report.faults
    assert report.found == report.covered
    assert report.wrong_chains == 0, report.faults
    assert report.oldest_ghost_s < GONE_AFTER_S


def test_a_thousand_peers_under_churn_always_serve_what_they_hold() -> None:
    began = time.process_time()
    report = Simulation(Scenario(peers=1000, churn=0.3, lookups=400)).run()
    check(report)
    assert (report.killed, report.joined) == (300, 300)
    assert report.covered == report.lookups == 400
    assert report.oldest_ghost_s > 0, "some dead peers are listed for a while, or nothing was put to the test"
    assert report.dead_hops > 0
    assert time.process_time() - began < 60.0


@pytest.mark.parametrize("seed", range(4))
def test_a_thin_swarm_loses_layers_and_says_so_and_serves_the_rest(seed: int) -> None:
    """Few peers, heavy churn, each layer with one or two holders: holes open and are filled by joiners."""
    scenario = Scenario(
        peers=30,
        layers=(32,),
        churn=3.0,
        max_hops=34,
        lookups=300,
        seed=seed,
        population=Population(capacity_units=(2, 4)),
    )
    report = Simulation(scenario).run()
    check(report)
    assert report.uncovered > 20
    assert report.covered > 20
    assert report.uncovered_refused > 0.8 * report.uncovered, "the rest were filled while the lookup was under way"


def thin(seed: int, place: Placer = placed_by_need, review_s: float = math.inf) -> Report:
    population = Population(capacity_units=(2, 6))
    scenario = Scenario(
        peers=30,
        layers=(32,),
        churn=1.0,
        lookups=100,
        max_hops=34,
        seed=seed,
        population=population,
        review_s=review_s,
        moving=MoveTiming(unbalanced_s=0.0, rest_s=0.0),
    )
    report = Simulation(scenario, place).run()
    check(report)
    return report


def test_placement_by_need_leaves_fewer_holes_than_chance() -> None:
    def anywhere(records: Sequence[NodeRecord], model: ModelId, budget: Budget, generator: random.Random) -> Span:
        return generator.choice(budget.longest())

    by_chance = sum(thin(seed, anywhere).uncovered for seed in range(4))
    by_need = sum(thin(seed).uncovered for seed in range(4))
    assert by_need < by_chance / 3


def test_peers_that_move_to_where_they_are_needed_stay_servable_while_they_do() -> None:
    moved = [thin(seed, review_s=20.0).moved for seed in range(4)]
    assert sum(moved) > 4


@pytest.mark.parametrize("replicas", [5, 20])
def test_heavy_loss_hides_nothing_for_long(replicas: int) -> None:
    directory = DirectoryConditions(replicas=replicas, asked=replicas + 3, loss=0.15)
    report = Simulation(Scenario(peers=200, lookups=150, directory=directory)).run()
    check(report)


def test_a_run_is_a_function_of_its_seed() -> None:
    def run(seed: int) -> Report:
        return Simulation(Scenario(peers=60, lookups=40, seed=seed)).run()

    assert run(1) == run(1)
    assert run(1) != run(2)


# The judge must be able to find fault, or the tests above prove nothing.


def volunteers(*spans: Span) -> list[SimulatedPeer]:
    generator = random.Random(3)
    peers = []
    for span in spans:
        peer = SimulatedPeer.draw(generator, Population(clock_skew_s=0.0))
        peer.host(MODEL_ID, MODEL, span, {})
        peer.announce(0.0, 0)
        peers.append(peer)
    return peers


def judged(peers: list[SimulatedPeer], listed: list[SimulatedPeer], now: float = 1.0) -> Report:
    report = Report()
    query = Query(peers[0], MODEL_ID, whole(8), 8, 0.5, announced_before=0.5)
    records = [peer.record for peer in listed if peer.record is not None]
    Judge(report, {peer.peer: peer for peer in peers}).judge(query, Heard(records, len(records)), now)
    return report


def test_the_judge_finds_a_covered_lookup_that_was_missed() -> None:
    peers = volunteers(Span(0, 5), Span(5, 10))
    assert judged(peers, peers).found == 1
    report = judged(peers, peers[:1])
    assert (report.covered, report.missed) == (1, 1)
    assert report.faults


def test_the_judge_counts_dead_hops_and_goes_round_them() -> None:
    peers = volunteers(Span(0, 5), Span(5, 10), Span(5, 10), Span(5, 10))
    for peer in peers[1:3]:
        peer.died_at = 0.1
    report = judged(peers, peers)
    assert (report.found, report.missed, report.listed_dead) == (1, 0, 2)
    assert report.oldest_ghost_s == pytest.approx(0.9)


def test_the_judge_does_not_expect_what_nobody_holds_alive() -> None:
    peers = volunteers(Span(0, 5), Span(5, 10))
    peers[1].died_at = 0.1
    report = judged(peers, peers)
    assert (report.uncovered, report.uncovered_refused, report.missed) == (1, 1, 0)


def test_the_judge_lists_no_record_past_its_time() -> None:
    peers = volunteers(Span(0, 10))
    assert judged(peers, peers, now=24.0 + CLOCK_SLACK_S).listed == 0
    assert peers[0].record is not None
    peers[0].record = msgspec.structs.replace(peers[0].record, withdrawn=True)
    assert judged(peers, peers).listed == 0


def test_peers_that_leave_with_notice_are_in_no_chain_soon_after_and_most_hops_have_a_standby() -> None:
    """The same churn with and without notice: a withdrawn record goes out of the listings at once."""
    scenario = Scenario(peers=150, layers=(32,), churn=1.0, lookups=150, seed=3)
    silent = Simulation(scenario).run()
    noticed = Simulation(replace(scenario, planned=1.0)).run()
    assert noticed.drained + noticed.killed == silent.killed == 150
    assert noticed.killed < 5, "some had no record yet"
    assert noticed.missed == 0
    assert noticed.dead_hops == 0 < silent.dead_hops
    assert noticed.spared_hops / noticed.hops > 0.5
