"""Components of KV blocks as whole numbers of steps, and those as symbols of the entropy coder.

The step of a token is 2^(quarters / 4), finer for the tokens that end the cache: they are read most.
A number too rare for its table is an escape, and travels beside the stream as a plain integer of up to 32 bits.

Shape letters: B chunks, L layers, T tokens of a chunk, C channels.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .acceleration import wants_numba
from .bit_fields import pack_fields, unpack_fields
from .byte_reader import ByteReader
from .errors import MalformedPayload
from .kv_profile import ESCAPE, LARGEST_SYMBOL, ZERO, Floats, KvProfile

FINE_QUARTERS = 5
LARGEST_NUMBER = float(1 << 30)
FIELD_BITS = 32

Symbols = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """quarters: of the step of most tokens; fine_tokens: how many at the end of the chunk have the finer one."""

    quarters: int
    tokens: int
    fine_tokens: int = 0

    @property
    def token_quarters(self) -> Numbers:
        quarters = np.full(self.tokens, self.quarters, np.int64)
        if self.fine_tokens:
            quarters[-self.fine_tokens :] -= FINE_QUARTERS
        return quarters

    @property
    def steps(self) -> Floats:
        return np.exp2(self.token_quarters / 4).astype(np.float32)


def to_symbols(
    profile: KvProfile, components: Floats, plan: StepPlan, accelerate: bool | None = None
) -> tuple[Symbols, list[Numbers]] | None:
    """components: (2, L, B * T, C). returns: (B, 2 L T C) symbols and each chunk's escaped numbers, in order.

    None when a number is beyond 2^30 or not finite: such a block is not for this codec.
    """
    layers, channels = components.shape[1], components.shape[3]
    chunks = components.shape[2] // plan.tokens
    limits = profile.limits.astype(np.float32)[profile.contexts(plan.token_quarters)]
    scales = np.float32(1) / plan.steps
    symbols = np.empty((chunks, 2 * layers, plan.tokens, channels), np.uint8)
    if wants_numba(accelerate):
        from . import kv_numba

        for kind in range(2):
            kv_numba.quantise(components[kind], scales, limits[kind], plan.tokens, kind * layers, symbols)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = np.rint(_by_chunk(components, plan.tokens) * scales[:, None])
            outside = ~(np.abs(scaled) <= limits.reshape(1, 2 * layers, plan.tokens, channels))
            scaled += np.float32(ZERO)
            scaled[outside] = ESCAPE
        np.copyto(symbols, scaled, casting="unsafe")
    flat = symbols.reshape(chunks, -1)
    escapes = [np.empty(0, np.int64)] * chunks
    for chunk, places in _escaped_places(flat).items():
        layer, token, channel = np.unravel_index(places, symbols.shape[1:])
        picked = components[layer // layers, layer % layers, chunk * plan.tokens + token, channel]
        with np.errstate(over="ignore", invalid="ignore"):
            numbers = np.rint(picked * scales[token])
        if not (np.abs(numbers) <= LARGEST_NUMBER).all():
            return None
        escapes[chunk] = numbers.astype(np.int64)
    return flat, escapes


def _escaped_places(flat: Symbols) -> dict[int, Numbers]:
    """Where each chunk that has escapes has them."""
    rows = np.flatnonzero((flat == ESCAPE).any(axis=1))
    return {int(row): np.flatnonzero(flat[row] == ESCAPE) for row in rows}


def from_symbols(
    symbols: Symbols,
    escapes: list[Numbers],
    plan: StepPlan,
    layers: int,
    channels: int,
    accelerate: bool | None = None,
) -> Floats:
    """(B, 2 L T C) symbols as (2, L, B * T, C) components."""
    if wants_numba(accelerate):
        from . import kv_numba

        components = np.empty((2, layers, len(symbols) * plan.tokens, channels), np.float32)
        shaped = symbols.reshape(len(symbols), 2 * layers, plan.tokens, channels)
        for kind in range(2):
            kv_numba.dequantise(shaped, plan.steps, kind * layers, components[kind])
    else:
        components = from_numbers(symbols.astype(np.float32) - np.float32(ZERO), plan, layers, channels)
    for chunk, numbers in enumerate(escapes):
        if len(numbers):
            places = np.flatnonzero(symbols[chunk] == ESCAPE)
            layer, token, channel = np.unravel_index(places, (2 * layers, plan.tokens, channels))
            values = numbers.astype(np.float32) * plan.steps[token]
            components[layer // layers, layer % layers, chunk * plan.tokens + token, channel] = values
    return components


def from_numbers(numbers: npt.NDArray[np.integer] | Floats, plan: StepPlan, layers: int, channels: int) -> Floats:
    """(B, 2 L T C) whole steps as (2, L, B * T, C) components."""
    chunks = len(numbers)
    shaped = numbers.reshape(chunks, 2, layers, plan.tokens, channels).astype(np.float32)
    shaped *= plan.steps[:, None]
    return np.ascontiguousarray(shaped.transpose(1, 2, 0, 3, 4)).reshape(2, layers, -1, channels)


def pack_escapes(numbers: Numbers) -> bytes:
    """The width of the widest as u8, then all zigzag coded at that width."""
    if not len(numbers):
        return b""
    folded = np.where(numbers < 0, -2 * numbers - 1, 2 * numbers)
    width = int(folded.max()).bit_length()
    return bytes([width]) + pack_fields(folded, np.full(len(folded), width))


def parse_escapes(reader: ByteReader, count: int) -> Numbers:
    """raises: MalformedPayload"""
    if not count:
        return np.empty(0, np.int64)
    width = reader.number("B")
    if not 1 <= width <= FIELD_BITS:
        raise MalformedPayload("escaped numbers of a width that no encoder takes")
    folded = unpack_fields(reader, np.full(count, width))
    return np.where(folded & 1, -(folded + 1) // 2, folded // 2)


def split_thirds(numbers: npt.NDArray[np.int16]) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """number = 3 * base + place with place in -1..1."""
    base = (numbers + 1) // 3
    return base, numbers - 3 * base


def _by_chunk(components: Floats, tokens: int) -> Floats:
    kinds, layers, total, channels = components.shape
    split = components.reshape(kinds * layers, total // tokens, tokens, channels)
    return split.transpose(1, 0, 2, 3)


def as_numbers(symbols: Symbols) -> npt.NDArray[np.int16]:
    """Symbols but the escape as whole numbers of steps."""
    return symbols.astype(np.int16) - np.int16(LARGEST_SYMBOL)
