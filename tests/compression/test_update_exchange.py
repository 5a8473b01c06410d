"""Error feedback and aggregation: nothing is lost, order does not matter, replicas hold the same bits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.compression.aggregate import Contribution, aggregate, weighted_mean
from shoal.compression.error_feedback import ErrorFeedback, send
from shoal.compression.presets import PRESETS, preset


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(PRESETS)), st.integers(1, 6000), st.sampled_from([1.0, 0.95, 0.5]), st.integers(0, 99))
def test_sent_and_residual_are_what_was_left_and_the_update(name: str, count: int, decay: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    feedback = ErrorFeedback.empty(count, decay)
    for turn in range(3):
        update = random.normal(size=count).astype(np.float32)
        sent = send(preset(name), feedback, update, seed=turn)
        target = np.float32(decay) * feedback.residual + update
        rounding = np.spacing(np.maximum(np.abs(target), np.abs(sent.values)))
        assert (np.abs(sent.values + sent.feedback.residual - target) <= rounding).all()
        feedback = sent.feedback


def test_what_is_left_out_arrives_in_later_turns() -> None:
    goal = np.random.default_rng(0).normal(size=8192).astype(np.float32)
    feedback, arrived = ErrorFeedback.empty(8192), np.zeros(8192, np.float32)
    for turn in range(200):
        sent = send(preset("sparse2"), feedback, goal if turn == 0 else np.zeros_like(goal), turn)
        arrived, feedback = arrived + sent.values, sent.feedback
    assert np.linalg.norm(goal - arrived) < 0.05 * np.linalg.norm(goal)


def contributions(count: int) -> list[Contribution]:
    random = np.random.default_rng(4)
    return [
        Contribution(f"peer-{i}", int(random.integers(1, 1000)), random.normal(size=count).astype(np.float32))
        for i in range(5)
    ]


def test_the_mean_is_weighted_by_tokens_and_blind_to_the_order_of_arrival() -> None:
    parts = contributions(1000)
    mean = weighted_mean(parts)
    expected = np.average([p.values for p in parts], axis=0, weights=[p.tokens for p in parts])
    assert np.allclose(mean, expected, atol=1e-6)
    assert np.array_equal(weighted_mean(parts[::-1]).view(np.uint32), mean.view(np.uint32))


@pytest.mark.parametrize("name", PRESETS)
def test_replicas_that_apply_the_same_bytes_hold_the_same_bits(name: str) -> None:
    codec, count = preset(name), 9000
    owner = ErrorFeedback.empty(count)
    replicas = [np.zeros(count, np.float32) for _ in range(3)]
    for turn in range(3):
        result = aggregate(codec, owner, contributions(count), seed=turn)
        owner = result.feedback
        replicas = [replica + codec.decode(result.payload, count, turn) for replica in replicas]
        assert np.array_equal(result.values, codec.decode(result.payload, count, turn))
    assert len({replica.tobytes() for replica in replicas}) == 1


def test_a_mean_over_nobody_or_over_one_peer_twice_is_refused() -> None:
    part = contributions(10)[0]
    for wrong in ([], [part, part], [Contribution("a", 0, part.values)], [part, Contribution("b", 1, part.values[:5])]):
        with pytest.raises(ValueError, match="contribut"):
            weighted_mean(wrong)
