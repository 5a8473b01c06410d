"""What a receiver asks of a donor, and the answers; every answer stays far below the limit of a unary call."""

import msgspec

from shoal.swarm.canonical import Canonical

from .block_transfer import MAX_PIECE_BYTES
from .block_transfer_listing import BundleId

METHOD = "/shoal/blocks/1"
LISTING = ""  # as a file's name: the listing itself
_SLACK_BYTES = 4096


class BlockRequest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    bundle: BundleId
    file: str
    offset: int
    length: int


class BlockAnswer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """data: shorter than asked only where the file ends. wait_s: above zero when the donor is at its limit"""

    total_bytes: int
    data: bytes
    wait_s: float


REQUESTS = Canonical(BlockRequest, "a request for a piece of a block", _SLACK_BYTES)
ANSWERS = Canonical(BlockAnswer, "a piece of a block", MAX_PIECE_BYTES + _SLACK_BYTES)
