"""Gates and robust means, on dense and on sparse updates: what liars can do to the mean."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.compression.aggregate import Contribution, weighted_mean
from shoal.compression.presets import preset
from shoal.compression.update_codec import Values
from shoal.swarm.rounds.exchange import RunSpec
from shoal.swarm.rounds.gates import PLAIN, STRICT, refusals
from shoal.swarm.rounds.robust import reduce_contributions

COUNT = 2 * 4096


def spec(robust: str = "mean", name: str = "none") -> RunSpec:
    return RunSpec("run", "m" * 64, "d", "diloco", (COUNT,), name, shards=2, robust=robust)


def peers(count: int = 10, signal: float = 0.7, seed: int = 0, codec: str = "none") -> list[Contribution]:
    """Updates that share a direction (pairwise cosine signal^2), as the decoder gives them."""
    generator = np.random.default_rng(seed)
    common = generator.standard_t(4, COUNT)
    made = []
    for index in range(count):
        own = generator.standard_t(4, COUNT)
        values = (signal * common + np.sqrt(1 - signal**2) * own).astype(np.float32)
        decoded = preset(codec).decode(preset(codec).encode(values, 1), COUNT, 1)
        made.append(Contribution(f"peer{index}", 1000 + index, decoded))
    return made


def spoilt(honest: list[Contribution], factor: float, liars: int = 3) -> list[Contribution]:
    return [
        Contribution(c.contributor, c.tokens, (c.values * np.float32(factor)).astype(np.float32))
        if index < liars
        else c
        for index, c in enumerate(honest)
    ]


def cosine(one: Values, other: Values) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


@pytest.mark.parametrize("codec", ["none", "sparse"])
def test_without_liars_the_mean_is_the_weighted_mean_to_the_last_bit(codec: str) -> None:
    honest = peers(codec=codec)
    assert refusals(honest) == {}
    assert (reduce_contributions(spec(), honest) == weighted_mean(honest)).all()
    assert (reduce_contributions(spec(), honest[::-1]) == weighted_mean(honest)).all()


@pytest.mark.parametrize("codec", ["none", "sparse"])
def test_the_gates_refuse_updates_of_a_thousand_times_the_size(codec: str) -> None:
    honest = peers(codec=codec)
    named = refusals(spoilt(honest, 1000.0))
    assert set(named) == {"peer0", "peer1", "peer2"}
    assert "times the median" in named["peer0"]
    lied = reduce_contributions(spec(), spoilt(honest, 1000.0))
    assert (lied == weighted_mean(honest[3:])).all()


@pytest.mark.parametrize("codec", ["none", "sparse"])
@pytest.mark.parametrize("robust", ["trimmed", "clipped"])
@pytest.mark.parametrize("factor", [-1.0, 1000.0, -1000.0])
def test_a_robust_mean_stays_near_the_honest_one_whatever_three_of_ten_send(
    codec: str, robust: str, factor: float
) -> None:
    honest = peers(codec=codec)
    clean = reduce_contributions(spec(robust), honest)
    lied = reduce_contributions(spec(robust), spoilt(honest, factor))
    assert cosine(clean, weighted_mean(honest)) > 0.9
    assert cosine(lied, clean) > 0.7
    assert np.linalg.norm(lied) > 0.5 * np.linalg.norm(clean)


@pytest.mark.parametrize("robust", ["trimmed", "clipped"])
def test_a_lie_within_the_gates_moves_a_robust_mean_less_than_the_plain_one(robust: str) -> None:
    honest = peers()
    shift = np.float32(3.0) * np.random.default_rng(9).standard_normal(COUNT).astype(np.float32)
    sent = [Contribution(c.contributor, c.tokens, c.values + shift) if i < 3 else c for i, c in enumerate(honest)]
    truth = weighted_mean(honest[3:])
    plain = np.linalg.norm(weighted_mean(sent) - truth)
    assert np.linalg.norm(reduce_contributions(spec(robust), sent) - truth) < 0.7 * plain


def test_a_coordinate_that_few_peers_sent_survives_trimming() -> None:
    values = np.zeros((10, COUNT), np.float32)
    values[:4, 7] = [1.0, 1.1, 0.9, 1.0]
    values[9, 11] = 2.0
    sent = [Contribution(f"peer{i}", 10, v) for i, v in enumerate(values)]
    mean = reduce_contributions(spec("trimmed"), sent)
    assert mean[7] == pytest.approx(0.4, rel=0.1)
    assert mean[11] == pytest.approx(0.2)


def test_weights_beyond_all_measure_do_not_buy_a_robust_mean() -> None:
    honest = peers()
    greedy = [Contribution(c.contributor, 10**12 if i == 0 else c.tokens, c.values) for i, c in enumerate(honest)]
    one = reduce_contributions(spec("clipped"), honest)
    assert cosine(reduce_contributions(spec("clipped"), greedy), one) > 0.95


def test_values_that_are_not_finite_are_refused_and_said_so() -> None:
    sent = peers(4)
    sent[2].values[5] = np.nan
    assert refusals(sent) == {"peer2": "values that are not finite"}
    assert np.isfinite(reduce_contributions(spec(), sent)).all()


def test_updates_that_have_nothing_in_common_are_not_taken_for_lies() -> None:
    for seed in range(8):
        assert refusals(peers(8, signal=0.0, seed=seed)) == {}
        assert refusals(peers(8, signal=0.0, seed=seed, codec="sparse")) == {}


def test_when_half_oppose_the_other_half_nobody_is_named() -> None:
    honest = peers(8)
    assert refusals(spoilt(honest, -1.0, liars=4), STRICT) == {}


def test_one_of_two_cannot_be_told_from_the_other_but_a_thousandfold_can() -> None:
    honest = peers(2)
    assert refusals(spoilt(honest, -1.0, liars=1)) == {}
    assert set(refusals(spoilt(honest, 1000.0, liars=1))) == {"peer0"}


def test_an_auditors_margin_brackets_the_verdict() -> None:
    honest = peers()
    just_over = spoilt(honest, 10.05, liars=1)
    sure, near = refusals(just_over, PLAIN, margin=0.2), refusals(just_over, PLAIN, margin=-0.2)
    assert set(sure) <= set(refusals(just_over)) <= set(near)


def test_nothing_left_is_an_error_and_so_is_a_contributor_that_counts_twice() -> None:
    with pytest.raises(ValueError, match="no contributions"):
        reduce_contributions(spec("clipped"), [])
    twice = peers(2)
    with pytest.raises(ValueError, match="twice"):
        reduce_contributions(spec("trimmed"), [twice[0], twice[0], twice[1]])


@settings(deadline=None, max_examples=12)
@given(st.permutations(range(6)), st.sampled_from(["mean", "trimmed", "clipped"]))
def test_the_order_of_arrival_changes_no_bit(order: list[int], robust: str) -> None:
    sent = spoilt(_SIX, -2.0, liars=1)
    again = reduce_contributions(spec(robust), [sent[i] for i in order])
    assert again.tobytes() == reduce_contributions(spec(robust), sent).tobytes()


_SIX = peers(6)
