"""The `shoal` KV codec: calibrated transform coding in chunks of 64 tokens, each decodable alone.

Body: kind u8 (bit 0: base of a progressive chunk, bit 1: with a shift), step quarters i8, fine tokens u8, first
position u32, the first 8 bytes of the profile's digest, stream length u32, the shift of the rotated keys as bfloat16
if there is one (a bias on all keys that the profile does not know), stream, escaped numbers. A progressive chunk is
the payload of its base, numbers rounded to threes, followed by the payload of the refinement: the checksum of the
base it belongs to, then a stream. The two together are as long as the whole chunk but for the frame. A block that is
not finite, or that would not shrink, travels as an exact block instead.
"""

import struct
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .acceleration import wants_numba
from .byte_reader import ByteReader
from .container import CHECKSUM_BYTES, seal, sealed_bytes, unseal
from .errors import MalformedPayload
from .kv_block import KvBlock, KvShape, from_floats, to_floats
from .kv_lossless import encode_lossless
from .kv_profile import ESCAPE, Floats, KvProfile
from .kv_symbols import (
    Numbers,
    StepPlan,
    as_numbers,
    from_numbers,
    from_symbols,
    pack_escapes,
    parse_escapes,
    split_thirds,
    to_symbols,
)
from .kv_transform import from_components, to_components
from .rans import decode_streams, encode_streams

HEAD = struct.Struct("<BbBI8sI")
WHOLE, BASE, SHIFTED = 0, 1, 2
CROWDED = 64
LANES = 32
REFINEMENT_LANES = 16
# Chunks worked on at once: few for compiled loops, whose arrays then stay in the processor's cache, many for numpy,
# whose loops over lanes then are wide.
CACHED_CHUNKS, WIDE_CHUNKS = 8, 64
COARSE_ZERO = 20
COARSE_ESCAPE = 2 * COARSE_ZERO + 1


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
    parsed = [_ParsedChunk.parse(payload, shape, profile) for payload, shape in zip(payloads, shapes, strict=True)]
    at_once = _chunks_at_once(accelerate)
    groups: dict[tuple[int, StepPlan, bytes], list[list[int]]] = {}
    for index, chunk in enumerate(parsed):
        key = (chunk.kind, chunk.plan, chunk.shift)
        if len(groups.setdefault(key, [[]])[-1]) == at_once:
            groups[key].append([])
        groups[key][-1].append(index)
    blocks: dict[int, KvBlock] = {}
    for (kind, plan, shift), members in ((key, part) for key, parts in groups.items() for part in parts):
        used = _shifted(profile, shift)
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


class _ParsedChunk:
    """A chunk whose frame and head are right; its streams are not decoded yet."""

    __slots__ = ("escapes", "kind", "plan", "refinement", "shift", "stream", "tag")

    def __init__(
        self,
        kind: int,
        plan: StepPlan,
        shift: bytes,
        stream: memoryview,
        escapes: ByteReader,
        tag: bytes,
        refinement: bytes,
    ) -> None:
        self.kind, self.plan, self.shift, self.stream, self.escapes = kind, plan, shift, stream, escapes
        self.tag, self.refinement = tag, refinement

    @classmethod
    def parse(cls, payload: bytes, shape: KvShape, profile: KvProfile) -> "_ParsedChunk":
        if not profile.fits(shape):
            raise ValueError("a profile made for another model")
        length = min(sealed_bytes(payload, shape.specs) or 0, len(payload))
        base = payload[:length]
        reader = ByteReader(unseal(base, "kv-shoal", shape.specs))
        kind, quarters, fine, position, digest, stream_bytes = HEAD.unpack(reader.take(HEAD.size))
        if digest != profile.digest[:8]:
            raise MalformedPayload("a chunk coded with another profile")
        if kind > BASE | SHIFTED or fine > shape.tokens or position != shape.first_position:
            raise MalformedPayload("a chunk of another kind or position than agreed on")
        if not kind & BASE and length != len(payload):
            raise MalformedPayload("bytes behind a whole chunk")
        plan = StepPlan(quarters, shape.tokens, fine)
        shift = bytes(reader.take(2 * shape.layers * profile.channels)) if kind & SHIFTED else b""
        stream = reader.take(stream_bytes)
        return cls(kind, plan, shift, stream, reader, base[-CHECKSUM_BYTES:], payload[length:])


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
        used = _shifted(profile, shift)
        coded = to_symbols(used, to_components(used, block, accelerate), plan, accelerate)
        if coded is not None:
            candidates += _payloads(
                [block], coded, profile, plan, shift, progressive=progressive, accelerate=accelerate
            )
    return min(candidates, key=len)


