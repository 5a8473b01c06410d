"""Under which keys a swarm's facts stand in the DHT.

All nodes: NODE_SHARDS keys, so that thousands of records do not share one dictionary on one peer; holders of one model:
MODEL_SHARDS keys of its own; those who train one run: RUN_SHARDS. A peer's shard follows from its PeerID, so each
record has exactly one home in each list.
"""

import hashlib

from shoal.swarm.identifiers import ModelId, PeerId, SwarmId

NODE_SHARDS = 16
MODEL_SHARDS = 4
RUN_SHARDS = 4


def _shard(peer: PeerId, shards: int) -> int:
    return hashlib.sha256(b"shoal shard 1\0" + peer.encode()).digest()[0] % shards


def _node_key(swarm: SwarmId, shard: int) -> bytes:
    return f"shoal/1/{swarm}/nodes/{shard}".encode()


def _model_key(swarm: SwarmId, model: ModelId, shard: int) -> bytes:
    return f"shoal/1/{swarm}/model/{model}/{shard}".encode()


def _run_key(swarm: SwarmId, run: str, shard: int) -> bytes:
    return f"shoal/1/{swarm}/run/{run}/{shard}".encode()


def node_key(swarm: SwarmId, peer: PeerId) -> bytes:
    """Where this peer's record stands in the list of all nodes."""
    return _node_key(swarm, _shard(peer, NODE_SHARDS))


def node_keys(swarm: SwarmId) -> list[bytes]:
    return [_node_key(swarm, shard) for shard in range(NODE_SHARDS)]


def model_key(swarm: SwarmId, model: ModelId, peer: PeerId) -> bytes:
    """Where this peer's record stands in the list of a model's holders."""
    return _model_key(swarm, model, _shard(peer, MODEL_SHARDS))


def model_keys(swarm: SwarmId, model: ModelId) -> list[bytes]:
    return [_model_key(swarm, model, shard) for shard in range(MODEL_SHARDS)]


def run_key(swarm: SwarmId, run: str, peer: PeerId) -> bytes:
    """Where this peer's record stands in the list of those that train a run."""
    return _run_key(swarm, run, _shard(peer, RUN_SHARDS))


def run_keys(swarm: SwarmId, run: str) -> list[bytes]:
    return [_run_key(swarm, run, shard) for shard in range(RUN_SHARDS)]


def prefix_key(swarm: SwarmId, root: bytes) -> bytes:
    """Where those stand that have a prefix, by the address of its first chunk; it is spread by nature."""
    return f"shoal/1/{swarm}/prefix/{root.hex()}".encode()


def revocation_key(swarm: SwarmId) -> bytes:
    return f"shoal/1/{swarm}/revocations".encode()


def key_id(key: bytes) -> bytes:
    """The 20 bytes that validators and storage see in place of the key (hivemind's DHTID of a bytes key)."""
    return hashlib.sha1(key, usedforsecurity=False).digest()
