"""The `shoal` KV codec: calibrated transform coding in chunks of 64 tokens, each decodable alone.

Layout: `kv_chunk` and, for chunks that come in two parts, `kv_progressive`. A block that is not finite, or that would
not shrink, travels as an exact block instead.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .acceleration import wants_numba
from .container import seal
from .kv_block import KvBlock, KvShape, from_floats, to_floats
from .kv_chunk import BASE, SHIFTED, WHOLE, ParsedChunk, chunk_head, chunk_lanes, shifted_offsets
from .kv_escapes import Escapes, pack_escapes
from .kv_levels import CHUNK_TOKENS
from .kv_lossless import encode_lossless
from .kv_profile import ESCAPE, ZERO, Floats, KvProfile
from .kv_progressive import (
    COARSE_ESCAPE,
    COARSE_ZERO,
    refined_numbers,
    refinement_stream,
    split_symbols,
    with_refinement,
)
from .kv_symbols import StepPlan, SymbolPlan, from_numbers, symbol_plan, to_symbols
from .rans import decode_streams, encode_streams
from .rotary import rotate

# Where more than one number in so many escapes, the profile does not fit and other ways are tried.
CROWDED = 64
# Lanes worked on at once: few for compiled loops, whose arrays then stay in the processor's cache, many for numpy,
# whose operations then are worth their overhead.
CACHED_LANES, WIDE_LANES = 512, 4096


def encode_block(
    block: KvBlock,
    profile: KvProfile,
    step_quarters: int,
    fine_tokens: int = 0,
    *,
    progressive: bool = False,
    accelerate: bool | None = None,
) -> list[bytes]:
    """One payload per chunk of the block. fine_tokens: how many at the block's end have the finer step.

    raises: ValueError when the profile is not for this shape
    """
    if not profile.fits(block.shape):
        raise ValueError("a profile made for another model")
    payloads: list[bytes] = []
    for first, tokens, chunks, fine in _batches(block.shape, fine_tokens, _chunks_at_once(profile, accelerate)):
        part = block.part(first, tokens * chunks)
        plan = symbol_plan(profile, StepPlan(step_quarters, tokens, fine))
        payloads += _encode_batch(part, profile, plan, chunks, progressive=progressive, accelerate=accelerate)
    return payloads


def decode_chunks(
    payloads: Sequence[bytes],
    shapes: Sequence[KvShape],
    profile: KvProfile,
    target: KvBlock,
    *,
    allow_truncated: bool = False,
    accelerate: bool | None = None,
) -> None:
    """Write each chunk to its positions in `target`; those in a row with the same steps are decoded side by side.

    allow_truncated: a progressive chunk cut anywhere behind its base gives the base's quality
    raises: MalformedPayload
    """
    parsed = [ParsedChunk.parse(payload, shape, profile) for payload, shape in zip(payloads, shapes, strict=True)]
    at_once = _chunks_at_once(profile, accelerate)
    runs: list[list[int]] = []
    for index, chunk in enumerate(parsed):
        last = runs[-1] if runs else []
        follows = bool(last) and shapes[last[-1]].first_position + chunk.plan.tokens == shapes[index].first_position
        if follows and len(last) < at_once and chunk.decodes_like(parsed[last[-1]]):
            last.append(index)
        else:
            runs.append([index])
    for run in runs:
        chunks = [parsed[i] for i in run]
        plan = symbol_plan(profile, chunks[0].plan)
        offsets = shifted_offsets(profile, chunks[0].shift)
        window = replace(shapes[run[0]], tokens=len(run) * plan.steps.tokens)
        cut = slice(window.first_position - target.shape.first_position, None)
        into = (window, target.keys[:, cut], target.values[:, cut])
        if chunks[0].kind & BASE:
            numbers = _progressive_numbers(chunks, plan, profile, allow_truncated, accelerate)
            from_numbers(numbers, 0, Escapes.of_chunks([], []), profile, offsets, plan, *into, accelerate)
        else:
            lanes = chunk_lanes(profile, plan.steps.tokens)
            symbols = decode_streams([m.stream for m in chunks], plan.contexts, profile.table, lanes, accelerate)
            places = [np.flatnonzero(row == ESCAPE) for row in symbols]
            escaped = [chunk.escaped(len(row)) for chunk, row in zip(chunks, places, strict=True)]
            from_numbers(symbols, ZERO, Escapes.of_chunks(places, escaped), profile, offsets, plan, *into, accelerate)


def _chunks_at_once(profile: KvProfile, accelerate: bool | None) -> int:
    lanes = CACHED_LANES if wants_numba(accelerate) else WIDE_LANES
    return max(1, lanes // chunk_lanes(profile, CHUNK_TOKENS))


def _batches(shape: KvShape, fine_tokens: int, at_once: int) -> list[tuple[int, int, int, int]]:
    """(first token, tokens of a chunk, chunks, fine tokens): equal chunks together, those with fine tokens alone."""
    batches: list[tuple[int, int, int, int]] = []
    first = 0
    for chunk in shape.chunks():
        left_behind = shape.tokens - first - chunk.tokens
        fine = min(max(fine_tokens - left_behind, 0), chunk.tokens)
        if batches and batches[-1][1::2] == (chunk.tokens, fine) and batches[-1][2] < at_once:
            start, tokens, chunks, _ = batches[-1]
            batches[-1] = (start, tokens, chunks + 1, fine)
        else:
            batches.append((first, chunk.tokens, 1, fine))
        first += chunk.tokens
    return batches


def _encode_batch(
    part: KvBlock, profile: KvProfile, plan: SymbolPlan, chunks: int, *, progressive: bool, accelerate: bool | None
) -> list[bytes]:
    coded = to_symbols(profile, profile.offsets, part, plan, accelerate)
    exact = [part.part(i * plan.steps.tokens, plan.steps.tokens) for i in range(chunks)]
    if coded is None or len(coded[1]) * CROWDED > coded[0].size:
        return [_encode_alone(block, profile, plan, progressive=progressive, accelerate=accelerate) for block in exact]
    payloads = _payloads(exact, coded, profile, plan, b"", progressive=progressive, accelerate=accelerate)
    return [
        payload if len(payload) < block.shape.raw_bytes else encode_lossless(block, accelerate)
        for payload, block in zip(payloads, exact, strict=True)
    ]


def _encode_alone(
    block: KvBlock, profile: KvProfile, plan: SymbolPlan, *, progressive: bool, accelerate: bool | None
) -> bytes:
    """A chunk that the profile does not fit well: plain, with its keys' mean taken off, or exact; the shortest."""
    candidates = [encode_lossless(block, accelerate)]
    bias = _unknown_bias(block, profile)
    shifts = [b"", from_floats(bias, "bfloat16").tobytes()] if np.isfinite(bias).all() else [b""]
    for shift in shifts:
        coded = to_symbols(profile, shifted_offsets(profile, shift), block, plan, accelerate)
        if coded is not None:
            candidates += _payloads(
                [block], coded, profile, plan, shift, progressive=progressive, accelerate=accelerate
            )
    return min(candidates, key=len)


