"""Strategies against independent textbook versions of what they must equal, bit for bit where numbers are dyadic."""

import json
from pathlib import Path

import numpy as np
import pytest
from training.local_exchange import peers
from training.replicas import Gradient, Replica, dyadic_gradient, noisy_gradient, replicas, spec_of, train

from shoal.compression.update_codec import Values
from shoal.node.training.local_exchange import LocalGroup
from shoal.node.training.optimizers.outer import OuterSettings
from shoal.node.training.strategies.settings import STRATEGIES, StrategySettings, strategy_settings

TRAJECTORIES = Path(__file__).parents[2].parent / "shared" / "fixtures" / "diloco"
COUNT = 12_000
FOUR = 4
RATE = 0.125


def initial(count: int = COUNT) -> Values:
    return np.random.default_rng(7).integers(-8, 9, count).astype(np.float32)


def trained(
    settings: StrategySettings,
    gradient: Gradient,
    steps: int,
    start: Values,
    fragments: tuple[int, ...] = (COUNT,),
    rate: float = RATE,
) -> list[Replica]:
    spec = spec_of(settings, fragments)
    group = LocalGroup(spec, peers(FOUR))
    four = replicas(settings, spec, start, FOUR, rate)
    train(group, four, gradient, steps)
    return four


def test_diloco_with_one_inner_step_of_sgd_and_outer_sgd_of_rate_one_is_synchronous_averaging() -> None:
    settings = strategy_settings("diloco", interval=1, outer=OuterSettings("sgd", learning_rate=1.0))
    expected = initial()
    synchronous = []
    for step in range(6):
        mean = np.mean([dyadic_gradient(peer, step, expected) for peer in range(FOUR)], axis=0, dtype=np.float64)
        expected = np.asarray(expected - np.float32(RATE) * mean.astype(np.float32))
        synchronous.append(expected)
    for replica in trained(settings, dyadic_gradient, 6, initial()):
        np.testing.assert_array_equal(replica.live, synchronous)
    by_sync = strategy_settings("sync", outer=OuterSettings("sgd", learning_rate=RATE))
    for replica in trained(by_sync, dyadic_gradient, 6, initial()):
        np.testing.assert_array_equal(replica.live, synchronous)


def textbook_diloco(start: Values, interval: int, rounds: int, gradient: Gradient, rate: float) -> list[Values]:
    """Algorithm 1 of arXiv:2311.08105 with inner SGD, in float64 and all peers in a row."""
    outer, momentum, history = start.astype(np.float64), np.zeros(len(start)), []
    for round_ in range(rounds):
        changes = []
        for peer in range(FOUR):
            local = outer.copy()
            for step in range(round_ * interval, (round_ + 1) * interval):
                local -= rate * gradient(peer, step, local.astype(np.float32)).astype(np.float64)
            changes.append(outer - local)
        mean = np.mean(changes, axis=0)
        momentum = 0.9 * momentum + mean
        outer = outer - 0.7 * (mean + 0.9 * momentum)
        history.append(outer.astype(np.float32))
    return history


def test_diloco_is_the_textbooks() -> None:
    expected = textbook_diloco(initial(), 5, 4, noisy_gradient, 0.05)
    for replica in trained(strategy_settings("diloco", interval=5), noisy_gradient, 20, initial(), rate=0.05):
        np.testing.assert_allclose(replica.outer[4::5], expected, atol=2e-5)
        np.testing.assert_array_equal(replica.live[4::5], replica.outer[4::5])


def test_streaming_with_one_fragment_and_neither_overlap_nor_merging_is_diloco() -> None:
    streaming = strategy_settings("streaming", fragments=1, delay=0, merge=0.0, preset="none", feedback=0.0, interval=5)
    expected = textbook_diloco(initial(), 5, 4, noisy_gradient, 0.05)
    diloco = trained(strategy_settings("diloco", interval=5), noisy_gradient, 20, initial(), rate=0.05)
    for replica in trained(streaming, noisy_gradient, 20, initial(), rate=0.05):
        np.testing.assert_allclose(replica.outer[4::5], expected, atol=2e-5)
        np.testing.assert_array_equal(replica.live, diloco[replica.index].live)


def test_sparse_of_all_values_unquantised_with_outer_rate_one_is_federated_averaging() -> None:
    settings = strategy_settings("sparse", preset="none", interval=3)
    expected = initial()
    averaged = []
    for round_ in range(4):
        local = np.stack([expected] * FOUR)
        for step in range(round_ * 3, round_ * 3 + 3):
            for peer in range(FOUR):
                local[peer] -= np.float32(RATE) * dyadic_gradient(peer, step, local[peer])
        expected = np.asarray(local.mean(axis=0, dtype=np.float64), np.float32)
        averaged.append(expected)
    for replica in trained(settings, dyadic_gradient, 12, initial()):
        np.testing.assert_array_equal(replica.live[2::3], averaged)


