"""Commit, then reveal: what a peer will upload is fixed by one hash before anybody sees an update of anybody.

A leaf binds a payload to run, round, fragment, peer and shard, so a payload of another round or of another peer fits
no commitment. The root goes into the group's roster; each payload travels with its path.
"""

from collections.abc import Sequence

import msgspec

from shoal.swarm.identifiers import PeerId

from . import hash_tree
from .run_identity import RunId

_encoder = msgspec.msgpack.Encoder()


class Commitment:
    """One peer's payloads of one round, and the tree over them."""

    def __init__(self, run: RunId, round_: int, fragment: int, peer: PeerId, payloads: Sequence[bytes]) -> None:
        self.payloads = tuple(payloads)
        self._leaves = [leaf(run, round_, fragment, peer, shard, data) for shard, data in enumerate(payloads)]
        self.root = hash_tree.root(self._leaves)

    def path(self, shard: int) -> tuple[bytes, ...]:
        return hash_tree.path(self._leaves, shard)


def leaf(run: RunId, round_: int, fragment: int, peer: PeerId, shard: int, payload: bytes) -> bytes:
    return hash_tree.leaf_hash(_encoder.encode((run, round_, fragment, peer, shard, payload)))


def is_committed(
    run: RunId,
    round_: int,
    fragment: int,
    peer: PeerId,
    root: bytes,
    shards: int,
    shard: int,
    payload: bytes,
    path: Sequence[bytes],
) -> bool:
    """Whether the peer whose root this is committed to just this payload for the shard."""
    return hash_tree.shows(root, shards, shard, leaf(run, round_, fragment, peer, shard, payload), path)
