"""KV blocks exactly: the exponents range coded, the sign and mantissa bits as they are.

bfloat16 and float32: the 8 exponent bits are the coded symbol. float16: the high byte (sign, exponent, two mantissa
bits) is. Each layer's keys and values have their own table where the block is large enough to carry them.
A block that does not shrink travels raw, so a payload is never longer than the raw block and its frame.

Bits are taken apart and put together AT_ONCE values at a time: of a chunk of many layers, whole arrays of every step in
between would take several times the chunk.
"""

import numpy as np
import numpy.typing as npt

from .byte_reader import ByteReader
from .container import codec_of, seal, unseal
from .errors import MalformedPayload
from .kv_block import STORED_CODES, KvBlock, KvShape, Stored
from .symbol_section import decode_symbols, encode_symbols

VALUES_PER_TABLE = 4096
AT_ONCE = 1 << 18
REST_BYTES = {"bfloat16": 1, "float16": 1, "float32": 3}


def encode_lossless(block: KvBlock, accelerate: bool | None = None) -> bytes:
    shape = block.shape
    count, size = shape.values // 2, REST_BYTES[shape.dtype]
    symbols = np.empty(2 * count, np.uint8)
    rest = np.empty((2, size, count), np.uint8)  # a plane a byte
    for kind, array in enumerate((block.keys, block.values)):
        stored = np.ascontiguousarray(array).ravel()
        for cut in _cuts(count):
            symbols[kind * count :][cut], rest[kind, :, cut] = _split(stored[cut], shape.dtype)
    tables = _tables(shape)
    coded = encode_symbols(symbols, _contexts(shape, tables), tables, 256, accelerate)
    del symbols
    if len(coded) + rest.nbytes < shape.raw_bytes:
        body = b"".join((coded, rest.data))
        del coded, rest
        return seal("kv-lossless", shape.specs, body)
    return encode_raw(block)


def encode_raw(block: KvBlock) -> bytes:
    return seal("kv-raw", block.shape.specs, block.keys.tobytes() + block.values.tobytes())


def decode_lossless(data: bytes, shape: KvShape, accelerate: bool | None = None) -> KvBlock:
    """Takes a raw payload too. raises: MalformedPayload"""
    count = shape.values // 2
    full = shape.specs[0].shape
    codec = codec_of(data)
    if codec not in {"kv-raw", "kv-lossless"}:
        raise MalformedPayload(f"a {codec} payload where an exact block is due")
    reader = ByteReader(unseal(data, codec, shape.specs))
    if codec == "kv-raw":
        dtype = STORED_CODES[shape.dtype]
        keys, values = reader.array(dtype, count).copy(), reader.array(dtype, count).copy()
    else:
        tables = _tables(shape)
        symbols = decode_symbols(reader, _contexts(shape, tables), tables, 256, accelerate)
        size = REST_BYTES[shape.dtype]
        keys, values = (
            _merged(symbols[part], np.frombuffer(reader.take(count * size), np.uint8).reshape(size, count), shape.dtype)
            for part in (slice(0, count), slice(count, None))
        )
    reader.close()
    return KvBlock(shape, keys.reshape(full), values.reshape(full))


def _tables(shape: KvShape) -> int:
    per_layer = shape.values // (2 * shape.layers)
    return 2 * shape.layers if per_layer >= VALUES_PER_TABLE else 1


def _contexts(shape: KvShape, tables: int) -> npt.NDArray[np.uint16]:
    return np.repeat(np.arange(tables, dtype=np.uint16), shape.values // tables)


def _cuts(count: int) -> list[slice]:
    return [slice(first, min(first + AT_ONCE, count)) for first in range(0, count, AT_ONCE)]


def _split(stored: Stored, dtype: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Symbols (N,), and the other bits as planes of bytes (REST_BYTES, N), the lowest first."""
    if dtype == "float32":
        bits = stored.view("<u4")
        rest = (bits & np.uint32(0x7FFFFF)) | ((bits >> np.uint32(31)) << np.uint32(23))
        planes = rest.astype("<u4", copy=False).view(np.uint8).reshape(-1, 4)[:, :3]
        return (bits >> np.uint32(23)).astype(np.uint8), planes.T
    bits16 = stored.view("<u2")
    if dtype == "float16":
        return (bits16 >> np.uint16(8)).astype(np.uint8), bits16.astype(np.uint8)[None]
    sign_and_mantissa = (bits16 & np.uint16(0x7F)) | ((bits16 >> np.uint16(15)) << np.uint16(7))
    return (bits16 >> np.uint16(7)).astype(np.uint8), sign_and_mantissa.astype(np.uint8)[None]


def _merged(symbols: npt.NDArray[np.uint8], rest: npt.NDArray[np.uint8], dtype: str) -> Stored:
    """The inverse of `_split`, (N,)."""
    stored = np.empty(len(symbols), STORED_CODES[dtype])
    for cut in _cuts(len(symbols)):
        stored[cut] = _merge(symbols[cut], rest[:, cut], dtype)
    return stored


def _merge(symbols: npt.NDArray[np.uint8], rest: npt.NDArray[np.uint8], dtype: str) -> Stored:
    if dtype == "float32":
        planes = rest.astype(np.uint32)
        low = planes[0] | (planes[1] << np.uint32(8)) | (planes[2] << np.uint32(16))
        bits = (symbols.astype(np.uint32) << np.uint32(23)) | (low & np.uint32(0x7FFFFF))
        signed = bits | ((low >> np.uint32(23)) << np.uint32(31))
        return np.asarray(signed.astype("<u4").view("<f4"))
    wide, low16 = symbols.astype(np.uint16), rest[0].astype(np.uint16)
    if dtype == "float16":
        return np.asarray(((wide << np.uint16(8)) | low16).astype("<u2").view("<f2"))
    sign = (low16 >> np.uint16(7)) << np.uint16(15)
    return np.asarray((wide << np.uint16(7)) | (low16 & np.uint16(0x7F)) | sign).astype("<u2")
