"""Components of KV blocks as whole numbers of steps, and those as symbols of the entropy coder.

The step of a token is 2^(quarters / 4), finer for the tokens that end the cache: they are read most.
A number too rare for its table is an escape, and travels beside the stream as a plain integer of up to 32 bits.

Shape letters as in `kv_profile`: B chunks, S tensors (layer, part), T tokens, K kinds of tokens (those with the step of
most, those with the finer one), N symbols of a chunk in the order of tensor, token, channel.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from .acceleration import wants_numba
from .kv_block import KvBlock, KvShape, Stored
from .kv_escapes import Escapes
from .kv_profile import ESCAPE, ZERO, Floats, KvProfile
from .kv_transform import LayerTransform, window_chunks

FINE_QUARTERS = 5
LARGEST_NUMBER = float(1 << 30)

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


@dataclass(frozen=True, slots=True, eq=False)
class SymbolPlan:
    """What all chunks with one plan share.

    shape_stc: of a chunk's numbers; contexts: (N,); kinds_t: each token's row in limits_skc, the largest magnitude
    that is no escape
    """

    steps: StepPlan
    shape_stc: tuple[int, int, int]
    contexts: npt.NDArray[np.uint16]
    kinds_t: npt.NDArray[np.uint8]
    limits_skc: Floats
    steps_t: Floats


@lru_cache(maxsize=4)
def symbol_plan(profile: KvProfile, plan: StepPlan) -> SymbolPlan:
    shape = profile.tensors, plan.tokens, profile.part_channels
    contexts = profile.contexts(plan.token_quarters)
    found, firsts, kinds = np.unique(-plan.token_quarters, return_index=True, return_inverse=True)
    by_kind = contexts[:, :, firsts].reshape(shape[0], len(found), shape[2])
    limits = profile.limits[by_kind].astype(np.float32)
    return SymbolPlan(plan, shape, contexts.ravel(), kinds.astype(np.uint8), limits, plan.steps)


def to_symbols(
    profile: KvProfile, offsets: Floats, block: KvBlock, plan: SymbolPlan, accelerate: bool | None = None
) -> tuple[Symbols, Escapes] | None:
    """(B, N) symbols of a block of whole chunks, and the numbers that are escapes there.

    None when a number is beyond 2^30 or not finite: such a block is not for this codec.
    """
    tokens = plan.steps.tokens
    chunks = block.shape.tokens // tokens
    at_once = min(chunks, window_chunks(profile, tokens))
    symbols = np.empty((chunks, *plan.shape_stc), np.uint8)
    transform = LayerTransform(profile, offsets, at_once * tokens, block.shape.dtype, accelerate)
    found = [(np.empty(0, np.int64),) * 2 + (np.empty(0, np.float32),)]
    for first in range(0, chunks, at_once):
        window = symbols[first : first + at_once]
        part = block.part(first * tokens, len(window) * tokens)
        transform.move(part.shape)
        for layer in range(profile.layers):
            for kind, rows in enumerate(transform.forward(layer, part.keys[layer], part.values[layer])):
                tensor = profile.parts * layer + kind
                row, channel = _quantise(rows, plan, tensor, window[:, tensor], accelerate)
                if len(row):
                    chunk, token = np.divmod(row, tokens)
                    place = (tensor * tokens + token) * profile.part_channels + channel
                    with np.errstate(over="ignore", invalid="ignore"):
                        number = np.rint(rows[row, channel] * (np.float32(1) / plan.steps_t[token]))
                    found.append((first + chunk, place, number))
    chunk, place, number = (np.concatenate(column) for column in zip(*found, strict=True))
    if not (np.abs(number) <= LARGEST_NUMBER).all():
        return None
    order = np.lexsort((place, chunk))
    return symbols.reshape(chunks, -1), Escapes(chunk[order], place[order], number[order].astype(np.int64))


def _quantise(
    rows: Floats, plan: SymbolPlan, tensor: int, out_btc: Symbols, accelerate: bool | None
) -> tuple[Numbers, Numbers]:
    """Rows and channels of the escapes."""
    scales_t, limits_kc = np.float32(1) / plan.steps_t, plan.limits_skc[tensor]
    if wants_numba(accelerate):
        from . import kv_numba

        counts = np.empty(len(rows), np.uint32)
        kv_numba.quantise(rows, scales_t, plan.kinds_t, limits_kc, out_btc, counts)
        crowded = np.flatnonzero(counts)
        row, channel = np.nonzero(out_btc[crowded // len(scales_t), crowded % len(scales_t)] == ESCAPE)
        return crowded[row], channel
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = rows.reshape(out_btc.shape) * scales_t[:, None]
        np.rint(scaled, out=scaled)
        outside = ~(np.abs(scaled) <= (limits_kc[plan.kinds_t] if len(limits_kc) > 1 else limits_kc))
    places = np.flatnonzero(outside)
    scaled += np.float32(ZERO)
    scaled.ravel()[places] = ESCAPE
    np.copyto(out_btc, scaled, casting="unsafe")
    return np.divmod(places, rows.shape[1])


def from_numbers(
    numbers_bn: npt.NDArray[np.integer],
    zero: int,
    escapes: Escapes,
    profile: KvProfile,
    offsets: Floats,
    plan: SymbolPlan,
    window: KvShape,
    keys: Stored,
    values: Stored,
    accelerate: bool | None = None,
) -> None:
    """Write what B chunks in a row stand for into keys and values, both (L, B * T, H, D).

    zero: what stands for 0, but where there are escapes
    """
    tokens = plan.steps.tokens
    tensors = numbers_bn.reshape(len(numbers_bn), *plan.shape_stc)
    at_once = min(len(tensors), window_chunks(profile, tokens))
    transform = LayerTransform(profile, offsets, at_once * tokens, window.dtype, accelerate)
    by_tensor = escapes.by_tensor(plan.shape_stc, at_once)
    for first in range(0, len(tensors), at_once):
        part = tensors[first : first + at_once]
        cut = slice(first * tokens, (first + len(part)) * tokens)
        transform.move(window.part(cut.start, cut.stop - cut.start))
        for layer in range(profile.layers):
            depths = []
            for kind, rows in enumerate(transform.components):
                numbers = part[:, profile.parts * layer + kind]
                depths.append(_dequantise(numbers, zero, plan.steps_t, profile.group_width, rows, accelerate))
                here = next(by_tensor)
                if len(here.rows):
                    rows[here.rows, here.channels] = here.numbers * plan.steps_t[here.rows % tokens]
            transform.inverse(layer, depths, keys[layer, cut], values[layer, cut])


def _dequantise(
    numbers_btc: npt.NDArray[np.integer],
    zero: int,
    steps_t: Floats,
    group_width: int,
    rows: Floats,
    accelerate: bool | None,
) -> int:
    """How many of the first channels of each group hold all that is not zero."""
    if wants_numba(accelerate):
        from . import kv_numba

        return kv_numba.dequantise(numbers_btc, zero, steps_t, group_width, rows)
    shaped = rows.reshape(numbers_btc.shape)
    np.subtract(numbers_btc, np.float32(zero), out=shaped, casting="unsafe", dtype=np.float32)
    shaped *= steps_t[:, None]
    used = np.flatnonzero((numbers_btc != zero).any(axis=(0, 1)))
    return int((used % group_width).max(initial=-1)) + 1
