"""How long a judge waits for trainers that are late."""

import pytest

from shoal.node.training.credit.patience import ALLOWANCE_S, COMES_BACK, MOST_S, Patience
from shoal.swarm.identifiers import PeerId

SLOW, QUICK = PeerId("slow"), PeerId("quick")
ROUND_S = 3.0  # of training between two waits


def waited(patience: Patience, late: dict[PeerId, float], now: float) -> float:
    """late: seconds after which each has shown its work. returns: how long the judge waited"""
    began = now
    patience.begin(late, now)
    for peer, after_s in sorted(late.items(), key=lambda each: each[1]):
        limit_s = patience.limit_s(now)
        if began + after_s > now + max(0.0, limit_s):
            now += max(0.0, limit_s)
            break
        now = began + after_s
        patience.came(peer, now)
    patience.end(now)
    return now - began


def test_a_trainer_that_is_late_for_ever_costs_its_allowance_and_then_a_fiftieth_of_the_time() -> None:
    patience, now, lost = Patience(), 100.0, list[float]()
    for _ in range(1000):
        lost.append(waited(patience, {SLOW: 1e9}, now))
        now += lost[-1] + ROUND_S
    assert lost[:2] == [MOST_S, MOST_S]
    assert sum(lost) <= ALLOWANCE_S + COMES_BACK * (now - 100.0)
    assert sum(lost[100:]) <= COMES_BACK * 1.05 * (now - 100.0)


def test_one_that_takes_turns_at_being_late_gains_nothing_by_it() -> None:
    patience, now, lost = Patience(), 0.0, 0.0
    for number in range(1000):
        took = waited(patience, {SLOW: 0.1 if number % 2 else 1e9}, now)
        lost += took
        now += took + ROUND_S
    assert lost <= ALLOWANCE_S + COMES_BACK * now + 0.2


def test_who_needs_a_moment_is_waited_for_in_every_round() -> None:
    patience, now = Patience(), 0.0
    for _ in range(1000):
        took = waited(patience, {QUICK: 0.05}, now)
        assert took == pytest.approx(0.05)
        now += took + ROUND_S


def test_the_slow_one_is_not_waited_for_with_the_patience_for_another() -> None:
    patience, now = Patience(), 0.0
    for _ in range(3):
        now += waited(patience, {SLOW: 1e9}, now)
    assert patience.left_s(SLOW, now) == pytest.approx(0.0, abs=0.2)
    took = waited(patience, {SLOW: 1e9, QUICK: 1.0}, now)
    assert took == pytest.approx(1.0)
    assert patience.left_s(QUICK, now + took) == pytest.approx(ALLOWANCE_S - 1.0)


def test_an_allowance_comes_back_in_full_and_no_further() -> None:
    patience = Patience()
    waited(patience, {SLOW: 4.0}, 0.0)
    assert patience.left_s(SLOW, 4.0) == pytest.approx(ALLOWANCE_S - 4.0)
    assert patience.left_s(SLOW, 1e6) == ALLOWANCE_S
