"""A piece of a session's KV cache on its way: what it is a piece of, and the bytes of a codec.

At most CHUNK_TOKENS positions of all layers of a hop, keys as attention reads them (rotated). Nothing is taken in that
does not say the model, dtype, layers, profile and positions that its receiver expects; whether its numbers are true,
only an audit can tell.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec

from shoal.compression.kv_levels import CHUNK_TOKENS
from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import BadChunk, MalformedMessage
from shoal.swarm.identifiers import ModelId

MAX_CHUNK_BYTES = (32 << 20) - 4096  # one frame of a stream


class KvFormat(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Caches of one format can take each other's place."""

    model: ModelId
    dtype: str  # of the arithmetic
    layers: tuple[int, int]  # [first, stop); equal where a span has none
    profile: bytes = b""  # SHA-256 of the profile that lossy chunks want; b"": there is none


class KvChunk(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """format.profile: b"" in a lossless chunk, which everybody can read"""

    format: KvFormat
    start: int  # position
    count: int  # positions
    payload: bytes  # compression.kv_bitstream


_chunks = Canonical(KvChunk, "a chunk of a KV cache", MAX_CHUNK_BYTES)


def pack_chunk(chunk: KvChunk) -> bytes:
    return _chunks.encode(chunk)


def parse_chunk(data: bytes) -> KvChunk:
    """Whatever it is of. raises: BadChunk"""
    try:
        chunk = _chunks.decode(data)
    except MalformedMessage as error:
        raise BadChunk(str(error)) from error
    if chunk.start < 0 or not 1 <= chunk.count <= CHUNK_TOKENS:
        raise BadChunk(f"a chunk of {chunk.count} positions from {chunk.start} on")
    return chunk


def chunk_ranges(start: int, stop: int) -> list[tuple[int, int]]:
    """[start, stop) cut at the multiples of CHUNK_TOKENS, so that all sessions cut alike."""
    edges = [start, *range(start - start % CHUNK_TOKENS + CHUNK_TOKENS, stop, CHUNK_TOKENS), stop]
    return [(first, last) for first, last in pairwise(edges) if first < last]


def begins_at(chunk: bytes, start: int) -> int:
    """Where the first of due chunks may begin: at `start`, or before it where it holds `start`. raises: BadChunk"""
    first = parse_chunk(chunk)
    return first.start if first.start < start < first.start + first.count else start


def due_chunks(data: Sequence[bytes], mine: KvFormat, start: int) -> Iterator[KvChunk]:
    """Chunks of consecutive positions from `start` on, each checked when it is its turn.

    raises: BadChunk, also for a gap, a repetition, or another order
    """
    for each in data:
        chunk = parse_chunk(each)
        _check(chunk.format, mine)
        if chunk.start != start:
            raise BadChunk(f"a chunk from position {chunk.start} on where position {start} is due")
        start += chunk.count
        yield chunk


def _check(theirs: KvFormat, mine: KvFormat) -> None:
    """raises: BadChunk naming the first thing that differs"""
    if theirs.model != mine.model:
        raise BadChunk(f"a chunk of model {theirs.model[:12]} for {mine.model[:12]}")
    if theirs.dtype != mine.dtype:
        raise BadChunk(f"a chunk in {theirs.dtype[:16]} for {mine.dtype}")
    if theirs.layers != mine.layers:
        raise BadChunk(f"a chunk of layers {_text(theirs.layers)} for {_text(mine.layers)}")
    if theirs.profile not in {b"", mine.profile}:
        raise BadChunk("a chunk coded with a profile that is not this model's")


def _text(layers: tuple[int, int]) -> str:
    return f"{layers[0]}:{layers[1]}"
