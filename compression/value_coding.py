"""How the kept values of a sparse update are written: sign and scale, small integers and scale, or a lookup table.

Scales are float32 numbers with four bits of mantissa, sixteen to the octave; a run of them is coded as the highest
and the distances below it. All sums that decide a byte are sums of integers or run in a fixed order, so that every
machine writes the same bytes.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from .byte_reader import ByteReader
from .errors import MalformedPayload
from .hashing import random_words
from .symbol_section import decode_symbols, encode_symbols

Rounding = Literal["nearest", "stochastic"]
SCALE_SHIFT = 19
LARGEST_SCALE_CODE = (0x7F800000 >> SCALE_SHIFT) - 1
FIXED_POINT_BITS = 40


def scale_values(codes: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    return (codes.astype(np.uint32) << np.uint32(SCALE_SHIFT)).view(np.float32)


def scale_codes(scales: npt.NDArray[np.float64], *, upwards: bool) -> npt.NDArray[np.int64]:
    """The nearest code, or the lowest whose value is not below the scale; zero stays zero."""
    bits = scales.astype(np.float32).view(np.uint32).astype(np.int64)
    step = 1 << SCALE_SHIFT
    codes = (bits + (step - 1 if upwards else step // 2)) >> SCALE_SHIFT
    return np.asarray(np.minimum(codes, LARGEST_SCALE_CODE))


def encode_scales(codes: npt.NDArray[np.int64], accelerate: bool | None = None) -> bytes:
    """Codes more than 254 below the highest (2^-15 of it) become zero."""
    top = int(codes.max(initial=0))
    below = np.where(codes == 0, 255, np.minimum(top - codes, 255)).astype(np.uint8)
    contexts = np.zeros(len(codes), np.uint16)
    return top.to_bytes(2, "little") + encode_symbols(below, contexts, 1, 256, accelerate)


def decode_scales(reader: ByteReader, count: int, accelerate: bool | None = None) -> npt.NDArray[np.float32]:
    """raises: MalformedPayload"""
    top = reader.number("H")
    if top > LARGEST_SCALE_CODE:
        raise MalformedPayload("a scale that is not finite")
    below = decode_symbols(reader, np.zeros(count, np.uint16), 1, 256, accelerate).astype(np.int64)
    return scale_values(np.where((below == 255) | (below > top), 0, top - below))


def group_means(magnitudes: npt.NDArray[np.float32], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Mean of each run of `sizes` magnitudes, summed as integers: exact in any order."""
    if not len(magnitudes):
        return np.zeros(len(sizes))
    exponent = int(np.frexp(magnitudes.max())[1])
    fixed = np.ldexp(magnitudes.astype(np.float64), FIXED_POINT_BITS - exponent).astype(np.int64)
    running = np.concatenate([[0], np.cumsum(fixed)])
    ends = np.cumsum(sizes)
    totals = (running[ends] - running[ends - sizes]).astype(np.float64)
    return np.asarray(np.ldexp(totals / np.maximum(sizes, 1), exponent - FIXED_POINT_BITS))


def group_maxima(magnitudes: npt.NDArray[np.float32], group: int) -> npt.NDArray[np.float32]:
    """Largest of each run of `group` magnitudes; the last run may be short."""
    padded = np.zeros(-(-len(magnitudes) // group) * group, np.float32)
    padded[: len(magnitudes)] = magnitudes
    return np.asarray(padded.reshape(-1, group).max(axis=1))


def ratios_to(values: npt.NDArray[np.float32], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """values / scales, and zero where the scale is zero."""
    ratios = np.zeros_like(values)
    np.divide(values, scales, out=ratios, where=scales > 0)
    return ratios


def to_levels(ratios: npt.NDArray[np.float32], levels: int, rounding: Rounding, seed: int) -> npt.NDArray[np.uint8]:
    """Integers -levels..levels for ratios in [-1, 1], shifted to start at 0.

    stochastic: rounds up with the probability of the fraction, so that the mean is kept
    """
    scaled = np.clip(ratios, -1, 1).astype(np.float64) * levels
    if rounding == "nearest":
        rounded = np.rint(scaled)
    else:
        noise = random_words(seed, np.arange(len(ratios))) * 2.0**-32
        rounded = np.floor(scaled + noise)
    return (rounded + levels).astype(np.uint8)


def from_levels(codes: npt.NDArray[np.uint8], levels: int) -> npt.NDArray[np.float32]:
    return np.asarray((codes.astype(np.float32) - np.float32(levels)) / np.float32(levels))
