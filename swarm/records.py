"""What a node says about itself in the DHT: signed by its own key, small, short-lived.

A record is self-contained (body and signature), so any peer may hand it on: a thin client without a DHT asks one peer for
all records it holds, checks each signature, and at worst is told too little.
"""

import msgspec

from .identifiers import ModelId, PeerId, SwarmId
from .units import Span

RECORD_TTL_S = 24.0  # a peer killed with -9 is out of every listing after this long
ANNOUNCE_PERIOD_S = 8.0
MAX_RECORD_BYTES = 4096


class Hosted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A span of one model, ready to serve."""

    model: ModelId
    name: str  # the manifest's display name
    layers: int  # decoder layers of the whole model
    span: Span
    dtype: str  # of the arithmetic; sessions stay within one dtype
    step_ms: float  # measured time of one decode step over the whole span
    queue: int  # sessions that are open now
    free_tokens: int  # KV room left, in tokens
    max_context: int


class NodeRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    peer: PeerId
    swarm: SwarmId
    name: str
    version: str  # of the shoal package
    protocol: int
    addresses: tuple[str, ...]  # multiaddrs without the /p2p/ part
    hosted: tuple[Hosted, ...]
    rtt_ms: dict[PeerId, float]  # measured round trips to up to 8 other peers
    started_at: float  # unix seconds
    expires_at: float  # unix seconds
    certificate: bytes = b""  # membership, in private swarms


class SignedRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    body: bytes  # msgpack of NodeRecord
    signature: bytes  # ed25519 by body.peer over DOMAIN + body
