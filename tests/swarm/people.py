"""Identities, swarms and records for tests; equal numbers give equal keys on every run."""

import hashlib
from functools import lru_cache

import msgspec

from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.identity import Identity
from shoal.swarm.members.membership import Swarm, found_swarm, issue
from shoal.swarm.records import Hosted, NodeRecord
from shoal.swarm.units import Span

NOW = 1_800_000_000.0
MODEL = ModelId(hashlib.sha256(b"model").hexdigest())


@lru_cache
def person(number: int) -> Identity:
    return Identity(hashlib.sha256(f"person {number}".encode()).digest())


OWNER = person(0)


def private_swarm(salt: int = 1) -> Swarm:
    return found_swarm("reading circle", OWNER.peer_id, bytes([salt]) * 16)


def public_swarm() -> Swarm:
    return found_swarm("library", OWNER.peer_id, b"", public=True)


def certificate(swarm: Swarm, identity: Identity, now: float = NOW, ttl_s: float = 1e6) -> bytes:
    return issue(OWNER, swarm, identity.peer_id, identity.peer_id[-16:], now, ttl_s)


def hosted(span: Span, layers: int = 6, step_ms: float = 10.0, **changes: object) -> Hosted:
    plain = Hosted(MODEL, "novels-6m", layers, span, "float32", step_ms, 0, 4096, 512)
    return msgspec.structs.replace(plain, **changes)


def record(
    identity: Identity, swarm: Swarm, *spans: Hosted, expires_at: float = NOW + 24.0, **changes: object
) -> NodeRecord:
    plain = NodeRecord(
        peer=identity.peer_id,
        swarm=swarm.id,
        name="node",
        version="0.1.0",
        protocol=1,
        addresses=("/ip4/127.0.0.1/tcp/4001",),
        hosted=spans,
        rtt_ms={},
        started_at=NOW - 100,
        expires_at=expires_at,
        certificate=b"" if swarm.public else certificate(swarm, identity),
    )
    return msgspec.structs.replace(plain, **changes)


def plain_record(peer: str, *spans: Hosted, **changes: object) -> NodeRecord:
    """Unsigned, of a peer with any name: for the pure planners."""
    made = NodeRecord(PeerId(peer), public_swarm().id, peer, "0", 1, (), spans, {}, NOW, NOW + 24)
    return msgspec.structs.replace(made, **changes)
