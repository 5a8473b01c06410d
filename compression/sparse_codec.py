"""Sparse updates: a random share, the largest of each chunk of it, and few bits for each value kept.

Body: seed u64, positions, values. How many values are kept where follows from the length and the preset.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from .bit_fields import pack_uniform, unpack_bits
from .byte_reader import ByteReader
from .container import TensorSpec, seal, unseal
from .errors import MalformedPayload
from .lookup_quantiser import BINS, GROUP, lookup_quantise, lookup_values
from .positions import decode_positions, encode_positions
from .sparse_update import Positions, SparseUpdate
from .sparsify import kept_per_chunk, random_count, random_positions, top_k_positions
from .symbol_section import decode_symbols, encode_symbols
from .update_codec import Values
from .value_coding import (
    Rounding,
    decode_scales,
    encode_scales,
    from_levels,
    group_maxima,
    group_means,
    ratios_to,
    scale_codes,
    scale_values,
    to_levels,
)

ValueKind = Literal["sign", "lookup", "levels", "half"]


@dataclass(frozen=True, slots=True)
class SparseCodec:
    """random: share drawn by the seed (1 draws nothing); top: share of those kept as the largest of each chunk.

    values: "sign" (and the chunk's mean magnitude), "lookup" (2 bits), "levels" (`bits` with the largest magnitude
    per `bucket`), "half" (float16). accelerate: None takes numba where it is; the bytes are the same without.
    """

    name: str
    top: Fraction
    random: Fraction = Fraction(1)
    values: ValueKind = "sign"
    bits: int = 4
    bucket: int = 128
    rounding: Rounding = "nearest"
    accelerate: bool | None = None

    def encode(self, values: Values, seed: int = 0) -> bytes:
        if values.ndim != 1 or values.dtype != np.float32:
            raise ValueError(f"an update is a float32 vector, not {values.dtype} {values.shape}")
        count = len(values)
        drawn = values if self.random == 1 else values[random_positions(count, self.random, seed)]
        positions = top_k_positions(np.ascontiguousarray(drawn), self.top, self.accelerate)
        kept = kept_per_chunk(len(drawn), self.top)
        body = (
            (seed & (1 << 64) - 1).to_bytes(8, "little")
            + encode_positions(positions, kept, self.accelerate)
            + self._encode_values(drawn[positions], kept, seed)
        )
        return seal("sparse", [TensorSpec((count,))], body)

    def decode(self, data: bytes, count: int, seed: int = 0) -> Values:
        return self.decode_sparse(data, count, seed).dense()

    def decode_sparse(self, data: bytes, count: int, seed: int = 0) -> SparseUpdate:
        """As `decode`, without the zeros. raises: MalformedPayload"""
        reader = ByteReader(unseal(data, "sparse", [TensorSpec((count,))]))
        if reader.number("Q") != seed & (1 << 64) - 1:
            raise MalformedPayload("an update drawn with another seed than agreed on")
        pool = count if self.random == 1 else random_count(count, self.random)
        kept = kept_per_chunk(pool, self.top)
        positions = decode_positions(reader, kept, pool, self.accelerate)
        decoded = self._decode_values(reader, kept)
        reader.close()
        if self.random != 1:
            positions = random_positions(count, self.random, seed, positions)
        return SparseUpdate(count, positions, decoded)

    def _encode_values(self, chosen: Values, kept: Positions, seed: int) -> bytes:
        match self.values:
            case "sign":
                codes = scale_codes(group_means(np.abs(chosen), kept), upwards=False)
                signs = np.signbit(chosen)
                return encode_scales(codes, self.accelerate) + pack_uniform(signs, 1)
            case "lookup":
                symbols, tables = lookup_quantise(chosen)
                return tables.astype("<f4", copy=False).tobytes() + self._symbols(symbols, BINS)
            case "levels":
                levels = self._levels
                codes = scale_codes(group_maxima(np.abs(chosen), self.bucket).astype(np.float64), upwards=True)
                scales = np.repeat(scale_values(codes), self.bucket)[: len(chosen)]
                ratios = ratios_to(chosen, scales)
                symbols = to_levels(ratios, levels, self.rounding, seed)
                return encode_scales(codes, self.accelerate) + self._symbols(symbols, 2 * levels + 1)
            case "half":
                return np.clip(chosen, -65504, 65504).astype("<f2").tobytes()

    def _decode_values(self, reader: ByteReader, kept: Positions) -> Values:
        total = int(kept.sum())
        match self.values:
            case "sign":
                scales = np.repeat(decode_scales(reader, len(kept), self.accelerate), kept)
                return np.where(unpack_bits(reader, total) == 1, -scales, scales)
            case "lookup":
                groups = -(-total // GROUP)
                tables = reader.array("<f4", groups * BINS).astype(np.float32).reshape(groups, BINS)
                if not np.isfinite(tables).all():
                    raise MalformedPayload("a lookup table with values that are not finite")
                return lookup_values(self._unsymbols(reader, total, BINS), tables)
            case "levels":
                scales = decode_scales(reader, -(-total // self.bucket), self.accelerate)
                symbols = self._unsymbols(reader, total, 2 * self._levels + 1)
                return from_levels(symbols, self._levels) * np.repeat(scales, self.bucket)[:total]
            case "half":
                values = reader.array("<f2", total).astype(np.float32)
                if not np.isfinite(values).all():
                    raise MalformedPayload("an update with values that are not finite")
                return values

    @property
    def _levels(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def _symbols(self, symbols: npt.NDArray[np.uint8], alphabet: int) -> bytes:
        return encode_symbols(symbols, np.zeros(len(symbols), np.uint16), 1, alphabet, self.accelerate)

    def _unsymbols(self, reader: ByteReader, count: int, alphabet: int) -> npt.NDArray[np.uint8]:
        return decode_symbols(reader, np.zeros(count, np.uint16), 1, alphabet, self.accelerate)
