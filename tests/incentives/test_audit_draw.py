import secrets

import pytest
from incentives.work_samples import SECRET, session, signed

from shoal.incentives.audit_draw import LEAST_RATE, audit_rate, auditors, commitment, is_drawn
from shoal.swarm.identifiers import PeerId


def test_newcomers_are_audited_always_and_nobody_less_than_one_in_twenty() -> None:
    assert audit_rate(0, 0.0) == 1.0
    rates = [audit_rate(sound, 0.0) for sound in range(5000)]
    assert rates == sorted(rates, reverse=True)
    assert rates[16] == 0.5
    assert rates[-1] == LEAST_RATE == 0.05


def test_any_suspicion_brings_every_chunk_under_the_lens() -> None:
    assert audit_rate(100_000, 0.01) == 1.0


@pytest.mark.parametrize("rate", [0.05, 0.3, 1.0])
def test_chunks_are_drawn_as_often_as_the_rate_says(rate: float) -> None:
    statement, _ = signed(session(64))
    drawn = sum(is_drawn(statement, SECRET, index, rate) for index in range(4000))
    assert abs(drawn / 4000 - rate) < 0.02


def test_the_server_cannot_foresee_the_draw_nor_the_client_choose_it() -> None:
    """Without the secret a guess is as good as any; with another secret than the one committed to there is no draw."""
    statement, _ = signed(session(64))
    true = [is_drawn(statement, SECRET, index, 0.5) for index in range(512)]
    for _ in range(8):
        guess = secrets.token_bytes(32)
        guessed_statement, _ = signed(session(64), guess)
        guessed = [is_drawn(guessed_statement, guess, index, 0.5) for index in range(512)]
        assert 180 < sum(a == b for a, b in zip(true, guessed, strict=True)) < 332
        with pytest.raises(ValueError, match="another secret"):
            is_drawn(statement, guess, 0, 0.5)
    assert statement.draw == commitment(SECRET)


def test_other_work_draws_other_chunks() -> None:
    """A server that would know the secret after all: its root, fixed by then, still decides."""
    one, _ = signed(session(64, seed=1))
    two, _ = signed(session(64, seed=2))
    assert [is_drawn(one, SECRET, i, 0.5) for i in range(64)] != [is_drawn(two, SECRET, i, 0.5) for i in range(64)]


def test_auditors_are_drawn_evenly_and_alike_for_everyone() -> None:
    statement, _ = signed(session(64))
    holders = [PeerId(f"peer{n}") for n in range(10)]
    orders = [auditors(statement, SECRET, index, holders) for index in range(3000)]
    assert orders[5] == auditors(statement, SECRET, 5, holders[::-1])
    firsts = [order[0] for order in orders]
    assert all(220 < firsts.count(peer) < 380 for peer in holders)
