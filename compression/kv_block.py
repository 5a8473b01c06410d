"""A stretch of a KV cache: keys (rotated, as attention reads them) and values of some layers and tokens.

Shape letters: L layers, T tokens, H key-value heads, D head width. bfloat16 travels as its bits in uint16.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .container import TensorSpec
from .kv_levels import CHUNK_TOKENS

STORED_CODES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}

Floats = npt.NDArray[np.float32]
Stored = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class KvShape:
    """What both sides know before any byte arrives."""

    layers: int
    tokens: int
    heads: int
    width: int
    dtype: str = "bfloat16"
    first_position: int = 0

    @property
    def specs(self) -> tuple[TensorSpec, TensorSpec]:
        spec = TensorSpec((self.layers, self.tokens, self.heads, self.width), self.dtype)
        return spec, spec

    @property
    def values(self) -> int:
        return 2 * self.layers * self.tokens * self.heads * self.width

    @property
    def raw_bytes(self) -> int:
        return 2 * self.specs[0].raw_bytes

    def part(self, first: int, tokens: int) -> "KvShape":
        return KvShape(self.layers, tokens, self.heads, self.width, self.dtype, self.first_position + first)

    def chunks(self) -> list["KvShape"]:
        """The independently decodable parts; the last may be short."""
        starts = range(0, self.tokens, CHUNK_TOKENS)
        return [self.part(start, min(CHUNK_TOKENS, self.tokens - start)) for start in starts]


@dataclass(frozen=True, slots=True, eq=False)
class KvBlock:
    """keys, values: (L, T, H, D) in the stored type of shape.dtype.

    raises: ValueError when an array does not fit the shape
    """

    shape: KvShape
    keys: Stored
    values: Stored

    def __post_init__(self) -> None:
        for array in (self.keys, self.values):
            if array.shape != self.shape.specs[0].shape or array.dtype != np.dtype(STORED_CODES[self.shape.dtype]):
                raise ValueError(f"an array {array.dtype} {array.shape} for a block of {self.shape}")

    def part(self, first: int, tokens: int) -> "KvBlock":
        cut = slice(first, first + tokens)
        return KvBlock(self.shape.part(first, tokens), self.keys[:, cut], self.values[:, cut])

    def put(self, first: int, block: "KvBlock") -> None:
        """Overwrite the tokens from `first` on."""
        cut = slice(first, first + block.shape.tokens)
        self.keys[:, cut] = block.keys
        self.values[:, cut] = block.values

    def chunks(self) -> list["KvBlock"]:
        starts = range(0, self.shape.tokens, CHUNK_TOKENS)
        return [self.part(start, min(CHUNK_TOKENS, self.shape.tokens - start)) for start in starts]


def empty_block(shape: KvShape) -> KvBlock:
    """To be written to, all of it."""
    arrays = [np.empty(spec.shape, STORED_CODES[shape.dtype]) for spec in shape.specs]
    return KvBlock(shape, arrays[0], arrays[1])


def joined(blocks: Sequence[KvBlock]) -> KvBlock:
    """Blocks of consecutive tokens as one. raises: ValueError when they do not follow each other"""
    first = blocks[0].shape
    tokens = 0
    for block in blocks:
        if block.shape != first.part(tokens, block.shape.tokens):
            raise ValueError("blocks that do not follow each other")
        tokens += block.shape.tokens
    keys = np.concatenate([block.keys for block in blocks], axis=1)
    values = np.concatenate([block.values for block in blocks], axis=1)
    return KvBlock(first.part(0, tokens), keys, values)


def to_floats(stored: Stored, dtype: str) -> Floats:
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32)


def from_floats(values: Floats, dtype: str) -> Stored:
    """The nearest stored value, ties to even; finite values stay finite."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        # Nothing rounds up from the largest exponent to an infinity.
        size = bits & np.uint32(0x7FFFFFFF)
        np.minimum(size, np.uint32(0x7F7F7FFF), out=size)
        carry = size >> np.uint32(16)
        carry &= np.uint32(1)
        carry += np.uint32(0x7FFF)
        size += carry
        size |= bits & np.uint32(0x80000000)
        return (size >> np.uint32(16)).astype("<u2")
    if dtype == "float16":
        return np.clip(values, -65504, 65504).astype("<f2")
    return values.astype("<f4", copy=False)
