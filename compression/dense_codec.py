"""Codecs that send every value of an update: as it is, as float16, as 8 bits or as 4-bit floats."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .byte_reader import ByteReader
from .container import TensorSpec, seal, unseal
from .errors import MalformedPayload
from .update_codec import Values, checked_update
from .value_coding import ratios_to

BUCKET = 4096
FP4_LEVELS = np.array([0, 1, 2, 4, 8, 16, 32, 64], np.float32) / np.float32(64)
FP4_EDGES = ((FP4_LEVELS[:-1] + FP4_LEVELS[1:]) / 2).astype(np.float32)
LARGEST_HALF = 65504.0


@dataclass(frozen=True, slots=True)
class PlainCodec:
    """float32 as it lies in memory, exact, or float16 (values beyond 65504 are cut to it; relative error 2^-11)."""

    name: str
    half: bool

    def encode(self, values: Values, seed: int = 0) -> bytes:
        values = checked_update(values)
        specs = [TensorSpec(values.shape)]
        if self.half:
            return seal("fp16", specs, np.clip(values, -LARGEST_HALF, LARGEST_HALF).astype("<f2").tobytes())
        return seal("none", specs, values.astype("<f4", copy=False).tobytes())

    def decode(self, data: bytes, count: int, seed: int = 0) -> Values:
        body = ByteReader(unseal(data, "fp16" if self.half else "none", [TensorSpec((count,))]))
        values = body.array("<f2" if self.half else "<f4", count).astype(np.float32)
        body.close()
        if not np.isfinite(values).all():
            raise MalformedPayload("an update with values that are not finite")
        return values


@dataclass(frozen=True, slots=True)
class BucketCodec:
    """8-bit integers (error at most bucket maximum / 254) or FP4 E3M0 (zero and seven powers of two, each sign).

    One float32 scale, the largest magnitude, per bucket of 4096 values.
    source: Dettmers et al., arXiv:2110.02861 (8 bit); Douillard et al., Streaming DiLoCo, arXiv:2501.18512 (E3M0)
    """

    name: str
    bits: int

    def encode(self, values: Values, seed: int = 0) -> bytes:
        values = checked_update(values)
        ratios, scales = _bucket_ratios(values)
        if self.bits == 8:
            body = np.rint(ratios * np.float32(127)).astype(np.int8).tobytes()
        else:
            codes = np.searchsorted(FP4_EDGES, np.abs(ratios), side="right").astype(np.uint8)
            codes |= (np.signbit(ratios) & (codes > 0)).astype(np.uint8) << np.uint8(3)
            padded = np.concatenate([codes, np.zeros(len(codes) % 2, np.uint8)])
            body = (padded[::2] << np.uint8(4) | padded[1::2]).tobytes()
        return seal(self._codec, [TensorSpec(values.shape)], scales.astype("<f4", copy=False).tobytes() + body)

    def decode(self, data: bytes, count: int, seed: int = 0) -> Values:
        reader = ByteReader(unseal(data, self._codec, [TensorSpec((count,))]))
        scales = reader.array("<f4", -(-count // BUCKET)).astype(np.float32)
        if not np.isfinite(scales).all() or (scales < 0).any():
            raise MalformedPayload("a scale that is negative or not finite")
        if self.bits == 8:
            codes = reader.array("i1", count)
            if (codes == -128).any():
                raise MalformedPayload("an 8-bit value that no encoder writes")
            ratios = codes.astype(np.float32) / np.float32(127)
        else:
            ratios = _fp4_ratios(reader.array("u1", -(-count // 2)).astype(np.uint8), count)
        reader.close()
        return ratios * np.repeat(scales, BUCKET)[:count]

    @property
    def _codec(self) -> str:
        return "int8" if self.bits == 8 else "fp4"


def _bucket_ratios(values: Values) -> tuple[Values, Values]:
    buckets = -(-len(values) // BUCKET)
    padded = np.zeros(buckets * BUCKET, np.float32)
    padded[: len(values)] = values
    rows = padded.reshape(buckets, BUCKET)
    scales: Values = np.abs(rows).max(axis=1, initial=0)
    ratios = ratios_to(rows, np.broadcast_to(scales[:, None], rows.shape))
    return ratios.ravel()[: len(values)], scales


def _fp4_ratios(pairs: npt.NDArray[np.uint8], count: int) -> Values:
    codes = np.empty(2 * len(pairs), np.uint8)
    codes[::2], codes[1::2] = pairs >> np.uint8(4), pairs & np.uint8(15)
    if codes[count:].any() or (codes == 8).any():
        raise MalformedPayload("a 4-bit value that no encoder writes")
    table = np.concatenate([FP4_LEVELS, -FP4_LEVELS])
    return np.asarray(table[codes[:count]])
