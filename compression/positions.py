"""The kept positions of a sparse update, close to the bound log2 C(n, k) a chunk.

A position is coded as its distance to the one before it in its chunk. Large payloads: the distance falls in one of
144 buckets (exact below 32, then 16 to the octave), the bucket is range coded with tables measured on this payload,
and the place in the bucket is plain bits. Stretches of 16 chunks are sorted into up to 8 classes by how densely their
positions cluster, each class with its own table: embedding rows that the text never touched do not blur the rest.
Small payloads: Rice codes. The number of positions per chunk is known to both sides.
"""

import numpy as np
import numpy.typing as npt

from .bit_fields import pack_fields, unpack_fields
from .byte_reader import ByteReader
from .errors import MalformedPayload
from .rice import decode_rice, encode_rice
from .sparsify import CHUNK
from .symbol_section import decode_symbols, encode_symbols

RICE, CLASSES = 0, 1
BUCKETS = 144
STRETCH = 16
MAXIMUM_CLASSES = 8
POSITIONS_PER_CLASS = 12_000
RICE_LIMIT = 50_000


def _bucket_starts() -> npt.NDArray[np.int64]:
    exact = np.arange(32)
    octaves = [(32 << octave) + (np.arange(16) << (octave + 1)) for octave in range(7)]
    return np.concatenate([exact, *octaves]).astype(np.int64)


STARTS = _bucket_starts()
EXTRA_BITS = np.concatenate([np.zeros(32, np.int64), np.repeat(np.arange(1, 8), 16)])
BUCKET_OF = (np.searchsorted(STARTS, np.arange(CHUNK), side="right") - 1).astype(np.uint8)


def encode_positions(
    positions_k: npt.NDArray[np.int64], kept: npt.NDArray[np.int64], accelerate: bool | None = None
) -> bytes:
    """positions: ascending, kept[c] of them in chunk c"""
    chunk_k = np.repeat(np.arange(len(kept)), kept)
    distances = _distances(positions_k, kept, chunk_k)
    coded = _encode_classes(distances, kept, chunk_k, accelerate)
    if len(positions_k) <= RICE_LIMIT:
        rice = bytes([RICE]) + encode_rice(distances)
        if len(rice) <= len(coded):
            return rice
    return coded


def decode_positions(
    reader: ByteReader, kept: npt.NDArray[np.int64], count: int, accelerate: bool | None = None
) -> npt.NDArray[np.int64]:
    """Ascending positions below `count`, kept[c] of them in chunk c.

    raises: MalformedPayload
    """
    total = int(kept.sum())
    chunk_k = np.repeat(np.arange(len(kept)), kept)
    match reader.number("B"):
        case 0:
            distances = decode_rice(reader, total, CHUNK - 1)
        case 1:
            distances = _decode_classes(reader, kept, chunk_k, accelerate)
        case mode:
            raise MalformedPayload(f"positions in a mode {mode} that does not exist")
    running = np.cumsum(distances + 1)
    ends = np.cumsum(kept)
    before = np.concatenate([[0], running])[ends - kept]
    positions: npt.NDArray[np.int64] = running - 1 - np.repeat(before, kept) + chunk_k * CHUNK
    last = positions[ends[kept > 0] - 1]
    limits = np.minimum((np.flatnonzero(kept) + 1) * CHUNK, count)
    if (last >= limits).any():
        raise MalformedPayload("a position outside its chunk")
    return positions


def _distances(
    positions_k: npt.NDArray[np.int64], kept: npt.NDArray[np.int64], chunk_k: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    distances = np.diff(positions_k, prepend=-1) - 1
    firsts = (np.cumsum(kept) - kept)[kept > 0]
    distances[firsts] = positions_k[firsts] - chunk_k[firsts] * CHUNK
    return distances


def _class_count(positions: int) -> int:
    return max(1, min(MAXIMUM_CLASSES, positions // POSITIONS_PER_CLASS))


def _encode_classes(
    distances: npt.NDArray[np.int64],
    kept: npt.NDArray[np.int64],
    chunk_k: npt.NDArray[np.int64],
    accelerate: bool | None,
) -> bytes:
    classes = _class_count(len(distances))
    buckets = BUCKET_OF[distances]
    stretch_k = chunk_k // STRETCH
    stretches = -(-len(kept) // STRETCH)
    # Rank the stretches by their mean bucket and cut the ranking into equal classes.
    total = np.bincount(stretch_k, weights=buckets, minlength=stretches)
    mean = total / np.maximum(np.bincount(stretch_k, minlength=stretches), 1)
    class_of = np.empty(stretches, np.uint8)
    class_of[np.argsort(mean, kind="stable")] = np.arange(stretches) * classes // max(stretches, 1)
    extra = EXTRA_BITS[buckets]
    return b"".join(
        (
            bytes([CLASSES]),
            _plain_context_symbols(class_of, classes, accelerate),
            encode_symbols(buckets, class_of[stretch_k].astype(np.uint16), classes, BUCKETS, accelerate),
            pack_fields(distances - STARTS[buckets], extra),
        )
    )


def _decode_classes(
    reader: ByteReader, kept: npt.NDArray[np.int64], chunk_k: npt.NDArray[np.int64], accelerate: bool | None
) -> npt.NDArray[np.int64]:
    classes = _class_count(len(chunk_k))
    stretches = -(-len(kept) // STRETCH)
    class_of = np.zeros(stretches, np.uint8)
    if classes > 1:
        class_of = decode_symbols(reader, np.zeros(stretches, np.uint16), 1, classes, accelerate)
    contexts = class_of[chunk_k // STRETCH].astype(np.uint16)
    buckets = decode_symbols(reader, contexts, classes, BUCKETS, accelerate)
    distances: npt.NDArray[np.int64] = STARTS[buckets] + unpack_fields(reader, EXTRA_BITS[buckets])
    return distances


def _plain_context_symbols(symbols: npt.NDArray[np.uint8], alphabet: int, accelerate: bool | None) -> bytes:
    if alphabet == 1:
        return b""
    return encode_symbols(symbols, np.zeros(len(symbols), np.uint16), 1, alphabet, accelerate)
