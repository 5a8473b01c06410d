"""The frame around every compressed payload: who wrote it, for which tensors, how long, and a checksum.

Layout, little endian: magic "shlC", version u8, codec u8, tensor count u8, then per tensor dtype u8, dimension count
u8 and that many u32; body length u32; body; CRC-32C of all that stands before it. A reader names the codec and the
tensors that it agreed on and gets the body only when all of it fits: no size is ever taken from the bytes.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import google_crc32c

from .errors import MalformedPayload

MAGIC = b"shlC"
VERSION = 2
FIXED = struct.Struct("<4sBBB")
LENGTH = struct.Struct("<I")
CHECKSUM_BYTES = 4
DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2}
VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CODECS = {
    "none": 1,
    "fp16": 2,
    "int8": 3,
    "fp4": 4,
    "sparse": 5,
    "kv-raw": 16,
    "kv-lossless": 17,
    "kv-cachegen": 18,
    "kv-cachegen-reference": 19,
    "kv-shoal": 20,
    "kv-shoal-refinement": 21,
    "kv-profile": 22,
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor that both sides agreed on."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def values(self) -> int:
        return prod(self.shape)

    @property
    def raw_bytes(self) -> int:
        return self.values * VALUE_BYTES[self.dtype]


def seal(codec: str, specs: Sequence[TensorSpec], body: bytes) -> bytes:
    head = _head(codec, specs) + LENGTH.pack(len(body))
    checksum = google_crc32c.extend(google_crc32c.value(head), body)
    return b"".join((head, body, checksum.to_bytes(CHECKSUM_BYTES, "little")))


def unseal(data: bytes, codec: str, specs: Sequence[TensorSpec]) -> memoryview:
    """The body of a payload that is exactly what the reader expects.

    raises: MalformedPayload
    """
    head = _head(codec, specs)
    frame = len(head) + LENGTH.size + CHECKSUM_BYTES
    if len(data) < frame:
        raise MalformedPayload(f"{len(data)} bytes are too few for a payload")
    if data[: len(head)] != head:
        raise MalformedPayload(f"not a {codec} payload of version {VERSION} for the tensors agreed on")
    (length,) = LENGTH.unpack_from(data, len(head))
    if length != len(data) - frame:
        raise MalformedPayload(f"a body of {len(data) - frame} bytes that says it has {length}")
    if google_crc32c.value(bytes(data[:-CHECKSUM_BYTES])) != int.from_bytes(data[-CHECKSUM_BYTES:], "little"):
        raise MalformedPayload("a payload whose checksum does not fit")
    return memoryview(data)[len(head) + LENGTH.size : -CHECKSUM_BYTES]


def frame_bytes(specs: Sequence[TensorSpec]) -> int:
    """What the frame adds to a body."""
    return FIXED.size + sum(2 + 4 * len(spec.shape) for spec in specs) + LENGTH.size + CHECKSUM_BYTES


def sealed_bytes(data: bytes | memoryview, specs: Sequence[TensorSpec]) -> int | None:
    """How long the payload at the start of `data` says it is; None when not even that has arrived."""
    at = frame_bytes(specs) - LENGTH.size - CHECKSUM_BYTES
    if len(data) < at + LENGTH.size:
        return None
    return int(LENGTH.unpack_from(data, at)[0]) + frame_bytes(specs)


def codec_of(data: bytes | memoryview) -> str:
    """The codec that a payload names in its head.

    raises: MalformedPayload
    """
    if len(data) >= FIXED.size:
        magic, version, codec, _ = FIXED.unpack_from(data)
        if magic == MAGIC and version == VERSION and codec in _CODEC_NAMES:
            return _CODEC_NAMES[codec]
    raise MalformedPayload("not a payload of a codec known here")


_CODEC_NAMES = {number: name for name, number in CODECS.items()}


def _head(codec: str, specs: Sequence[TensorSpec]) -> bytes:
    head = FIXED.pack(MAGIC, VERSION, CODECS[codec], len(specs))
    for spec in specs:
        head += struct.pack(f"<BB{len(spec.shape)}I", DTYPES[spec.dtype], len(spec.shape), *spec.shape)
    return head
