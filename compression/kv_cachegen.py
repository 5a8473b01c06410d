"""CacheGen's scheme as its paper tells it: a yardstick for `kv_shoal`, never used by nodes.

Tokens in groups of 10: the first is an anchor at 8 bits of its largest magnitude, the others are differences to it,
in steps that grow by thirds of the layers (.5, 1, 1.5 of the layer's usual difference, times the level). Symbols are
entropy coded with tables per layer and channel, made beforehand on other text.
source: Liu et al., CacheGen, arXiv:2310.07240, section 5.2
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .byte_reader import ByteReader
from .container import seal, unseal
from .entropy_table import EntropyTable, table_from_counts
from .errors import MalformedPayload
from .kv_block import Floats, KvBlock, KvShape, from_floats, to_floats
from .rans import decode_streams, encode_streams, lanes_for

GROUP = 10
ANCHOR_LEVELS = 127
DELTA_LIMIT = 100
THIRDS = (0.5, 1.0, 1.5)
OWN_WEIGHT = 32
# As in `kv_shoal`, so that neither pays more for its lanes.
SYMBOLS_PER_LANE = 4096


@dataclass(frozen=True, slots=True, eq=False)
class CacheGen:
    """steps: (2, L) of the differences; tables in context (kind * L + layer) * C + channel."""

    steps: Floats
    anchors: EntropyTable
    deltas: EntropyTable

    @classmethod
    def fit(cls, blocks: Sequence[KvBlock], level: float) -> "CacheGen":
        """Tables for one level, from blocks of other text."""
        rows = [block_rows(block) for block in blocks]
        layers = blocks[0].shape.layers
        usual = np.mean([np.abs(_deltas(x, x[:, :, ::GROUP])).mean(axis=(2, 3)) for x in rows], axis=0)
        thirds = np.array([THIRDS[3 * layer // layers] for layer in range(layers)])
        steps = (usual * thirds * level).astype(np.float32)
        anchors, deltas = zip(*(_symbols(x, steps)[:2] for x in rows), strict=True)
        return cls(steps, _table(anchors, 2 * ANCHOR_LEVELS + 1), _table(deltas, 2 * DELTA_LIMIT + 1))

    def encode(self, block: KvBlock, accelerate: bool | None = None) -> bytes:
        anchors, deltas, scales = _symbols(block_rows(block), self.steps)
        streams = []
        for symbols, table in ((anchors, self.anchors), (deltas, self.deltas)):
            lanes = lanes_for(symbols.size, SYMBOLS_PER_LANE)
            (body,) = encode_streams(symbols.reshape(1, -1), channel_contexts(symbols.shape), table, lanes, accelerate)
            streams.append(len(body).to_bytes(4, "little") + body)
        return seal("kv-cachegen", block.shape.specs, scales.astype("<f2").tobytes() + b"".join(streams))

    def decode(self, data: bytes, shape: KvShape, accelerate: bool | None = None) -> KvBlock:
        """raises: MalformedPayload"""
        reader = ByteReader(unseal(data, "kv-cachegen", shape.specs))
        channels, groups = shape.heads * shape.width, -(-shape.tokens // GROUP)
        anchor_shape = (2, shape.layers, groups, channels)
        delta_shape = (2, shape.layers, shape.tokens - groups, channels)
        scales = reader.array("<f2", 2 * shape.layers * groups).astype(np.float32).reshape(anchor_shape[:3])
        if not np.isfinite(scales).all():
            raise MalformedPayload("a scale that is not finite")
        parts = []
        for full, table in ((anchor_shape, self.anchors), (delta_shape, self.deltas)):
            body = reader.take(reader.number("I"))
            lanes = lanes_for(int(np.prod(full)), SYMBOLS_PER_LANE)
            parts.append(decode_streams([body], channel_contexts(full), table, lanes, accelerate).reshape(full))
        reader.close()
        anchors = (parts[0].astype(np.float32) - ANCHOR_LEVELS) * (scales[..., None] / ANCHOR_LEVELS)
        deltas = (parts[1].astype(np.float32) - DELTA_LIMIT) * self.steps[..., None, None]
        followers = _is_follower(shape.tokens)
        rows = np.repeat(anchors, GROUP, axis=2)[:, :, : shape.tokens]
        rows[:, :, followers] += deltas
        keys, values = (from_floats(part.reshape(shape.specs[0].shape), shape.dtype) for part in rows)
        return KvBlock(shape, keys, values)


def block_rows(block: KvBlock) -> Floats:
    """(2, L, T, C) float32."""
    shape = block.shape
    stacked = np.stack([to_floats(array, shape.dtype) for array in (block.keys, block.values)])
    return stacked.reshape(2, shape.layers, shape.tokens, -1)


def _is_follower(tokens: int) -> npt.NDArray[np.bool_]:
    return np.asarray(np.arange(tokens) % GROUP != 0)


def _deltas(rows: Floats, anchors: Floats) -> Floats:
    tokens = rows.shape[2]
    return np.asarray((rows - np.repeat(anchors, GROUP, axis=2)[:, :, :tokens])[:, :, _is_follower(tokens)])


def _symbols(rows: Floats, steps: Floats) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], Floats]:
    anchors = rows[:, :, ::GROUP]
    scales = np.abs(anchors).max(axis=3).astype(np.float16).astype(np.float32)
    unit = np.maximum(scales[..., None], np.float32(1e-12)) / ANCHOR_LEVELS
    levels = np.clip(np.rint(anchors / unit), -ANCHOR_LEVELS, ANCHOR_LEVELS)
    deltas = np.rint(_deltas(rows, levels * (scales[..., None] / ANCHOR_LEVELS)) / steps[..., None, None])
    clipped = np.clip(deltas, -DELTA_LIMIT, DELTA_LIMIT) + DELTA_LIMIT
    return (levels + ANCHOR_LEVELS).astype(np.uint8), clipped.astype(np.uint8), scales


def channel_contexts(shape: tuple[int, ...]) -> npt.NDArray[np.uint16]:
    kinds, layers, tokens, channels = shape
    tensor = np.arange(kinds * layers * channels, dtype=np.uint16).reshape(kinds * layers, 1, channels)
    return np.broadcast_to(tensor, (kinds * layers, tokens, channels)).ravel()


def _table(samples: Sequence[npt.NDArray[np.uint8]], alphabet: int) -> EntropyTable:
    """Each channel's own counts, softened by those of its layer so that no symbol in use is left without a slot."""
    kinds, layers, _, channels = samples[0].shape
    counts = np.zeros((kinds * layers * channels, alphabet), np.int64)
    for symbols in samples:
        entries = channel_contexts(symbols.shape).astype(np.int64) * alphabet + symbols.ravel()
        counts += np.bincount(entries, minlength=counts.size).reshape(counts.shape)
    layer_wide = counts.reshape(kinds * layers, channels, alphabet).sum(axis=1)
    softened = OWN_WEIGHT * counts + np.repeat(layer_wide, channels, axis=0) * OWN_WEIGHT // (4 * channels)
    return table_from_counts(softened * 16 + 1, floor=1)
