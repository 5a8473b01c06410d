"""What a lost round costs: nothing that replicas share moves, and nobody's work is lost."""

from itertools import pairwise

import numpy as np
import pytest
from training.local_exchange import peers
from training.replicas import Replica, dyadic_gradient, noisy_gradient, replicas, spec_of, train

from shoal.compression.presets import preset
from shoal.compression.update_codec import Values
from shoal.node.training.local_exchange import LocalGroup
from shoal.node.training.optimizers.outer import OuterSettings
from shoal.node.training.strategies.outer_loop import RoundApplied, RoundLost
from shoal.node.training.strategies.settings import StrategySettings, strategy_settings
from shoal.swarm.rounds.exchange import Outcome, seed_of

COUNT = 5000
PLAIN = OuterSettings("sgd", learning_rate=1.0)
RATE = 0.125


def start() -> Values:
    return np.random.default_rng(5).integers(-8, 9, COUNT).astype(np.float32)


def pair(settings: StrategySettings, skipped: tuple[int, ...]) -> tuple[LocalGroup, list[Replica]]:
    spec = spec_of(settings, (COUNT,))
    return LocalGroup(spec, peers(2), skipped), replicas(settings, spec, start(), 2, RATE)


def decoded(group: LocalGroup, outcome: Outcome) -> Values:
    codec, bounds = preset(group.spec.preset), group.spec.sharding(0).bounds()
    return np.concatenate(
        [codec.decode(outcome.aggregates[i], b - a, seed_of(outcome.round, 0, i)) for i, (a, b) in enumerate(bounds)]
    )


def test_the_outer_parameters_stand_still_and_the_next_round_holds_the_work_of_both() -> None:
    group, two = pair(strategy_settings("diloco", interval=3, outer=PLAIN), skipped=(0,))
    train(group, two, dyadic_gradient, 6)
    for replica in two:
        assert [type(report) for report in replica.reports] == [RoundLost, RoundApplied]
        np.testing.assert_array_equal(replica.outer[4], start())  # after the lost round nothing has moved
        assert not np.array_equal(replica.live[3], start())  # the peer's own copy went on
    local = np.stack([start(), start()])
    for step in range(6):
        for peer in range(2):
            local[peer] -= np.float32(RATE) * dyadic_gradient(peer, step, local[peer])
    for replica in two:
        np.testing.assert_array_equal(replica.outer[5], local.mean(axis=0))
        np.testing.assert_array_equal(replica.live[5], local.mean(axis=0))
    assert group.outcomes[0].contributors == tuple((peer, 6) for peer in peers(2))  # the tokens of both rounds


@pytest.mark.parametrize("name", ["sync", "cocktail"])
def test_the_gradient_of_a_lost_round_is_averaged_into_the_next(name: str) -> None:
    settings = strategy_settings(name, preset="none", outer=OuterSettings("sgd", learning_rate=RATE))
    group, two = pair(settings, skipped=(1,))
    train(group, two, dyadic_gradient, 6)
    delay = settings.delay
    # What round r is computed on: without delay the parameters after round r - 1, with one those before it.
    params = [start(), *two[0].live]
    gradients = [np.mean([dyadic_gradient(p, step, params[step]) for p in range(2)], axis=0) for step in range(6)]
    expected = [gradients[0], (gradients[1] + gradients[2]) / 2, *gradients[3:]][: 5 - delay]
    assert [outcome.round for outcome in group.outcomes][: 5 - delay] == [0, 2, 3, 4, 5][: 5 - delay]
    for outcome, mean in zip(group.outcomes, expected, strict=False):
        np.testing.assert_array_equal(decoded(group, outcome), mean)
    assert group.outcomes[1].contributors == tuple((peer, 2) for peer in peers(2))
    np.testing.assert_array_equal(two[0].live, two[1].live)
    moved = [not np.array_equal(a, b) for a, b in pairwise(params)]
    assert moved == ([True, False, True, True, True, True] if delay == 0 else [False, True, False, True, True, True])


