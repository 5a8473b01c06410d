"""Who leads a round and who reduces which shard: rendezvous hashing, so that all compute the same and little moves.

source: Thaler and Ravishankar, Using Name-Based Mappings to Increase Hit Rates, 1998 (highest random weight)
"""

import hashlib
from collections.abc import Collection, Sequence
from functools import lru_cache

from shoal.swarm.identifiers import PeerId

from .run_identity import RunId


def _weight(*parts: object) -> bytes:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()


@lru_cache(maxsize=64)
def leaders(run: RunId, round_: int, peers: tuple[PeerId, ...]) -> tuple[PeerId, ...]:
    """The order in which they may lead the round; another one each round."""
    return tuple(sorted(peers, key=lambda peer: _weight("leader", run, round_, peer)))


@lru_cache(maxsize=64)
def owners(
    run: RunId, shards: int, peers: tuple[PeerId, ...], previous: tuple[PeerId | None, ...] = ()
) -> tuple[PeerId, ...]:
    """The owner of each shard: who had it, while that is fair, since the owner's residual would be lost; else the
    highest weight among those that own less than their share. Nobody owns more than ceil(shards / peers).

    raises: ValueError without peers
    """
    if not peers:
        raise ValueError("nobody to own the shards")
    most = -(-shards // len(peers))
    owned = dict.fromkeys(peers, 0)
    chosen: list[PeerId | None] = [None] * shards
    for shard, peer in enumerate(previous[:shards]):
        if peer is not None and owned.get(peer, most) < most:
            chosen[shard] = peer
            owned[peer] += 1
    for shard in range(shards):
        if chosen[shard] is None:
            fewest = min(owned.values())
            free = [peer for peer in peers if owned[peer] == fewest]
            best = max(free, key=lambda peer: _weight("owner", run, shard, peer))
            chosen[shard] = best
            owned[best] += 1
    return tuple(peer for peer in chosen if peer is not None)


def jury(beacon: bytes, shard: int, peers: Collection[PeerId], barred: Collection[PeerId]) -> Sequence[PeerId]:
    """An auditor and up to three jurors for a shard, drawn by what nobody knew before the round was decided."""
    allowed = [peer for peer in peers if peer not in barred]
    return sorted(allowed, key=lambda peer: _weight("auditor", beacon.hex(), shard, peer))[:4]
