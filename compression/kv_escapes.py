"""Numbers too rare for their table: plain integers of up to 32 bits beside the stream, which says where they belong."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from .bit_fields import pack_uniform, unpack_uniform
from .byte_reader import ByteReader
from .errors import MalformedPayload

FIELD_BITS = 32

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Escapes:
    """Of some chunks. chunks, places (among a chunk's symbols), numbers: (K,), ordered by chunk, then place."""

    chunks: Numbers
    places: Numbers
    numbers: Numbers

    def __len__(self) -> int:
        return len(self.chunks)

    @classmethod
    def of_chunks(cls, places: Sequence[Numbers], numbers: Sequence[Numbers]) -> "Escapes":
        chunks = np.repeat(np.arange(len(places)), [len(row) for row in places])
        none = np.empty(0, np.int64)
        return cls(chunks, np.concatenate([*places, none]), np.concatenate([*numbers, none]))

    def numbers_by_chunk(self, chunks: int) -> list[Numbers]:
        return np.split(self.numbers, np.searchsorted(self.chunks, np.arange(1, chunks)))

    def by_tensor(self, shape_stc: tuple[int, int, int], at_once: int) -> Iterator["TensorEscapes"]:
        """For each window of `at_once` chunks and each tensor in it, in order, without end."""
        tensors, tokens, channels = shape_stc
        tensor, rest = np.divmod(self.places, tokens * channels)
        rows = self.chunks % at_once * tokens + rest // channels
        keys = self.chunks // at_once * tensors + tensor
        order = np.argsort(keys, kind="stable")
        sorted_keys, found = keys[order], TensorEscapes(rows[order], rest[order] % channels, self.numbers[order])
        last = int(sorted_keys[-1]) + 1 if len(self) else 0
        starts = np.searchsorted(sorted_keys, np.arange(last + 1)).tolist()
        for first, behind in pairwise(starts):
            yield found.part(first, behind)
        while True:
            yield found.part(0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class TensorEscapes:
    """rows, channels, numbers: (K,) of one tensor's components."""

    rows: Numbers
    channels: Numbers
    numbers: Numbers

    def part(self, first: int, behind: int) -> "TensorEscapes":
        cut = slice(first, behind)
        return TensorEscapes(self.rows[cut], self.channels[cut], self.numbers[cut])


def pack_escapes(numbers: Numbers) -> bytes:
    """The width of the widest as u8, then all zigzag coded at that width."""
    if not len(numbers):
        return b""
    folded = np.where(numbers < 0, -2 * numbers - 1, 2 * numbers)
    width = int(folded.max()).bit_length()
    return bytes([width]) + pack_uniform(folded, width)


def parse_escapes(reader: ByteReader, count: int) -> Numbers:
    """raises: MalformedPayload"""
    if not count:
        return np.empty(0, np.int64)
    width = reader.number("B")
    if not 1 <= width <= FIELD_BITS:
        raise MalformedPayload("escaped numbers of a width that no encoder takes")
    folded = unpack_uniform(reader, count, width)
    return np.where(folded & 1, -(folded + 1) // 2, folded // 2)
