"""The `shoal` KV codec: calibrated transform coding in chunks of 64 tokens, each decodable alone.

Layout: `kv_chunk` and, for chunks that come in two parts, `kv_progressive`. A block that is not finite, or that would
not shrink, travels as an exact block instead.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .acceleration import wants_numba
from .container import seal
from .kv_block import KvBlock, KvShape, from_floats, to_floats
from .kv_chunk import BASE, LANES, SHIFTED, WHOLE, ParsedChunk, chunk_head, shifted
from .kv_lossless import encode_lossless
from .kv_profile import ESCAPE, Floats, KvProfile
from .kv_progressive import (
    COARSE_ESCAPE,
    COARSE_ZERO,
    refined_numbers,
    refinement_stream,
    split_symbols,
    with_refinement,
)
from .kv_symbols import Numbers, StepPlan, from_numbers, from_symbols, pack_escapes, to_symbols
from .kv_transform import from_components, to_components
from .rans import decode_streams, encode_streams

# Where more than one number in so many escapes, the profile does not fit and other ways are tried.
CROWDED = 64
# Chunks worked on at once: few for compiled loops, whose arrays then stay in the processor's cache, many for numpy,
# whose loops over lanes then are wide.
CACHED_CHUNKS, WIDE_CHUNKS = 8, 64


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
    for first, tokens, chunks, fine in _batches(block.shape, fine_tokens, _chunks_at_once(accelerate)):
        part = block.part(first, tokens * chunks)
        plan = StepPlan(step_quarters, tokens, fine)
        payloads += _encode_batch(part, profile, plan, chunks, progressive=progressive, accelerate=accelerate)
    return payloads


def decode_batch(
    payloads: Sequence[bytes],
    shapes: Sequence[KvShape],
    profile: KvProfile,
    *,
    allow_truncated: bool = False,
    accelerate: bool | None = None,
) -> list[KvBlock]:
    """Chunks decoded side by side where their steps are the same.

    allow_truncated: a progressive chunk cut anywhere behind its base gives the base's quality
    raises: MalformedPayload
    """
    parsed = [ParsedChunk.parse(payload, shape, profile) for payload, shape in zip(payloads, shapes, strict=True)]
    at_once = _chunks_at_once(accelerate)
    groups: dict[tuple[int, StepPlan, bytes], list[list[int]]] = {}
    for index, chunk in enumerate(parsed):
        key = (chunk.kind, chunk.plan, chunk.shift)
        if len(groups.setdefault(key, [[]])[-1]) == at_once:
            groups[key].append([])
        groups[key][-1].append(index)
    blocks: dict[int, KvBlock] = {}
    for (kind, plan, shift), members in ((key, part) for key, parts in groups.items() for part in parts):
        used = shifted(profile, shift)
        chunks = [parsed[i] for i in members]
        decode = _decode_progressive if kind & BASE else _decode_whole
        components = decode(chunks, plan, used, allow_truncated, accelerate)
        positions = np.concatenate([shapes[i].positions for i in members])
        dtype = shapes[members[0]].dtype
        keys, values = from_components(used, components, dtype, positions, accelerate)
        for row, index in enumerate(members):
            cut = slice(row * plan.tokens, (row + 1) * plan.tokens)
            full = shapes[index].specs[0].shape
            blocks[index] = KvBlock(shapes[index], keys[:, cut].reshape(full), values[:, cut].reshape(full))
    return [blocks[index] for index in range(len(parsed))]


def _chunks_at_once(accelerate: bool | None) -> int:
    return CACHED_CHUNKS if wants_numba(accelerate) else WIDE_CHUNKS


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
    part: KvBlock, profile: KvProfile, plan: StepPlan, chunks: int, *, progressive: bool, accelerate: bool | None
) -> list[bytes]:
    coded = to_symbols(profile, to_components(profile, part, accelerate), plan, accelerate)
    exact = [part.part(i * plan.tokens, plan.tokens) for i in range(chunks)]
    if coded is None or sum(map(len, coded[1])) * CROWDED > coded[0].size:
        return [_encode_alone(block, profile, plan, progressive=progressive, accelerate=accelerate) for block in exact]
    payloads = _payloads(exact, coded, profile, plan, b"", progressive=progressive, accelerate=accelerate)
    return [
        payload if len(payload) < block.shape.raw_bytes else encode_lossless(block, accelerate)
        for payload, block in zip(payloads, exact, strict=True)
    ]


def _encode_alone(
    block: KvBlock, profile: KvProfile, plan: StepPlan, *, progressive: bool, accelerate: bool | None
) -> bytes:
    """A chunk that the profile does not fit well: plain, with its keys' mean taken off, or exact; the shortest."""
    candidates = [encode_lossless(block, accelerate)]
    with np.errstate(over="ignore", invalid="ignore"):
        rotated = to_floats(block.keys, block.shape.dtype).mean(axis=1).reshape(profile.offsets.shape)
        mean = rotated - profile.offsets
    shifts = [b"", from_floats(mean, "bfloat16").tobytes()] if np.isfinite(mean).all() else [b""]
    for shift in shifts:
        used = shifted(profile, shift)
        coded = to_symbols(used, to_components(used, block, accelerate), plan, accelerate)
        if coded is not None:
            candidates += _payloads(
                [block], coded, profile, plan, shift, progressive=progressive, accelerate=accelerate
            )
    return min(candidates, key=len)


