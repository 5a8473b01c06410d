"""Progressive chunks: numbers rounded to threes first, the place in each three after.

A progressive chunk is the payload of its base followed by the payload of the refinement: the checksum of the base it
belongs to, then a stream. The tables of both follow from the profile's, so the two together are as long as the whole
chunk but for a frame; escaped numbers travel whole in the base.
"""

import numpy as np
import numpy.typing as npt

from .byte_reader import ByteReader
from .container import CHECKSUM_BYTES, seal, sealed_bytes, unseal
from .errors import MalformedPayload
from .kv_chunk import ParsedChunk
from .kv_profile import ESCAPE, ZERO, KvProfile
from .rans import decode_streams, encode_streams, lanes_for

PLACES_PER_LANE = 8192
COARSE_ZERO = 20
COARSE_ESCAPE = 2 * COARSE_ZERO + 1


def split_symbols(
    symbols: npt.NDArray[np.uint8], contexts: npt.NDArray[np.uint16]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """Symbols of the base, of the place in each three, and the places' contexts."""
    numbers = symbols.astype(np.int16) - np.int16(ZERO)
    # number = 3 * base + place with place in -1..1.
    base = (numbers + np.int16(1)) // np.int16(3)
    place = numbers - np.int16(3) * base
    coarse = np.where(symbols == ESCAPE, COARSE_ESCAPE, base + COARSE_ZERO).astype(np.uint8)
    return coarse, _mirrored(place, base), _place_contexts(base, contexts)


def _mirrored(place: npt.NDArray[np.int16], base: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
    """Places 0, 1, 2 counted away from zero, so that both signs share their tables."""
    return (np.where(base < 0, -place, place) + 1).astype(np.uint8)


def _place_contexts(base: npt.NDArray[np.int16], contexts: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    return contexts * np.uint16(4) + np.minimum(np.abs(base), 3).astype(np.uint16)


def refinement_stream(
    coarse: npt.NDArray[np.uint8],
    places: npt.NDArray[np.uint8],
    contexts: npt.NDArray[np.uint16],
    profile: KvProfile,
    accelerate: bool | None,
) -> bytes:
    """The places of one chunk, but for those of escaped numbers."""
    told = coarse != COARSE_ESCAPE
    rows = places[told][None], contexts[told]
    lanes = lanes_for(len(coarse), PLACES_PER_LANE)
    return encode_streams(*rows, profile.fine_table, lanes, accelerate)[0]


def with_refinement(base: bytes, stream: bytes) -> bytes:
    return base + seal("kv-shoal-refinement", [], base[-CHECKSUM_BYTES:] + stream)


def refined_numbers(
    member: ParsedChunk,
    base: npt.NDArray[np.int64],
    told: npt.NDArray[np.bool_],
    contexts: npt.NDArray[np.uint16],
    profile: KvProfile,
    allow_truncated: bool,
    accelerate: bool | None,
) -> npt.NDArray[np.int64]:
    """Whole numbers from the base's; three times the base where the refinement may be and is cut.

    told: where the base is no escape
    raises: MalformedPayload
    """
    length = sealed_bytes(member.refinement, [])
    if allow_truncated and (length is None or length > len(member.refinement)):
        return 3 * base
    reader = ByteReader(unseal(member.refinement, "kv-shoal-refinement", []))
    if reader.take(CHECKSUM_BYTES) != member.tag:
        raise MalformedPayload("the refinement of another base")
    narrow = base[told].astype(np.int16)
    stream = reader.take(reader.left)
    lanes = lanes_for(len(base), PLACES_PER_LANE)
    place_contexts = _place_contexts(narrow, contexts[told])
    (places,) = decode_streams([stream], place_contexts, profile.fine_table, lanes, accelerate)
    outward = places.astype(np.int64) - 1
    numbers = 3 * base
    numbers[told] += np.where(narrow < 0, -outward, outward)
    return numbers