def _unknown_bias(block: KvBlock, profile: KvProfile) -> Floats:
    """(L, C): the mean of the keys as attention reads them, less what the profile would expect at these positions."""
    shape = block.shape
    turns = profile.turns(shape.first_position, shape.tokens)
    means = profile.means[:, :1].reshape(shape.layers, 1, shape.heads, shape.width)
    expected = rotate(np.repeat(means, shape.tokens, axis=1), *turns).mean(axis=1).reshape(profile.offsets.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        found = to_floats(block.keys[..., profile.key_order], shape.dtype).mean(axis=1).reshape(profile.offsets.shape)
        return np.asarray(found - profile.offsets - expected)


def _payloads(
    blocks: Sequence[KvBlock],
    coded: tuple[npt.NDArray[np.uint8], Escapes],
    profile: KvProfile,
    plan: SymbolPlan,
    shift: bytes,
    *,
    progressive: bool,
    accelerate: bool | None,
) -> list[bytes]:
    lanes = chunk_lanes(profile, plan.steps.tokens)
    symbols, escapes = coded[0], coded[1].numbers_by_chunk(len(blocks))
    if progressive:
        coarse, places, place_contexts = split_symbols(symbols, plan.contexts)
        bodies = encode_streams(coarse, plan.contexts, profile.coarse_table, lanes, accelerate)
        refinements = [
            refinement_stream(*rows, profile, accelerate) for rows in zip(coarse, places, place_contexts, strict=True)
        ]
    else:
        bodies = encode_streams(symbols, plan.contexts, profile.table, lanes, accelerate)
    kind = (BASE if progressive else WHOLE) | (SHIFTED if shift else 0)
    payloads = []
    for row, block in enumerate(blocks):
        head = chunk_head(kind, plan.steps, block.shape.first_position, profile, len(bodies[row]))
        payload = seal("kv-shoal", block.shape.specs, head + shift + bodies[row] + pack_escapes(escapes[row]))
        if progressive:
            payload = with_refinement(payload, refinements[row])
        payloads.append(payload)
    return payloads


def _progressive_numbers(
    members: Sequence[ParsedChunk],
    plan: SymbolPlan,
    profile: KvProfile,
    allow_truncated: bool,
    accelerate: bool | None,
) -> npt.NDArray[np.int64]:
    """(B, N) whole numbers of steps, escaped ones in their places."""
    lanes, contexts = chunk_lanes(profile, plan.steps.tokens), plan.contexts
    symbols = decode_streams([m.stream for m in members], contexts, profile.coarse_table, lanes, accelerate)
    numbers = symbols.astype(np.int64) - COARSE_ZERO
    for row, member in enumerate(members):
        escaped = symbols[row] == COARSE_ESCAPE
        numbers[row] = refined_numbers(member, numbers[row], ~escaped, contexts, profile, allow_truncated, accelerate)
        numbers[row, escaped] = member.escaped(int(escaped.sum()))
    return numbers
