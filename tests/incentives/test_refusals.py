"""Servers that do not show their work: accidents are not held against them, habits are."""

import random

from shoal.incentives.refusals import HONEST, WINDOW_S, Refusals


def windows(refused: list[bool], sessions: int = 1) -> Refusals:
    found = Refusals()
    for number, lost in enumerate(refused):
        for session in range(sessions):
            found = found.after(lost, number * WINDOW_S + session)
    return found


def test_a_node_that_was_started_again_has_lost_one_window_however_many_sessions_that_were() -> None:
    found = windows([True], sessions=50)
    assert not found.is_habit
    assert found.after(False, WINDOW_S).nats == found.after(False, WINDOW_S).nats
    assert not windows([True, False, True, False, False]).is_habit


def test_who_never_shows_anything_is_found_within_three_windows() -> None:
    assert not windows([True, True]).is_habit
    assert windows([True, True, True]).is_habit


def test_one_refusal_in_a_window_counts_for_all_of_it() -> None:
    """Who shows what is good and refuses what is false gets no credit for the good."""
    found = Refusals()
    for number in range(3):
        for session in range(10):
            found = found.after(session == 7, number * WINDOW_S + session)
    assert found.is_habit


def test_who_refuses_one_window_in_five_is_found_too() -> None:
    draw = random.Random(3)
    needed = []
    for _ in range(200):
        found, count = Refusals(), 0
        while not found.is_habit:
            found = found.after(draw.random() < 0.2, count * WINDOW_S)
            count += 1
        needed.append(count)
    assert sorted(needed)[189] <= 120, "in 95 % of runs within 20 hours"


def test_honest_accidents_are_no_habit() -> None:
    draw, habits, runs = random.Random(4), 0, 400
    for _ in range(runs):
        found = Refusals()
        for number in range(1000):
            found = found.after(draw.random() < HONEST, number * WINDOW_S)
        habits += found.is_habit
    assert habits <= 4


def test_a_clock_that_goes_back_begins_a_new_window() -> None:
    found = Refusals().after(True, 1000.0).after(False, 10.0)
    assert found.began_s == 10.0
    assert found.nats[0] > 0
