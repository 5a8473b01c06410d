"""Integer frequency tables for the range coder, and their compact form on the wire.

A table row gives every symbol of an alphabet (at most 256) a whole number of the 4096 slots; a symbol with no slot
cannot be coded. Rows are made from counts by integer arithmetic only, so that every machine makes the same row.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .errors import MalformedPayload

SLOT_BITS = 12
SLOTS = 1 << SLOT_BITS
MAXIMUM_ALPHABET = 256


@dataclass(frozen=True, eq=False)
class EntropyTable:
    """frequencies_cs: (contexts, symbols) uint32, each row sums to SLOTS."""

    frequencies_cs: npt.NDArray[np.uint32]

    def __post_init__(self) -> None:
        rows = self.frequencies_cs
        if rows.ndim != 2 or not 1 <= rows.shape[1] <= MAXIMUM_ALPHABET:
            raise ValueError(f"a table of shape {rows.shape}")
        if rows.size and (rows.sum(axis=1, dtype=np.uint64) != SLOTS).any():
            raise ValueError("a row does not sum to the number of slots")

    @property
    def contexts(self) -> int:
        return int(self.frequencies_cs.shape[0])

    @property
    def alphabet(self) -> int:
        return int(self.frequencies_cs.shape[1])

    @cached_property
    def starts_cs(self) -> npt.NDArray[np.uint32]:
        ends = np.cumsum(self.frequencies_cs, axis=1, dtype=np.uint32)
        return ends - self.frequencies_cs

    @cached_property
    def ranges_cs(self) -> npt.NDArray[np.uint32]:
        """Start in bits 0..12, frequency above."""
        return self.starts_cs | (self.frequencies_cs << np.uint32(SLOT_BITS + 1))

    @cached_property
    def slots_cm(self) -> npt.NDArray[np.uint32]:
        """For each slot: symbol in bits 0..7, offset inside the symbol in bits 8..19, frequency - 1 in bits 20..31."""
        symbols = np.arange(self.alphabet, dtype=np.uint32)
        slots = np.empty((self.contexts, SLOTS), np.uint32)
        for context, row in enumerate(self.frequencies_cs):
            symbol = np.repeat(symbols, row)
            offset = np.arange(SLOTS, dtype=np.uint32) - self.starts_cs[context][symbol]
            slots[context] = symbol | (offset << np.uint32(8)) | ((row[symbol] - np.uint32(1)) << np.uint32(20))
        return slots

    def cost_bits(self, counts_cs: npt.NDArray[np.int64]) -> float:
        """Ideal size of symbols with these counts; infinite where a counted symbol has no slot."""
        with np.errstate(divide="ignore"):
            bits = SLOT_BITS - np.log2(self.frequencies_cs.astype(np.float64))
        return float((bits[counts_cs > 0] * counts_cs[counts_cs > 0]).sum())


def table_from_counts(counts_cs: npt.NDArray[np.int64], floor: int = 0) -> EntropyTable:
    """Scale counts to rows of SLOTS; a counted symbol keeps at least one slot, every symbol at least `floor`.

    raises: ValueError when the floor alone needs more than the slots
    """
    counts = np.maximum(np.asarray(counts_cs, np.int64), 0)
    if floor * counts.shape[1] > SLOTS:
        raise ValueError("the floor needs more slots than there are")
    return EntropyTable(np.stack([_scaled_row(row, floor) for row in counts]).astype(np.uint32))


def _scaled_row(counts: npt.NDArray[np.int64], floor: int) -> npt.NDArray[np.int64]:
    total = int(counts.sum())
    if total == 0:
        row = np.full(len(counts), SLOTS // len(counts), np.int64)
        row[: SLOTS % len(counts)] += 1
        return row
    if total >= 1 << 48:
        raise ValueError("counts too large to scale in 64 bits")
    row = (counts * SLOTS + total // 2) // total
    least = np.where(counts > 0, max(floor, 1), floor)
    row = np.maximum(row, least)
    surplus = int(row.sum()) - SLOTS
    order = np.argsort(-row, kind="stable")
    position = 0
    while surplus > 0:
        # Take from the largest first, but never more than a part of what a symbol has above its least.
        symbol = order[position % len(order)]
        spare = int(row[symbol] - least[symbol])
        taken = min(surplus, (spare + 1) // 2 if position < len(order) else spare)
        row[symbol] -= taken
        surplus -= taken
        position += 1
    row[order[0]] -= surplus
    return row


def pack_table(table: EntropyTable) -> bytes:
    """Per row: frequencies as LEB128 varints, a zero followed by the length of its run of zeros minus one."""
    packed = bytearray()
    for row in table.frequencies_cs.tolist():
        symbol = 0
        while symbol < len(row):
            _append_varint(packed, row[symbol])
            if row[symbol] == 0:
                run = 1
                while symbol + run < len(row) and row[symbol + run] == 0:
                    run += 1
                _append_varint(packed, run - 1)
                symbol += run
            else:
                symbol += 1
    return bytes(packed)


def parse_table(data: bytes | memoryview, offset: int, contexts: int, alphabet: int) -> tuple[EntropyTable, int]:
    """Read what `pack_table` wrote; returns the table and the offset behind it.

    raises: MalformedPayload
    """
    rows = np.zeros((contexts, alphabet), np.uint32)
    for context in range(contexts):
        symbol = 0
        while symbol < alphabet:
            frequency, offset = _parse_varint(data, offset)
            if frequency > SLOTS:
                raise MalformedPayload("a symbol with more slots than a table has")
            rows[context, symbol] = frequency
            symbol += 1
            if frequency == 0:
                run, offset = _parse_varint(data, offset)
                symbol += run
        if symbol != alphabet or rows[context].sum() != SLOTS:
            raise MalformedPayload("an entropy table that does not add up")
    return EntropyTable(rows), offset


def _append_varint(target: bytearray, value: int) -> None:
    while value >= 128:
        target.append(value & 127 | 128)
        value >>= 7
    target.append(value)


def _parse_varint(data: bytes | memoryview, offset: int) -> tuple[int, int]:
    value = 0
    for shift in (0, 7):
        if offset >= len(data):
            raise MalformedPayload("an entropy table that is cut off")
        byte = data[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
    raise MalformedPayload("a number in an entropy table that is too long")
