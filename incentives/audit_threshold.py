"""How far apart two honest computations of one chunk may lie, and what a distance therefore says.

The distance of a chunk is the root mean square over its positions of |a - b| / |b - x|: what the two outputs differ by,
relative to what the span adds to its input. Positions that the last chunk of a session lacks count as equal. Honest
machines differ because sums are taken in another order (alone or in a batch, a prompt at once or token by token,
another processor); `calibrated` sets the limits from measured honest distances with a margin. Each class of computation
has limits of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import isfinite

MARGIN = 1.25  # of the largest honest distance measured; see docs/measures.md for what lies on either side
GROSS = 4.0  # times the limit: no rounding, in any order
FEWEST = 100  # chunks that a calibration needs


class Finding(IntEnum):
    """What one audited chunk shows. The order is that of suspicion."""

    SOUND = 0
    FAR = 1  # beyond the limit
    GROSS = 2  # several times beyond it, or not a number


@dataclass(frozen=True, slots=True)
class Threshold:
    """limit: distance; chunks: honest ones that it rests on; largest: distance among them"""

    limit: float
    chunks: int
    largest: float

    def finding(self, distance: float) -> Finding:
        if not isfinite(distance) or distance < 0 or distance > GROSS * self.limit:
            return Finding.GROSS
        return Finding.FAR if distance > self.limit else Finding.SOUND


def calibrated(honest: Sequence[float], floor: float, margin: float = MARGIN) -> Threshold:
    """floor: what the class's rounding alone may cost, `rounding_floor`; it counts where all measured ones are equal

    raises: ValueError for too few chunks, or distances that are not finite
    """
    if len(honest) < FEWEST:
        raise ValueError(f"{len(honest)} honest chunks are too few to calibrate with; at least {FEWEST}")
    largest = max(honest)
    if not all(isfinite(d) and d >= 0 for d in honest):
        raise ValueError("an honest distance that is not finite")
    return Threshold(max(margin * largest, floor), len(honest), largest)


def rounding_floor(dtype: str, wire: str) -> float:
    """Distances below this prove nothing: some 32 roundings of the class's numbers, half a step each.

    raises: ValueError for a dtype without a bound
    """
    steps = {"float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8, "int8": 1 / 254}
    try:
        kept = steps[dtype]
        sent = steps[wire]
    except KeyError as error:
        raise ValueError(f"no rounding is known for {error.args[0]}") from error
    return 32 * kept if kept == sent == 2**-24 else max(kept, sent)
