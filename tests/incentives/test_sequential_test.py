import random
from math import log

import pytest

from shoal.incentives.audit_draw import audit_rate
from shoal.incentives.audit_threshold import Finding, Threshold, calibrated, rounding_floor
from shoal.incentives.sequential_test import (
    ALTERNATIVES,
    FAR_HONEST,
    GROSS_HONEST,
    MOSTLY,
    Suspicion,
    false_alarm_bound,
)


def after(findings: list[Finding], start: Suspicion | None = None) -> Suspicion:
    found = start or Suspicion()
    for finding in findings:
        found = found.after(finding)
    return found


def test_two_gross_or_three_far_chunks_convict_and_one_never_does() -> None:
    assert not after([Finding.GROSS]).convicted
    assert after([Finding.GROSS] * 2).convicted
    assert not after([Finding.FAR] * 2).convicted
    assert after([Finding.FAR] * 3).convicted


def test_a_thousand_honest_chunks_buy_nothing() -> None:
    """Reputation farming: the test starts anew whenever it has cleared a server."""
    farmed = after([Finding.SOUND] * 1000)
    assert farmed.nats == Suspicion().nats
    assert after([Finding.GROSS] * 2, farmed).convicted
    assert after([Finding.FAR] * 3, farmed).convicted


def test_a_farmer_is_found_within_sixty_chunks_after_it_turns() -> None:
    found_within = []
    for run in range(2000):
        draw, suspicion = random.Random(run), after([Finding.SOUND] * 1000)
        chunks = 0
        while not suspicion.convicted:
            chunks += 1
            if draw.random() < audit_rate(suspicion.sound, suspicion.most):
                suspicion = suspicion.after(Finding.GROSS)
        found_within.append(chunks)
    assert sum(chunks <= 60 for chunks in found_within) / 2000 >= 0.94
    assert sum(found_within) / 2000 == pytest.approx(21, abs=2)


def test_a_server_that_cheats_one_time_in_ten_is_found_too() -> None:
    found = 0
    for run in range(300):
        draw, suspicion = random.Random(run), Suspicion()
        for _ in range(2000):
            if draw.random() < audit_rate(suspicion.sound, suspicion.most):
                suspicion = suspicion.after(Finding.GROSS if draw.random() < 0.1 else Finding.SOUND)
            if suspicion.convicted:
                found += 1
                break
    assert found >= 285


def test_chances_are_chances_and_their_ratios_average_to_one_for_the_honest() -> None:
    """What makes the product of ratios a martingale of an honest server."""
    honest = {Finding.SOUND: 1 - FAR_HONEST - GROSS_HONEST, Finding.FAR: FAR_HONEST, Finding.GROSS: GROSS_HONEST}
    for alternative in ALTERNATIVES:
        mean = sum(chance * 2.718281828459045 ** alternative.gain(finding) for finding, chance in honest.items())
        assert mean == pytest.approx(1.0, abs=1e-9)
    assert MOSTLY.gain(Finding.GROSS) == pytest.approx(log(0.7 / 2e-4))


def test_an_honest_server_at_the_assumed_chances_is_convicted_as_rarely_as_the_bound_says() -> None:
    assert false_alarm_bound(1000) < 1e-4
    convicted = 0
    draw = random.Random(1)
    for _ in range(100):
        suspicion = Suspicion()
        for _ in range(1000):
            number = draw.random()
            far, gross = number < FAR_HONEST + GROSS_HONEST, number < GROSS_HONEST
            suspicion = suspicion.after(Finding.GROSS if gross else Finding.FAR if far else Finding.SOUND)
            convicted += suspicion.convicted
    assert convicted == 0


def test_a_threshold_stands_a_margin_above_the_largest_honest_distance() -> None:
    threshold = calibrated([0.004 + 1e-5 * n for n in range(200)], rounding_floor("bfloat16", "bfloat16"))
    assert threshold.limit == pytest.approx(1.25 * (0.004 + 1e-5 * 199))
    assert threshold.finding(threshold.limit) is Finding.SOUND
    assert threshold.finding(threshold.limit * 1.01) is Finding.FAR
    assert threshold.finding(threshold.limit * 4.01) is Finding.GROSS
    assert threshold.finding(float("nan")) is threshold.finding(float("inf")) is Finding.GROSS


def test_a_threshold_never_lies_below_rounding_and_never_rests_on_little() -> None:
    assert calibrated([0.0] * 100, rounding_floor("float32", "float32")) == Threshold(32 * 2**-24, 100, 0.0)
    with pytest.raises(ValueError, match="too few"):
        calibrated([0.1] * 99, 0.0)
    with pytest.raises(ValueError, match="not finite"):
        calibrated([0.1] * 99 + [float("nan")], 0.0)
    with pytest.raises(ValueError, match="no rounding is known for int4"):
        rounding_floor("int4", "float32")