def _payloads(
    blocks: Sequence[KvBlock],
    coded: tuple[npt.NDArray[np.uint8], list[Numbers]],
    profile: KvProfile,
    plan: StepPlan,
    shift: bytes,
    *,
    progressive: bool,
    accelerate: bool | None,
) -> list[bytes]:
    symbols, escapes = coded
    contexts = profile.contexts(plan.token_quarters).ravel()
    if progressive:
        coarse, places, place_contexts = split_symbols(symbols, contexts)
        bodies = encode_streams(coarse, contexts, profile.coarse_table, LANES, accelerate)
        refinements = [
            refinement_stream(*rows, profile, accelerate) for rows in zip(coarse, places, place_contexts, strict=True)
        ]
    else:
        bodies = encode_streams(symbols, contexts, profile.table, LANES, accelerate)
    kind = (BASE if progressive else WHOLE) | (SHIFTED if shift else 0)
    payloads = []
    for row, block in enumerate(blocks):
        head = chunk_head(kind, plan, block.shape.first_position, profile, len(bodies[row]))
        payload = seal("kv-shoal", block.shape.specs, head + shift + bodies[row] + pack_escapes(escapes[row]))
        if progressive:
            payload = with_refinement(payload, refinements[row])
        payloads.append(payload)
    return payloads


def _decode_whole(
    members: Sequence[ParsedChunk],
    plan: StepPlan,
    profile: KvProfile,
    allow_truncated: bool,
    accelerate: bool | None,
) -> Floats:
    contexts = profile.contexts(plan.token_quarters).ravel()
    symbols = decode_streams([m.stream for m in members], contexts, profile.table, LANES, accelerate)
    escapes = [m.escaped(int((row == ESCAPE).sum())) for m, row in zip(members, symbols, strict=True)]
    return from_symbols(symbols, escapes, plan, profile.layers, profile.channels, accelerate)


def _decode_progressive(
    members: Sequence[ParsedChunk],
    plan: StepPlan,
    profile: KvProfile,
    allow_truncated: bool,
    accelerate: bool | None,
) -> Floats:
    contexts = profile.contexts(plan.token_quarters).ravel()
    symbols = decode_streams([m.stream for m in members], contexts, profile.coarse_table, LANES, accelerate)
    numbers = symbols.astype(np.int64) - COARSE_ZERO
    for row, member in enumerate(members):
        escaped = symbols[row] == COARSE_ESCAPE
        numbers[row] = refined_numbers(member, numbers[row], ~escaped, contexts, profile, allow_truncated, accelerate)
        numbers[row, escaped] = member.escaped(int(escaped.sum()))
    return from_numbers(numbers, plan, profile.layers, profile.channels)
