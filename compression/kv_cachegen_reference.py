"""What CacheGen's public code does: a yardstick for `kv_shoal`, never used by nodes.

Every token's keys and values of a layer are scaled by their largest magnitude into 32 bins in the first layers and 16
in the rest (keys: the first 10 of 32 layers, values: the first 2 of 32), and coded with tables per layer and channel
that are counted on this very chunk and travel with it, 16 bits an entry.
source: Liu et al., CacheGen, arXiv:2310.07240, and its reference implementation
"""

from dataclasses import dataclass

import numpy as np

from .byte_reader import ByteReader
from .container import seal, unseal
from .entropy_table import SLOTS, EntropyTable, table_from_counts
from .errors import MalformedPayload
from .kv_block import Floats, KvBlock, KvShape, from_floats
from .kv_cachegen import SYMBOLS_PER_LANE, block_rows, channel_contexts
from .rans import decode_streams, encode_streams, lanes_for

EARLY_SHARE = (10 / 32, 2 / 32)


@dataclass(frozen=True, slots=True)
class CacheGenReference:
    """bins: in the first layers and in the others; (32, 16) is the published setting."""

    early_bins: int = 32
    late_bins: int = 16

    def encode(self, block: KvBlock, accelerate: bool | None = None) -> bytes:
        rows = block_rows(block)
        scales = np.abs(rows).max(axis=3).astype(np.float16).astype(np.float32)
        levels = self._levels(block.shape.layers)[..., None, None]
        unit = np.maximum(scales[..., None], np.float32(1e-12)) / levels
        symbols = (np.clip(np.rint(rows / unit), -levels, levels) + levels).astype(np.uint8)
        contexts = channel_contexts(symbols.shape)
        alphabet = self._alphabet
        table_rows = 2 * block.shape.layers * rows.shape[3]
        entries = contexts.astype(np.int64) * alphabet + symbols.ravel()
        counts = np.bincount(entries, minlength=table_rows * alphabet).reshape(table_rows, alphabet)
        table = table_from_counts(counts)
        lanes = lanes_for(symbols.size, SYMBOLS_PER_LANE)
        (body,) = encode_streams(symbols.reshape(1, -1), contexts, table, lanes, accelerate)
        parts = (scales.astype("<f2"), table.frequencies_cs.astype("<u2"))
        return seal("kv-cachegen-reference", block.shape.specs, b"".join(p.tobytes() for p in parts) + body)

    def decode(self, data: bytes, shape: KvShape, accelerate: bool | None = None) -> KvBlock:
        """raises: MalformedPayload"""
        reader = ByteReader(unseal(data, "kv-cachegen-reference", shape.specs))
        channels = shape.heads * shape.width
        full = (2, shape.layers, shape.tokens, channels)
        scales = reader.array("<f2", 2 * shape.layers * shape.tokens).astype(np.float32).reshape(full[:3])
        if not np.isfinite(scales).all():
            raise MalformedPayload("a scale that is not finite")
        table_rows = 2 * shape.layers * channels
        frequencies = reader.array("<u2", table_rows * self._alphabet).astype(np.uint32)
        frequencies = frequencies.reshape(table_rows, self._alphabet)
        if (frequencies.sum(axis=1) != SLOTS).any():
            raise MalformedPayload("an entropy table that does not add up")
        body = reader.take(reader.left)
        lanes = lanes_for(int(np.prod(full)), SYMBOLS_PER_LANE)
        table = EntropyTable(frequencies)
        symbols = decode_streams([body], channel_contexts(full), table, lanes, accelerate).reshape(full)
        levels = self._levels(shape.layers)[..., None, None]
        rows = (symbols.astype(np.float32) - levels) * (scales[..., None] / levels)
        keys, values = (from_floats(part.reshape(shape.specs[0].shape), shape.dtype) for part in rows)
        return KvBlock(shape, keys, values)

    @property
    def _alphabet(self) -> int:
        return max(self.early_bins, self.late_bins)

    def _levels(self, layers: int) -> Floats:
        """(2, L): the largest integer of each tensor, bins // 2 - 1."""
        early = np.array([[layer < share * layers for layer in range(layers)] for share in EARLY_SHARE])
        return (np.where(early, self.early_bins, self.late_bins) // 2 - 1).astype(np.float32)
