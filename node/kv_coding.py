"""A session's keys and values between a shard's pool and the chunks that travel: the float half of moving a cache.

Coding runs on a thread beside the device's own, one chunk at a time, so that neither sessions nor memory wait for it.

Shapes: L layers, T positions of a chunk, H key-value heads, D width of a head.
"""
# ruff: noqa: N803  names end in their shapes, as the legend above says

from collections.abc import Mapping

import numpy as np
import torch
from msgspec.structs import replace

from shoal.compression.errors import MalformedPayload
from shoal.compression.kv_bitstream import FINE_TOKENS, decode_kv, encode_kv
from shoal.compression.kv_block import KvBlock, KvShape, Stored, to_floats
from shoal.compression.kv_comparison import unexplained_distance
from shoal.compression.kv_levels import CHUNK_TOKENS, KvLevel
from shoal.compression.kv_profile import KvProfile, parse_profile
from shoal.swarm.errors import BadChunk, Refused, UsageError
from shoal.swarm.kv.kv_chunks import KvChunk, KvFormat, pack_chunk, parse_chunk
from shoal.swarm.manifest import KV_PROFILE

from .activation_tensors import TORCH_DTYPES


class KvCoding:
    """For caches of one format. profile: of the whole model; None where it has none, then only lossless is coded."""

    def __init__(self, kind: KvFormat, profile: KvProfile | None) -> None:
        self.kind = kind
        self._profile = profile.part(*kind.layers) if profile is not None else None
        self.is_warm = kind.layers[0] == kind.layers[1]

    def check_level(self, level: KvLevel) -> None:
        """raises: Refused"""
        if level != "lossless":
            self._profile_for(level)

    def _profile_for(self, level: KvLevel) -> KvProfile:
        """raises: Refused"""
        if self._profile is None:
            raise Refused(f"this model has no profile for {level} caches; shoal kv calibrate makes one")
        return self._profile

    def warm_up(self, heads: int, width: int) -> None:
        """Load compiled code, and invert the profile's matrices: the first chunk would wait a second for it."""
        noise = torch.randn(self._shape(0, CHUNK_TOKENS, heads, width).specs[0].shape).to(TORCH_DTYPES[self.kind.dtype])
        levels: tuple[KvLevel, ...] = ("lossless", "default") if self._profile is not None else ("lossless",)
        for level in levels:
            self.decode(parse_chunk(self.encode(0, noise, noise, level)), heads, width)
        self.is_warm = True

    def encode(self, start: int, keys_LTHD: torch.Tensor, values_LTHD: torch.Tensor, level: KvLevel) -> bytes:
        """One chunk, from tensors on the CPU in the arithmetic's dtype."""
        layers, count, heads, width = keys_LTHD.shape
        kind = self.kind if level != "lossless" else replace(self.kind, profile=b"")
        if not layers:
            return pack_chunk(KvChunk(kind, start, count, b""))
        block = KvBlock(self._shape(start, count, heads, width), _stored(keys_LTHD), _stored(values_LTHD))
        # A chunk cut short ends the cache, and the newest positions matter most.
        fine = FINE_TOKENS if count < CHUNK_TOKENS else 0
        (payload,) = encode_kv(block, level, self._profile, fine_tokens=min(fine, count))
        return pack_chunk(KvChunk(kind, start, count, payload))

    def decode(self, chunk: KvChunk, heads: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(L, T, H, D) keys and values. raises: BadChunk for a payload of another shape, damaged or not finite"""
        shape = self._shape(chunk.start, chunk.count, heads, width)
        if not shape.layers:
            if chunk.payload:
                raise BadChunk("a chunk with numbers for a span that has no cache")
            empty = torch.empty(shape.specs[0].shape, dtype=TORCH_DTYPES[shape.dtype])
            return empty, empty
        try:
            block = decode_kv([chunk.payload], shape, self._profile)
        except (MalformedPayload, ValueError) as error:
            raise BadChunk(str(error)) from error
        for array in (block.keys, block.values):
            if not all(np.isfinite(to_floats(layer, shape.dtype)).all() for layer in array):
                raise BadChunk(f"a cache of {chunk.count} positions holds NaN or infinity")
        return _tensor(block.keys), _tensor(block.values)

    def distance(self, mine: KvChunk, other: KvChunk, heads: int, width: int, level: KvLevel) -> float:
        """See `Compute.kv_distance`. raises: BadChunk; Refused without a profile for this level"""
        ours, claimed = self.decode(mine, heads, width), self.decode(other, heads, width)
        if level == "lossless" or not ours[0].numel():
            return max(relative_distance(a, b) for a, b in zip(ours, claimed, strict=True))
        shape = self._shape(mine.start, mine.count, heads, width)
        blocks = [KvBlock(shape, _stored(keys), _stored(values)) for keys, values in (ours, claimed)]
        profile = self._profile_for(level)
        return unexplained_distance(blocks[0], blocks[1], profile, profile.step_quarters(level))

    def _shape(self, start: int, count: int, heads: int, width: int) -> KvShape:
        first, stop = self.kind.layers
        return KvShape(stop - first, count, heads, width, self.kind.dtype, start)


def relative_distance(mine: torch.Tensor, other: torch.Tensor) -> float:
    """|other - mine| / |mine|; 0 where both are empty."""
    a, b = mine.double(), other.double()
    size = float(a.norm())
    return float((b - a).norm()) / max(size, 1e-12) if a.numel() else 0.0


def _stored(x: torch.Tensor) -> Stored:
    if x.dtype == torch.bfloat16:
        return np.asarray(x.contiguous().view(torch.int16).numpy().view("<u2"))
    return np.asarray(x.contiguous().numpy())


def _tensor(stored: Stored) -> torch.Tensor:
    if stored.dtype == np.dtype("<u2"):
        return torch.from_numpy(stored.view("<i2")).view(torch.bfloat16)
    return torch.from_numpy(stored)


def read_profile(texts: Mapping[str, bytes], layers: int) -> KvProfile | None:
    """That of a model, among its small files. raises: UsageError when there is one that cannot be used"""
    if KV_PROFILE not in texts:
        return None
    try:
        profile = parse_profile(texts[KV_PROFILE])
    except MalformedPayload as error:
        raise UsageError(
            f"{KV_PROFILE} of this model cannot be read: {error}; make it anew: shoal kv calibrate"
        ) from error
    if profile.layers != layers:
        raise UsageError(f"{KV_PROFILE} is of a model with {profile.layers} layers, this one has {layers}; remove it")
    return profile
