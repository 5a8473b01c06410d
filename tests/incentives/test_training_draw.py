"""Which claims a judge looks at: by its own signature, evenly, and for all to check; and what they are worth."""

import pytest

from shoal.incentives.training_draw import drawn, percent_looked_at, quality_percent, shown, worth
from shoal.swarm.identity import Identity

JUDGE, OTHER = (Identity(bytes([n]) * 32) for n in (41, 42))


def claims(count: int) -> list[bytes]:
    return [number.to_bytes(32, "big") for number in range(count)]


def test_one_claim_in_so_many_is_drawn_and_every_interval_alike() -> None:
    draws = [drawn(JUDGE, claim, 20, 4) for claim in claims(2000)]
    assert 320 < sum(draw.looked_at for draw in draws) < 480
    assert all(400 < [draw.interval for draw in draws].count(interval) < 600 for interval in range(4))
    assert all(drawn(JUDGE, claim, 100, 4).looked_at for claim in claims(20))


def test_a_draw_can_be_checked_by_whoever_sees_it_and_made_by_the_judge_alone() -> None:
    (claim, other) = claims(2)
    draw = drawn(JUDGE, claim, 50, 4)
    assert shown(JUDGE.peer_id, claim, draw.proof, 50, 4) == draw
    assert shown(JUDGE.peer_id, other, draw.proof, 50, 4) is None
    assert shown(JUDGE.peer_id, claim, drawn(OTHER, claim, 50, 4).proof, 50, 4) is None


@pytest.mark.parametrize("others", [1, 2, 3, 7, 50, 1000])
def test_what_is_minted_in_the_mean_is_what_was_done(others: int) -> None:
    percent = percent_looked_at(others)
    assert worth(1000, 100, percent) * percent / 100 == pytest.approx(1000, rel=0.01)
    assert worth(1000, 100, percent) <= 20_000


def test_quality_is_against_the_mean_of_the_round_and_never_more_than_all() -> None:
    assert [quality_percent(own, 2.0) for own in (-1.0, 0.0, 0.5, 2.0, 9.0)] == [0, 0, 25, 100, 100]
    assert quality_percent(float("nan"), 1.0) == 0
    assert quality_percent(-0.1, -0.2) == 100, "held-out text says nothing about this round"
