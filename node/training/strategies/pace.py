"""How often to exchange and how hard to compress, from the measured uplink: what `auto` in a config becomes."""

import math
from dataclasses import dataclass

from shoal.compression.presets import preset as codec_of
from shoal.compression.sparse_codec import SparseCodec

TARGET = 0.9  # share of the time that goes into inner steps
LONGEST = 500  # inner steps; beyond, replicas drift apart
# From mild to hard. Each is taken as long as its bytes need no more than so many inner steps between two exchanges: a
# shorter interval is worth more than the bits that error feedback sends later anyway. What the latency needs comes on
# top, as no compression shortens it.
LADDER = (("none", 15), ("fp16", 15), ("int8", 30), ("fp4", 50), ("sparse", LONGEST))
PAYLOAD_BITS = {  # per parameter and direction; held against the codecs by a test
    "none": 32.0,
    "fp16": 16.0,
    "int8": 8.01,
    "fp4": 4.01,
    "cocktail": 0.132,
    "sparse": 0.134,
    "sparse2": 0.135,
}


@dataclass(frozen=True, slots=True)
class Pace:
    """interval: H; density: share of the values that are sent; utilisation: expected share of time in inner steps;
    sent_bits: that leave a peer each interval, as trainer and as reducer"""

    interval: int
    preset: str
    density: float
    utilisation: float
    sent_bits: float


def utilisation(
    parameters: int,
    step_s: float,
    uplink_bit_s: float,
    interval: int,
    preset: str,
    fragments: int = 1,
    delay: int = 0,
    latency_s: float = 1.0,
) -> float:
    """Share of the time that goes into inner steps, when each exchange but its first `delay` steps is waited for.

    A peer sends its update once and, as the owner of its share of the shards, the aggregates once to each peer: twice
    the payload in all, for any number of peers. latency_s: of meeting, revealing and hashing, each exchange.
    raises: ValueError for a link, model or step of nothing
    """
    if parameters < 1 or step_s <= 0 or uplink_bit_s <= 0:
        raise ValueError(
            f"a pace for {parameters} parameters, {step_s} s a step and an uplink of {uplink_bit_s} bit/s: "
            "all three must be above zero"
        )
    exchange_s = sent_bits(parameters, preset) / fragments / uplink_bit_s + latency_s
    waiting_s = fragments * max(0.0, exchange_s - delay * step_s)
    return interval * step_s / (interval * step_s + waiting_s)


def chosen_pace(
    parameters: int,
    step_s: float,
    uplink_bit_s: float,
    preset: str | None = None,
    interval: int | None = None,
    fragments: int = 1,
    delay: int = 0,
    latency_s: float = 1.0,
) -> Pace:
    """The mildest compression that keeps the device busy for `TARGET` of the time, with its shortest interval.

    preset, interval: what the user fixed. When nothing reaches the target, the hardest compression and the longest
    interval that are allowed; `utilisation` then says what to expect.
    raises: ValueError
    """
    ladder = LADDER if preset is None else ((preset, LONGEST),)
    link = parameters, step_s, uplink_bit_s
    least = max(1, fragments, delay * fragments)
    for_latency = _steps_needed(utilisation(1, step_s, float("inf"), 1, "none", fragments, delay, latency_s))
    best = ladder[-1][0], interval or LONGEST
    for name, longest in ladder:
        needed = max(least, _steps_needed(utilisation(*link, 1, name, fragments, delay, latency_s)))
        if needed <= (interval or min(LONGEST, longest + for_latency)):
            best = name, interval or needed
            break
    name, steps = best
    expected = utilisation(parameters, step_s, uplink_bit_s, steps, name, fragments, delay, latency_s)
    return Pace(steps, name, density(name), expected, sent_bits(parameters, name))


def _steps_needed(share: float) -> int:
    """The interval that reaches the target, when with an interval of one step this share of the time is inner steps."""
    waiting_steps = 1 / share - 1
    return math.ceil(round(waiting_steps * TARGET / (1 - TARGET), 6))


def sent_bits(parameters: int, preset: str) -> float:
    """raises: ValueError for a preset that there is not"""
    codec_of(preset)
    return 2 * PAYLOAD_BITS[preset] * parameters


def density(preset: str) -> float:
    """Share of the values that an update holds. raises: ValueError"""
    codec = codec_of(preset)
    return float(codec.random * codec.top) if isinstance(codec, SparseCodec) else 1.0
