"""The frame of a chunk of the `shoal` KV codec.

Body: kind u8 (bit 0: base of a progressive chunk, bit 1: with a shift), step quarters i8, fine tokens u8, first
position u32, the first 8 bytes of the profile's digest, stream length u32, the shift of the rotated keys as bfloat16
if there is one (a bias on all keys that the profile does not know), stream, escaped numbers.
"""

import struct
from dataclasses import dataclass

import numpy as np

from .byte_reader import ByteReader
from .container import CHECKSUM_BYTES, sealed_bytes, unseal
from .errors import MalformedPayload
from .kv_block import Floats, KvShape, to_floats
from .kv_escapes import Numbers, parse_escapes
from .kv_profile import KvProfile
from .kv_symbols import StepPlan
from .rans import lanes_for

HEAD = struct.Struct("<BbBI8sI")
WHOLE, BASE, SHIFTED = 0, 1, 2
SYMBOLS_PER_LANE = 4096


def chunk_lanes(profile: KvProfile, tokens: int) -> int:
    """Of the stream of a chunk."""
    return lanes_for(profile.tensors * tokens * profile.part_channels, SYMBOLS_PER_LANE)


def chunk_head(kind: int, plan: StepPlan, position: int, profile: KvProfile, stream_bytes: int) -> bytes:
    return HEAD.pack(kind, plan.quarters, plan.fine_tokens, position, profile.digest[:8], stream_bytes)


@dataclass(frozen=True, slots=True, eq=False)
class ParsedChunk:
    """A chunk whose frame and head are right; its streams are not decoded yet.

    tag: checksum of the payload, which a refinement names; refinement: all that stands behind a base
    """

    kind: int
    plan: StepPlan
    shift: bytes
    stream: memoryview
    escapes: ByteReader
    tag: bytes
    refinement: bytes

    @classmethod
    def parse(cls, payload: bytes, shape: KvShape, profile: KvProfile) -> "ParsedChunk":
        """raises: MalformedPayload; ValueError when the profile is not for this shape"""
        if not profile.fits(shape):
            raise ValueError("a profile made for another model")
        length = min(sealed_bytes(payload, shape.specs) or 0, len(payload))
        base = payload[:length]
        reader = ByteReader(unseal(base, "kv-shoal", shape.specs))
        kind, quarters, fine, position, digest, stream_bytes = HEAD.unpack(reader.take(HEAD.size))
        if digest != profile.digest[:8]:
            raise MalformedPayload("a chunk coded with another profile")
        if kind > BASE | SHIFTED or fine > shape.tokens or position != shape.first_position:
            raise MalformedPayload("a chunk of another kind or position than agreed on")
        if not kind & BASE and length != len(payload):
            raise MalformedPayload("bytes behind a whole chunk")
        plan = StepPlan(quarters, shape.tokens, fine)
        shift = bytes(reader.take(2 * shape.layers * profile.channels)) if kind & SHIFTED else b""
        stream = reader.take(stream_bytes)
        return cls(kind, plan, shift, stream, reader, base[-CHECKSUM_BYTES:], payload[length:])

    def decodes_like(self, other: "ParsedChunk") -> bool:
        return (self.kind, self.plan, self.shift) == (other.kind, other.plan, other.shift)

    def escaped(self, count: int) -> Numbers:
        """The numbers that stand beside the stream; nothing may follow them. raises: MalformedPayload"""
        numbers = parse_escapes(self.escapes, count)
        self.escapes.close()
        return numbers


def shifted_offsets(profile: KvProfile, shift: bytes) -> Floats:
    """The profile's offsets of the keys plus the shift of a chunk. raises: MalformedPayload for one not finite"""
    if not shift:
        return profile.offsets
    vector = to_floats(np.frombuffer(shift, "<u2"), "bfloat16").reshape(profile.offsets.shape)
    if not np.isfinite(vector).all():
        raise MalformedPayload("a shift that is not finite")
    with np.errstate(over="ignore"):
        return profile.offsets + vector
