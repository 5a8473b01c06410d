"""Hidden states on the wire: a 12-byte header and the values as they lie in memory, or 8 bits a value.

Layout, little endian: magic "sA", version u8, dtype u8, count u32, hidden u32, then the body. float32, float16 and
bfloat16 bodies are the raw values (exact). int8 bodies are `count` float32 scales and `count * hidden` int8 values.
The caller of `parse` says how many positions and which width it agreed on; nothing is sized from the bytes.
"""

import struct
from dataclasses import dataclass

from .errors import MalformedPayload

HEADER = struct.Struct("<2sBBII")
MAGIC = b"sA"
VERSION = 1
CODES = {"float32": 0, "bfloat16": 1, "float16": 2, "int8": 3}
NAMES = {code: name for name, code in CODES.items()}
VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


@dataclass(frozen=True, slots=True)
class Activation:
    """count positions of `hidden` values; `body` in the layout of `dtype`."""

    dtype: str
    count: int
    hidden: int
    body: memoryview


def body_bytes(dtype: str, count: int, hidden: int) -> int:
    return count * hidden * VALUE_BYTES[dtype] + (4 * count if dtype == "int8" else 0)


def pack(dtype: str, count: int, hidden: int, body: bytes | memoryview) -> bytes:
    """raises: ValueError when the body's size does not fit the shape (a bug of the caller)"""
    if len(body) != body_bytes(dtype, count, hidden):
        raise ValueError(f"body of {len(body)} bytes for {dtype} ({count}, {hidden})")
    return HEADER.pack(MAGIC, VERSION, CODES[dtype], count, hidden) + body


def parse(data: bytes, count: int, hidden: int) -> Activation:
    """raises: MalformedPayload unless the bytes are exactly an activation of shape (count, hidden)"""
    if len(data) < HEADER.size:
        raise MalformedPayload(f"{len(data)} bytes are too few for an activation")
    magic, version, code, got_count, got_hidden = HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION or code not in NAMES:
        raise MalformedPayload("not an activation of a version and dtype known here")
    if (got_count, got_hidden) != (count, hidden):
        raise MalformedPayload(f"activation of shape ({got_count}, {got_hidden}), expected ({count}, {hidden})")
    dtype = NAMES[code]
    if len(data) - HEADER.size != body_bytes(dtype, count, hidden):
        raise MalformedPayload(f"activation body of {len(data) - HEADER.size} bytes does not fit its shape")
    return Activation(dtype, count, hidden, memoryview(data)[HEADER.size :])


def undress(data: bytes) -> tuple[int, bytes]:
    """The code of the dtype and the body, without the header, for where the count is said beside it. See `dress`.

    raises: MalformedPayload
    """
    return CODES[dtype_of(data)], data[HEADER.size :]


def dress(code: int, count: int, body: bytes) -> bytes:
    """With the header again; the width follows from the body's size. raises: MalformedPayload"""
    if code not in NAMES or count < 1:
        raise MalformedPayload(f"no activation: dtype {code}, {count} positions")
    dtype = NAMES[code]
    hidden = (len(body) - body_bytes(dtype, count, 0)) // (count * VALUE_BYTES[dtype])
    if hidden < 0 or len(body) != body_bytes(dtype, count, hidden):
        raise MalformedPayload(f"activation body of {len(body)} bytes does not fit {count} positions")
    return pack(dtype, count, hidden, body)


def _width(data: bytes) -> int:
    if len(data) < HEADER.size:
        raise MalformedPayload(f"{len(data)} bytes are too few for an activation")
    return int(HEADER.unpack_from(data)[4])


def dtype_of(data: bytes) -> str:
    """raises: MalformedPayload"""
    _width(data)
    code = data[3]
    if code not in NAMES:
        raise MalformedPayload(f"unknown dtype {code} of an activation")
    return NAMES[code]


def _split(part: Activation) -> tuple[memoryview, memoryview]:
    scales = 4 * part.count if part.dtype == "int8" else 0
    return part.body[:scales], part.body[scales:]


def join(parts: list[tuple[bytes, int]]) -> bytes:
    """Concatenate activations of one width along positions; each with its count. raises: MalformedPayload"""
    width = _width(parts[0][0])
    parsed = [parse(data, count, width) for data, count in parts]
    if len({p.dtype for p in parsed}) != 1:
        raise MalformedPayload("activations of several dtypes cannot be joined")
    pieces = [_split(p) for p in parsed]
    body = b"".join([*(scales for scales, _ in pieces), *(values for _, values in pieces)])
    return pack(parsed[0].dtype, sum(p.count for p in parsed), width, body)


def tail(data: bytes, count: int, skip: int) -> bytes:
    """The positions from `skip` on. raises: MalformedPayload"""
    part = parse(data, count, _width(data))
    scales, values = _split(part)
    body = bytes(scales[4 * skip :]) + bytes(values[skip * part.hidden * VALUE_BYTES[part.dtype] :])
    return pack(part.dtype, count - skip, part.hidden, body)


def cut(data: bytes, count: int, start: int, stop: int) -> bytes:
    """The positions [start, stop). raises: MalformedPayload; ValueError for positions that are not there"""
    if not 0 <= start < stop <= count:
        raise ValueError(f"positions {start} to {stop} of {count}")
    part = parse(data, count, _width(data))
    scales, values = _split(part)
    row = part.hidden * VALUE_BYTES[part.dtype]
    body = bytes(scales[4 * start : 4 * stop]) + bytes(values[start * row : stop * row])
    return pack(part.dtype, stop - start, part.hidden, body)
