"""A strategy that is cut at any step and restored goes on with the same bits."""

import numpy as np
import pytest
from training.local_exchange import peers
from training.replicas import Replica, noisy_gradient, replicas, spec_of, train

from shoal.compression.update_codec import Values
from shoal.node.training.local_exchange import LocalGroup
from shoal.node.training.optimizers.outer import OuterSettings
from shoal.node.training.strategies.outer_parameters import OuterParameters, part_of
from shoal.node.training.strategies.settings import STRATEGIES, StrategySettings, strategy_settings
from shoal.node.training.strategies.strategy import Strategy

SIZES = (4096, 3000, 1904)
COUNT = sum(SIZES)
STEPS = 10
SETTINGS = [
    strategy_settings("sync"),
    strategy_settings("cocktail"),
    strategy_settings("diloco", interval=4, preset="int8"),
    strategy_settings("streaming", interval=6, delay=2),
    strategy_settings("sparse", interval=3),
]


def start() -> Values:
    return np.random.default_rng(3).standard_normal(COUNT).astype(np.float32)


def pair(settings: StrategySettings, skipped: tuple[int, ...] = ()) -> tuple[LocalGroup, list[Replica]]:
    spec = spec_of(settings, SIZES if settings.fragments == 3 else (COUNT,))
    return LocalGroup(spec, peers(2), skipped), replicas(settings, spec, start(), 2, 0.05)


@pytest.mark.parametrize("skipped", [(), (1, 3)], ids=["all rounds", "two rounds lost"])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.name)
def test_cut_at_any_step_and_restored_a_strategy_goes_on_with_the_same_bits(
    settings: StrategySettings, skipped: tuple[int, ...]
) -> None:
    group, unbroken = pair(settings, skipped)
    train(group, unbroken, noisy_gradient, STEPS)
    for cut in range(1, STEPS):
        group, before = pair(settings, skipped)
        train(group, before, noisy_gradient, cut)
        states = [replica.strategy.state() for replica in before]
        after = replicas(settings, group.spec, np.zeros(COUNT, np.float32), 2, 0.05)
        for replica, old, state in zip(after, before, states, strict=True):
            replica.strategy.restore(state)
            replica.parameters.values = old.parameters.values.copy()
        train(group, after, noisy_gradient, STEPS - cut)
        for replica, whole in zip(after, unbroken, strict=True):
            np.testing.assert_array_equal(replica.live, whole.live[cut:], err_msg=f"cut after step {cut}")
            np.testing.assert_array_equal(replica.outer, whole.outer[cut:], err_msg=f"cut after step {cut}")
            ended, expected = replica.strategy.state(), whole.strategy.state()
            assert {*ended} ^ {*expected} <= {"pending.contributors", "pending.aggregate.0"}  # there or under way
            for name in ended.keys() & expected.keys():
                np.testing.assert_array_equal(ended[name], expected[name], err_msg=name)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.name)
def test_a_state_is_plain_arrays_and_numbers_and_its_outer_part_is_the_same_everywhere(
    settings: StrategySettings,
) -> None:
    group, two = pair(settings)
    train(group, two, noisy_gradient, 12)
    first, second = (replica.strategy.state() for replica in two)
    assert all(isinstance(value, np.ndarray | int | float) for value in first.values())
    assert all(not isinstance(value, np.ndarray) or value.dtype != object for value in first.values())
    for name, value in part_of(first, "outer.").items():
        np.testing.assert_array_equal(value, second[f"outer.{name}"], err_msg=name)
    own = [name for name in first if name.startswith("residual")]
    assert all(not np.array_equal(first[name], second[name]) for name in own)
    assert bool(own) == bool(settings.feedback)


def test_an_outer_state_and_the_log_bring_a_late_joiner_to_the_same_bits() -> None:
    settings = SETTINGS[3]
    group, two = pair(settings)
    train(group, two, noisy_gradient, 6)
    checkpoint, known = part_of(two[0].strategy.state(), "outer."), len(two[0].applied())
    train(group, two, noisy_gradient, 6)
    joiner = OuterParameters(settings.outer, group.spec, np.zeros(COUNT, np.float32))
    joiner.restore(checkpoint)
    applied = two[0].applied()
    for outcome, (round_, state) in zip([*group.outcomes][known:], applied[known:], strict=False):
        joiner.apply(outcome)
        assert (outcome.round, joiner.hash()) == (round_, state)
    assert joiner.rounds == len(applied) > known


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: {name: value for name, value in state.items() if name != "outer.values"},
        lambda state: state | {"outer.values": np.zeros(5, np.float32)},
        lambda state: state | {"outer.values": np.full(COUNT, np.nan, np.float32)},
        lambda state: {name: value for name, value in state.items() if name != "outer.optimizer.momentum"},
        lambda state: state | {"outer.optimizer.second": np.zeros(COUNT, np.float32)},
        lambda state: {name: value for name, value in state.items() if name != "next_offer"},
        lambda state: {name: value for name, value in state.items() if name != "tokens.1"},
        lambda state: state | {"residual.7": np.zeros(5, np.float32)},
        lambda state: {name: value for name, value in state.items() if name != "pending.due"},
    ],
)
def test_the_state_of_another_run_is_refused_and_changes_nothing(damage: object) -> None:
    settings = SETTINGS[3]
    group, two = pair(settings)
    train(group, two, noisy_gradient, 10)
    state = two[0].strategy.state()
    assert "pending.due" in state
    assert callable(damage)
    other = Strategy(settings, group.spec, start())
    before = other.outer.hash()
    with pytest.raises(ValueError, match=r"state|parameters|feedback"):
        other.restore(damage(state))
    assert (other.step, other.outer.hash()) == (0, before)


@pytest.mark.parametrize("name", STRATEGIES)
def test_canonical_settings_name_every_setting_and_differ_when_one_does(name: str) -> None:
    settings = strategy_settings(name)
    changed = strategy_settings(name, outer=OuterSettings("sgd", learning_rate=0.123))
    assert settings.canonical() != changed.canonical()
    assert '"schedule"' in settings.canonical()
    assert settings.canonical() == strategy_settings(name).canonical()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"interval": 0}, "interval"),
        ({"fragments": 31}, "fragments"),
        ({"delay": 31}, "delay"),
        ({"merge": 1.5}, "merge"),
        ({"feedback": -0.1}, "feedback"),
        ({"ahead": 2.0}, "ahead"),
        ({"ahead": 1.0, "delay": 1}, "ahead"),
        ({"preset": "zip"}, "zip"),
        ({"colour": 1}, "colour"),
        ({"interval": "often"}, "interval"),
        ({"outer": OuterSettings(learning_rate=0.0)}, "learning_rate"),
        ({"update": "gradient"}, "interval"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(changes: dict[str, object], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        strategy_settings("diloco", **changes)