def test_cocktail_applies_each_steps_mean_gradient_one_step_later() -> None:
    settings = strategy_settings("cocktail", preset="none", outer=OuterSettings("sgd", learning_rate=RATE))
    expected, stale = initial(), np.zeros(COUNT, np.float32)
    history = []
    for step in range(6):
        gradients = [dyadic_gradient(peer, step, expected) for peer in range(FOUR)]
        expected = np.asarray(expected - np.float32(RATE) * stale)
        stale = np.asarray(np.stack(gradients).mean(axis=0, dtype=np.float64), np.float32)
        history.append(expected)
    for replica in trained(settings, dyadic_gradient, 6, initial()):
        np.testing.assert_array_equal(replica.live, history)


@pytest.mark.parametrize(
    ("file", "delay", "merge"),
    [
        ("mocked_updates_0.json", 0, 0.0),
        ("mocked_updates_1.json", 0, 0.5),
        ("mocked_updates_2.json", 0, 1.0),
        ("mocked_updates_3.json", 1, 0.0),
    ],
)
def test_streaming_follows_the_trajectories_that_torchft_recorded(file: str, delay: int, merge: float) -> None:
    if not (TRAJECTORIES / file).exists():
        pytest.skip(f"the recorded trajectories are not beside the repository: {TRAJECTORIES / file}")
    settings = strategy_settings(
        "streaming",
        interval=6,
        fragments=2,
        delay=delay,
        merge=merge,
        preset="none",
        feedback=0.0,
        outer=OuterSettings("sgd", learning_rate=2.0),
    )
    recordings = [recording for replica in json.loads((TRAJECTORIES / file).read_text()) for recording in replica]
    assert recordings
    one = np.ones(2, np.float32)
    for replica in trained(settings, lambda *_: one * 2, 15, one, fragments=(1, 1), rate=1.0):
        for recording in recordings:
            for step, tensors in recording["history"].items():
                live = replica.live[int(step) - 1] if int(step) else one
                assert live.tolist() == numbers(tensors), f"live parameters after step {step}"
            for step, tensors in recording["global_parameter_history"].items():
                outer = replica.outer[int(step) - 1] if int(step) else one
                assert outer.tolist() == numbers(tensors), f"outer parameters after step {step}"


def numbers(tensors: dict[str, list[list[float]]]) -> list[float]:
    return [tensors[f"layers.{layer}.weight"][0][0] for layer in range(2)]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_replica_holds_the_same_bits_after_every_round(name: str) -> None:
    interval = STRATEGIES[name].interval
    settings = strategy_settings(name, interval=min(6, interval), delay=min(2, STRATEGIES[name].delay))
    fragments = (COUNT,) if settings.fragments == 1 else (4096, 5000, COUNT - 9096)
    four = trained(settings, noisy_gradient, 24, initial(), fragments, rate=0.05)
    rounds = four[0].applied()
    spacing = settings.interval // settings.fragments
    assert len(rounds) == 24 // spacing - (1 if settings.delay == spacing else 0)
    for replica in four[1:]:
        assert replica.applied() == rounds
        np.testing.assert_array_equal(replica.outer, four[0].outer)
    assert len({state for _, state in rounds}) == len(rounds)


@pytest.mark.parametrize(
    ("settings", "steps", "rate"),
    [
        (strategy_settings("sync", outer=OuterSettings("adamw", learning_rate=0.1)), 150, 0.0),
        (strategy_settings("cocktail", outer=OuterSettings("sgd", learning_rate=0.005)), 400, 0.0),
        (strategy_settings("diloco", interval=10), 300, 0.02),
        (strategy_settings("streaming", interval=12, delay=3), 360, 0.02),
        (strategy_settings("sparse", interval=10), 600, 0.01),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_strategy_finds_the_minimum_through_its_own_codec(
    settings: StrategySettings, steps: int, rate: float
) -> None:
    fragments = (4000,) if settings.fragments == 1 else (1000, 2000, 1000)
    four = trained(settings, noisy_gradient, steps, initial(4000), fragments, rate)
    before = float(np.mean((initial(4000) - 1) ** 2))
    after = float(np.mean((four[0].outer[-1] - 1) ** 2))
    assert after < before / 4, f"mean squared distance {before:.3f} -> {after:.3f}"


def test_a_lone_peer_that_goes_ahead_loses_nothing_by_a_lossy_preset() -> None:
    """What was left out stays in the local parameters, so that they are those of training alone."""
    settings = strategy_settings("sparse", interval=3, feedback=1.0, ahead=1.0)
    alone = initial()
    for step in range(12):
        alone -= np.float32(RATE) * noisy_gradient(0, step, alone)
    spec = spec_of(settings, (COUNT,))
    [replica] = replicas(settings, spec, initial(), 1, RATE)
    train(LocalGroup(spec, peers(1)), [replica], noisy_gradient, 12)
    np.testing.assert_allclose(replica.live[-1], alone, atol=1e-5)
    assert np.abs(replica.outer[-1] - alone).max() > 0.1
