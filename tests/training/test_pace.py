from itertools import pairwise

import numpy as np
import pytest

from shoal.compression.presets import PRESETS
from shoal.node.training.strategies.pace import (
    LADDER,
    LONGEST,
    PAYLOAD_BITS,
    TARGET,
    chosen_pace,
    density,
    sent_bits,
    utilisation,
)

NOVELS = 6_856_448  # parameters of novels-6m


@pytest.mark.parametrize("name", PRESETS)
def test_the_bits_that_the_plan_counts_with_are_those_of_the_codec(name: str) -> None:
    values = np.random.default_rng(0).standard_normal(1 << 19).astype(np.float32)
    measured = len(PRESETS[name].encode(values)) * 8 / len(values)
    assert measured == pytest.approx(PAYLOAD_BITS[name], rel=0.02)


def test_a_fast_link_sends_everything_and_a_slow_one_less_and_less_often() -> None:
    ladder = [name for name, _ in LADDER]
    paces = [chosen_pace(NOVELS, 0.5, bits) for bits in (1e12, 1e9, 2e8, 5e7, 1e7, 1e6, 1e5)]
    for faster, slower in pairwise(paces):
        assert ladder.index(faster.preset) <= ladder.index(slower.preset)
        assert faster.sent_bits >= slower.sent_bits
    assert paces[0].preset == "none"
    assert paces[-1].preset == "sparse"
    assert paces[-1].density == 1 / 64


@pytest.mark.parametrize("parameters", [10_000, NOVELS, 10**9])
@pytest.mark.parametrize("step_s", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("uplink_bit_s", [1e6, 1e7, 1e9])
@pytest.mark.parametrize(("fragments", "delay"), [(1, 0), (3, 5)])
def test_the_target_is_reached_with_the_shortest_interval_or_nothing_could(
    parameters: int, step_s: float, uplink_bit_s: float, fragments: int, delay: int
) -> None:
    pace = chosen_pace(parameters, step_s, uplink_bit_s, fragments=fragments, delay=delay)
    link = parameters, step_s, uplink_bit_s
    assert pace.utilisation == pytest.approx(utilisation(*link, pace.interval, pace.preset, fragments, delay))
    if pace.utilisation < TARGET:
        assert (pace.preset, pace.interval) == (LADDER[-1][0], LONGEST)
    elif pace.interval > max(1, fragments, fragments * delay):
        assert utilisation(*link, pace.interval - 1, pace.preset, fragments, delay) < TARGET
    assert pace.interval >= max(1, fragments * delay)


def test_what_the_issue_asks_for_is_in_reach_of_sparse_at_ten_megabits() -> None:
    assert sent_bits(NOVELS, "sparse") / NOVELS <= 0.30
    assert utilisation(NOVELS, 0.5, 1e7, 30, "sparse", latency_s=0.5) >= 0.9


def test_what_the_user_fixed_is_kept() -> None:
    assert chosen_pace(NOVELS, 0.5, 1e7, preset="int8").preset == "int8"
    fixed = chosen_pace(NOVELS, 0.5, 1e7, interval=7)
    assert fixed.interval == 7
    assert fixed.preset == "sparse"  # nothing milder keeps the device busy
    assert chosen_pace(NOVELS, 0.5, 1e12, interval=30).preset == "none"


@pytest.mark.parametrize(("parameters", "step_s", "uplink"), [(0, 1.0, 1e6), (10, 0.0, 1e6), (10, 1.0, 0.0)])
def test_a_link_or_a_model_of_nothing_is_refused(parameters: int, step_s: float, uplink: float) -> None:
    with pytest.raises(ValueError, match="above zero"):
        chosen_pace(parameters, step_s, uplink)


def test_density_is_the_share_of_values_that_are_sent() -> None:
    assert [density(name) for name in ("none", "fp4", "sparse")] == [1, 1, 1 / 64]
    assert density("cocktail") == pytest.approx(0.02)
