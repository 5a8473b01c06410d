"""Golomb-Rice codes for the distances between kept positions: no table, so the code for small payloads.

Layout: parameter u8; the low `parameter` bits of every number; the quotients in unary (that many zeros, then a one).
source: Rice and Plaunt, Adaptive variable-length coding, 1971
"""

import numpy as np
import numpy.typing as npt

from .bit_fields import pack_uniform, packed_bytes, unpack_uniform
from .byte_reader import ByteReader
from .errors import MalformedPayload

MAXIMUM_PARAMETER = 16


def best_parameter(numbers_n: npt.NDArray[np.int64]) -> int:
    return min(range(MAXIMUM_PARAMETER + 1), key=lambda parameter: rice_bits(numbers_n, parameter))


def rice_bits(numbers_n: npt.NDArray[np.int64], parameter: int) -> int:
    return len(numbers_n) * (1 + parameter) + int((numbers_n >> parameter).sum())


def encode_rice(numbers_n: npt.NDArray[np.int64]) -> bytes:
    parameter = best_parameter(numbers_n)
    quotients = numbers_n >> parameter
    low = pack_uniform(numbers_n & ((1 << parameter) - 1), parameter) if parameter else b""
    unary = np.zeros(len(numbers_n) + int(quotients.sum()), np.uint8)
    unary[np.cumsum(quotients + 1) - 1] = 1
    return bytes([parameter]) + low + np.packbits(unary).tobytes()


def decode_rice(reader: ByteReader, count: int, maximum: int) -> npt.NDArray[np.int64]:
    """`count` numbers, none above `maximum`. raises: MalformedPayload"""
    parameter = reader.number("B")
    if parameter > MAXIMUM_PARAMETER:
        raise MalformedPayload("a Rice parameter that no encoder takes")
    low = unpack_uniform(reader, count, parameter) if parameter else np.zeros(count, np.int64)
    # The unary part is as long as it takes to find `count` ones, and at most what `maximum` allows.
    longest = packed_bytes(count * ((maximum >> parameter) + 1))
    data = np.frombuffer(reader.take(min(reader.left, longest)), np.uint8)
    ends = np.flatnonzero(np.unpackbits(data))[:count]
    if len(ends) < count:
        raise MalformedPayload("a Rice code that is cut off")
    used = packed_bytes(int(ends[-1]) + 1) if count else 0
    if count and np.unpackbits(data[used - 1 : used])[int(ends[-1]) % 8 + 1 :].any():
        raise MalformedPayload("padding bits that are not zero")
    reader.give_back(len(data) - used)
    numbers: npt.NDArray[np.int64] = ((np.diff(ends, prepend=-1) - 1) << parameter) + low
    if count and int(numbers.max()) > maximum:
        raise MalformedPayload("a number above what its shape allows")
    return numbers