def _shifted(profile: KvProfile, shift: bytes) -> KvProfile:
    """raises: MalformedPayload for a shift that is not finite"""
    if not shift:
        return profile
    vector = to_floats(np.frombuffer(shift, "<u2"), "bfloat16").reshape(profile.offsets.shape)
    if not np.isfinite(vector).all():
        raise MalformedPayload("a shift that is not finite")
    with np.errstate(over="ignore"):
        return replace(profile, offsets=profile.offsets + vector)


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
    refinements = []
    if progressive:
        coarse, places, place_contexts = _split(symbols, contexts)
        bodies = encode_streams(coarse, contexts, profile.coarse_table, LANES, accelerate)
        for row, base in enumerate(coarse):
            # Escaped numbers travel whole in the base and have no place to refine.
            told = base != COARSE_ESCAPE
            rows = places[row, told][None], place_contexts[row, told]
            refinements += encode_streams(*rows, profile.fine_table, REFINEMENT_LANES, accelerate)
    else:
        bodies = encode_streams(symbols, contexts, profile.table, LANES, accelerate)
    kind = (BASE if progressive else WHOLE) | (SHIFTED if shift else 0)
    payloads = []
    for row, block in enumerate(blocks):
        place = block.shape.first_position
        head = HEAD.pack(kind, plan.quarters, plan.fine_tokens, place, profile.digest[:8], len(bodies[row]))
        body = head + shift + bodies[row] + pack_escapes(escapes[row])
        payload = seal("kv-shoal", block.shape.specs, body)
        if progressive:
            payload += seal("kv-shoal-refinement", [], payload[-CHECKSUM_BYTES:] + refinements[row])
        payloads.append(payload)
    return payloads


def _split(
    symbols: npt.NDArray[np.uint8], contexts: npt.NDArray[np.uint16]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    base, place = split_thirds(as_numbers(symbols))
    coarse = np.where(symbols == ESCAPE, COARSE_ESCAPE, base + COARSE_ZERO).astype(np.uint8)
    return coarse, _mirrored(place, base), _place_contexts(base, contexts)


def _mirrored(place: npt.NDArray[np.int16], base: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
    """Places 0, 1, 2 counted away from zero, so that both signs share their tables."""
    return (np.where(base < 0, -place, place) + 1).astype(np.uint8)


def _place_contexts(base: npt.NDArray[np.int16], contexts: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    return contexts * np.uint16(4) + np.minimum(np.abs(base), 3).astype(np.uint16)


def _decode_whole(
    members: Sequence[_ParsedChunk],
    plan: StepPlan,
    profile: KvProfile,
    allow_truncated: bool,
    accelerate: bool | None,
) -> Floats:
    contexts = profile.contexts(plan.token_quarters).ravel()
    symbols = decode_streams([m.stream for m in members], contexts, profile.table, LANES, accelerate)
    escapes = [_escapes(m, int((row == ESCAPE).sum())) for m, row in zip(members, symbols, strict=True)]
    return from_symbols(symbols, escapes, plan, profile.layers, profile.channels, accelerate)


def _decode_progressive(
    members: Sequence[_ParsedChunk],
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
        numbers[row] = _refined(member, numbers[row], ~escaped, contexts, profile, allow_truncated, accelerate)
        numbers[row, escaped] = _escapes(member, int(escaped.sum()))
    return from_numbers(numbers, plan, profile.layers, profile.channels)


def _escapes(member: _ParsedChunk, count: int) -> Numbers:
    numbers = parse_escapes(member.escapes, count)
    member.escapes.close()
    return numbers


def _refined(
    member: _ParsedChunk,
    base: npt.NDArray[np.int64],
    told: npt.NDArray[np.bool_],
    contexts: npt.NDArray[np.uint16],
    profile: KvProfile,
    allow_truncated: bool,
    accelerate: bool | None,
) -> npt.NDArray[np.int64]:
    length = sealed_bytes(member.refinement, [])
    if allow_truncated and (length is None or length > len(member.refinement)):
        return 3 * base
    reader = ByteReader(unseal(member.refinement, "kv-shoal-refinement", []))
    if reader.take(CHECKSUM_BYTES) != member.tag:
        raise MalformedPayload("the refinement of another base")
    narrow = base[told].astype(np.int16)
    stream = reader.take(reader.left)
    (places,) = decode_streams(
        [stream], _place_contexts(narrow, contexts[told]), profile.fine_table, REFINEMENT_LANES, accelerate
    )
    outward = places.astype(np.int64) - 1
    numbers = 3 * base
    numbers[told] += np.where(narrow < 0, -outward, outward)
    return numbers
