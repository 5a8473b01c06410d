"""hivemind's DHTNode, set up so that the book of records is the only cache and one bad entry spoils nothing else."""

import asyncio
import math
from typing import Any

from shoal.swarm.identifiers import PeerId

from .dht_imports import import_dht_node
from .record_validator import SwarmRecordValidator

REPLICAS = 5
RPC_TIMEOUT_S = 3.0

_dht = import_dht_node()


async def create_node(p2p: Any, me: PeerId, validator: SwarmRecordValidator, listen: bool) -> Any:
    """A DHTNode in the running loop, alone; its id follows from the PeerID, so a restart finds its old place."""
    node = await _dht.DHTNode.create(
        p2p=p2p,
        node_id=_dht.DHTID.generate(source=me.encode()),
        num_replicas=REPLICAS,
        wait_timeout=RPC_TIMEOUT_S,
        cache_locally=False,
        cache_nearest=0,
        cache_size=64,
        cache_refresh_before_expiry=0,
        cache_on_store=False,
        reuse_get_requests=False,
        client_mode=not listen,
        record_validator=validator,
    )
    _keep_what_is_valid(node.protocol)
    return node


async def within(timeout_s: float, work: Any) -> Any:
    """The result, or None when it took too long."""
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except TimeoutError:
        return None


def _keep_what_is_valid(protocol: Any) -> None:
    """Drop the invalid entries of a dictionary instead of refusing all of it.

    hivemind refuses the whole: one entry at the edge of its lifetime, or of a peer whose revocation is known
    here and not yet there, would hide every other record of the shard.
    """

    def keep(key: bytes, dictionary: Any) -> bool:
        with dictionary.freeze():
            dictionary.maxsize = math.inf
            invalid = [
                subkey
                for subkey, (value, expiration_time) in dictionary.items()
                if not protocol._validate_record(key, protocol.serializer.dumps(subkey), value, expiration_time)
            ]
            for subkey in invalid:
                del dictionary[subkey]
        return bool(dictionary)

    protocol._validate_dictionary = keep
