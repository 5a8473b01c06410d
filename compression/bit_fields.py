"""Unsigned integers of given bit widths, packed without gaps, most significant bit first."""

import numpy as np
import numpy.typing as npt

from .byte_reader import ByteReader
from .errors import MalformedPayload


def packed_bytes(bits: int) -> int:
    return -(-bits // 8)


def pack_fields(values: npt.NDArray[np.integer], widths: npt.NDArray[np.integer]) -> bytes:
    """values[i] < 2^widths[i], widths up to 32. returns: ceil(sum(widths) / 8) bytes, the last padded with zeros"""
    widths64 = widths.astype(np.int64)
    ends = np.cumsum(widths64)
    total = int(ends[-1]) if len(ends) else 0
    shifts = np.repeat(ends, widths64) - 1 - np.arange(total)
    bits = (np.repeat(values.astype(np.int64), widths64) >> shifts) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def unpack_fields(reader: ByteReader, widths: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """The inverse of `pack_fields`; padding that is not zero is refused. raises: MalformedPayload"""
    widths64 = widths.astype(np.int64)
    ends = np.cumsum(widths64)
    total = int(ends[-1]) if len(ends) else 0
    bits = unpack_bits(reader, total)
    shifts = np.repeat(ends, widths64) - 1 - np.arange(total)
    weighted = np.zeros(total + 1, np.int64)
    np.cumsum(bits.astype(np.int64) << shifts, out=weighted[1:])
    fields: npt.NDArray[np.int64] = weighted[ends] - weighted[ends - widths64]
    return fields


def unpack_bits(reader: ByteReader, count: int) -> npt.NDArray[np.uint8]:
    """raises: MalformedPayload"""
    bits = np.unpackbits(np.frombuffer(reader.take(packed_bytes(count)), np.uint8))
    if bits[count:].any():
        raise MalformedPayload("padding bits that are not zero")
    return bits[:count]


def pack_uniform(values: npt.NDArray[np.integer], width: int) -> bytes:
    """All fields of one width of 1 to 32 bits."""
    if width > 16:
        wide = values.astype(np.uint32)[:, None] >> np.arange(width - 1, -1, -1, dtype=np.uint32)
        return np.packbits((wide & np.uint32(1)).astype(np.uint8)).tobytes()
    shifts = np.arange(width - 1, -1, -1, dtype=np.uint16)
    return np.packbits((values.astype(np.uint16)[:, None] >> shifts) & np.uint16(1)).tobytes()


def unpack_uniform(reader: ByteReader, count: int, width: int) -> npt.NDArray[np.int64]:
    """raises: MalformedPayload"""
    bits = unpack_bits(reader, count * width).reshape(count, width)
    return np.asarray(bits @ (1 << np.arange(width - 1, -1, -1, dtype=np.int64)))