def test_what_the_encoder_left_out_is_as_if_the_lost_payload_had_never_been_made() -> None:
    """sent + residual == all work, whatever was lost on the way."""
    settings = strategy_settings("sparse", interval=2, feedback=1.0, outer=PLAIN)
    for skipped in ((), (1,), (1, 3), (0, 2)):
        group, two = pair(settings, skipped)
        constant = np.random.default_rng(1).standard_normal(COUNT).astype(np.float32)
        train(group, two, lambda *_: constant, 10)  # noqa: B023
        assert sum(isinstance(report, RoundApplied) for report in two[0].reports) == 5 - len(skipped)
        sent = np.zeros(COUNT, np.float64)
        for replica in two[:1]:
            state = replica.strategy.state()
            residual = np.asarray(state["residual.0"])
            reducers = sum_of_reducers(group)
            sent = replica.strategy.outer.values.astype(np.float64)
            np.testing.assert_allclose(start() - sent + residual + reducers, 10 * RATE * constant, atol=2e-5)


def sum_of_reducers(group: LocalGroup) -> Values:
    return np.concatenate([group.feedback(0, shard).residual for shard in range(len(group.spec.sharding(0).bounds()))])


def test_without_rounds_a_peer_stops_stepping_and_goes_on_when_one_succeeds() -> None:
    group, two = pair(strategy_settings("diloco", interval=2, outer=PLAIN), skipped=(1, 2, 3, 4))
    train(group, two, noisy_gradient, 8)
    for replica in two:
        kinds = [(type(report), getattr(report, "stalled", False)) for report in replica.reports]
        assert kinds == [
            (RoundApplied, False),  # step 2
            (RoundLost, False),  # step 4
            (RoundLost, True),  # step 6: from here no step before a round succeeds
            (RoundLost, True),
            (RoundLost, True),
            (RoundApplied, False),  # still step 6
            (RoundApplied, False),  # step 8
        ]
        assert replica.strategy.step == 8
    np.testing.assert_array_equal(two[0].live[5], two[0].outer[5])
    assert two[0].applied() == two[1].applied()
    # Offered again and again without a step between, the same work counts once.
    assert [tokens for _, tokens in group.outcomes[1].contributors] == [4, 4]


@pytest.mark.parametrize(("name", "steps"), [("sync", (1, 2)), ("cocktail", (1, 2, 3))])
def test_a_stalled_peer_offers_its_gradients_again_and_counts_none_twice(name: str, steps: tuple[int, ...]) -> None:
    settings = strategy_settings(name, preset="none", outer=OuterSettings("sgd", learning_rate=RATE))
    group, two = pair(settings, skipped=(1, 2, 3))
    train(group, two, dyadic_gradient, 5)
    params = [start(), *two[0].live]
    lost = [np.mean([dyadic_gradient(p, step, params[step]) for p in range(2)], axis=0) for step in steps]
    assert group.outcomes[1].round == 4
    np.testing.assert_allclose(decoded(group, group.outcomes[1]), np.mean(lost, axis=0), atol=1e-6)
    assert [tokens for _, tokens in group.outcomes[1].contributors] == [len(steps)] * 2


def test_a_peer_that_was_out_of_step_takes_what_it_missed_and_goes_on_in_step() -> None:
    settings = strategy_settings("diloco", interval=2)
    group, (first, second) = pair(settings, ())
    group.leave(peers(2)[1])
    train(group, [first], noisy_gradient, 6)
    group.join(peers(2)[1])
    train(group, [second], noisy_gradient, 2)  # its offer of round 0 is refused: the group is at round 3
    np.testing.assert_array_equal(second.live[-1], first.outer[-1])
    assert (second.strategy.round, second.strategy.step) == (3, 6)
    train(group, [first, second], noisy_gradient, 4)
    assert first.applied()[3:] == second.applied()
    np.testing.assert_array_equal(first.live[-1], second.live[-1])
