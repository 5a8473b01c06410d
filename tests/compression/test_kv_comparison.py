"""What rounding explains of a chunk, whatever the level and the profile; what it does not, is another text."""

from dataclasses import replace

import numpy as np
import pytest
from kv_samples import block, coarser, profile

from shoal.compression.kv_bitstream import decode_kv, encode_kv
from shoal.compression.kv_block import KvBlock, from_floats, to_floats
from shoal.compression.kv_comparison import unexplained_distance
from shoal.compression.kv_levels import CHUNK_TOKENS, LEVELS
from shoal.compression.kv_profile import KvProfile


def coded(held: KvBlock, level: str, made: KvProfile) -> KvBlock:
    return decode_kv(encode_kv(held, level, made), held.shape, made)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("quarters", [-12, 0, 8])
def test_rounding_to_any_step_explains_an_honest_chunk_and_no_other(level: str, dtype: str, quarters: int) -> None:
    made = coarser(profile(), quarters)
    mine, others = (block(CHUNK_TOKENS, seed, dtype, 64) for seed in (1, 2))
    step = made.step_quarters(level)
    assert unexplained_distance(mine, coded(mine, level, made), made, step) < 0.02
    assert unexplained_distance(mine, mine, made, step) == 0
    assert unexplained_distance(mine, coded(others, level, made), made, step) > 1


@pytest.mark.parametrize("level", LEVELS)
def test_a_chunk_that_says_nothing_is_one_away(level: str) -> None:
    made = profile()
    mine = block(CHUNK_TOKENS, first_position=64)
    nothing = coded(mine, level, coarser(made, 60))
    assert unexplained_distance(mine, nothing, made, made.step_quarters(level)) == pytest.approx(1, abs=0.01)


def test_a_lie_in_what_the_output_does_not_feel_is_worth_what_it_costs() -> None:
    """A component whose weight is next to nothing is lost by an honest donor too."""
    made = profile()
    deaf = made.forward.copy()
    deaf[:, 0] *= np.float16(1e-4)
    numb = replace(made, forward=deaf)
    mine, others = block(CHUNK_TOKENS, 1, first_position=64), block(CHUNK_TOKENS, 2, first_position=64)
    false_keys = KvBlock(mine.shape, others.keys, mine.values)
    false_values = KvBlock(mine.shape, mine.keys, others.values)
    step = made.step_quarters("default")
    assert unexplained_distance(mine, false_keys, numb, step) == 0
    assert unexplained_distance(mine, false_values, numb, step) > 1


def test_numbers_beyond_measure_are_infinitely_far() -> None:
    made = profile()
    mine = block(CHUNK_TOKENS, dtype="float32", first_position=64)
    huge = to_floats(mine.values, "float32").copy()
    huge[0, 3] = 3e38
    lie = KvBlock(mine.shape, mine.keys, from_floats(huge, "float32"))
    assert unexplained_distance(mine, lie, made, 0) > 1e3
    with pytest.raises(ValueError, match="another shape"):
        unexplained_distance(mine, block(32, dtype="float32"), made, 0)
