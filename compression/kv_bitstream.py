"""The front door for KV caches: a block and the name of a quality in, one payload per chunk of 64 tokens out.

Qualities: "lossless" (exact), and with a profile "near-lossless", "default" and "small". Every chunk decodes alone and
may have any quality, so that a stream can change it midway.
"""

from collections.abc import Sequence

from .container import codec_of
from .errors import MalformedPayload
from .kv_block import KvBlock, KvShape, empty_block
from .kv_levels import QUALITIES
from .kv_lossless import decode_lossless, encode_lossless
from .kv_profile import KvProfile
from .kv_shoal import decode_chunks, encode_block

FINE_TOKENS = 32


def encode_kv(
    block: KvBlock,
    quality: str = "lossless",
    profile: KvProfile | None = None,
    *,
    fine_tokens: int = 0,
    progressive: bool = False,
    accelerate: bool | None = None,
) -> list[bytes]:
    """One payload per chunk. fine_tokens: FINE_TOKENS when the block ends the cache, 0 when more follows.

    raises: ValueError for a quality that is none of QUALITIES, or that needs a profile and has none that fits
    """
    if quality == "lossless":
        return [encode_lossless(chunk, accelerate) for chunk in block.chunks()]
    if quality not in QUALITIES or profile is None:
        raise ValueError(f"quality {quality!r} wants to be one of {QUALITIES}, and all but the first want a profile")
    quarters = profile.step_quarters(quality)
    return encode_block(block, profile, quarters, fine_tokens, progressive=progressive, accelerate=accelerate)


def decode_kv(
    payloads: Sequence[bytes],
    shape: KvShape,
    profile: KvProfile | None = None,
    *,
    allow_truncated: bool = False,
    accelerate: bool | None = None,
) -> KvBlock:
    """The block of `shape`, from the payloads of all its chunks in order.

    raises: MalformedPayload; also for a chunk that wants a profile when there is none, or another one
    """
    shapes = shape.chunks()
    if len(shapes) != len(payloads):
        raise MalformedPayload(f"{len(payloads)} payloads for {len(shapes)} chunks")
    target = empty_block(shape)
    coded = []
    for index, payload in enumerate(payloads):
        match codec_of(payload):
            case "kv-shoal":
                coded.append(index)
            case _:
                first = shapes[index].first_position - shape.first_position
                target.put(first, decode_lossless(payload, shapes[index], accelerate))
    if coded:
        if profile is None:
            raise MalformedPayload("a chunk that cannot be read without its profile")
        decode_chunks(
            [payloads[i] for i in coded],
            [shapes[i] for i in coded],
            profile,
            target,
            allow_truncated=allow_truncated,
            accelerate=accelerate,
        )
    return target
