"""Topics without the Go daemon: py-libp2p's GossipSub, which meshes with that of the daemons. The extra `shoal[light]`.

For an observer that wants to check what the nodes say with a second implementation. Runs in trio (through anyio) and
must not share a process with hivemind: both define the protobuf message `crypto.pb.KeyType`. Noise over TCP only: the
library's default would accept plaintext. It loses messages above about ten a second.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import TaskGroup

from shoal.swarm.errors import FrameTooLarge, LocalFault, SwarmUnreachable, UsageError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.topics import MAX_TOPIC_BYTES, TopicHandler

DIAL_S = 10.0
_MESH = ("/meshsub/1.1.0", "/meshsub/1.0.0")  # what the daemon speaks
_LISTEN = "/ip4/127.0.0.1/tcp/0"  # nobody has to dial us


class LightTopics:
    """`topics.Topics`"""

    def __init__(self, pubsub: Any, tasks: TaskGroup) -> None:
        self._pubsub = pubsub
        self._tasks = tasks
        self._listening: set[str] = set()

    async def publish(self, topic: str, data: bytes) -> None:
        if len(data) > MAX_TOPIC_BYTES:
            raise FrameTooLarge(f"a message of {len(data)} bytes for {topic}; the limit is {MAX_TOPIC_BYTES}")
        await self._pubsub.publish(topic, data)

    async def listen(self, topic: str, handler: TopicHandler) -> None:
        if topic in self._listening:
            raise LocalFault(f"somebody listens to {topic} already")
        self._listening.add(topic)
        self._tasks.start_soon(self._read, await self._pubsub.subscribe(topic), handler)

    async def neighbours(self, topic: str) -> tuple[PeerId, ...]:
        return tuple(sorted(PeerId(peer.to_base58()) for peer in self._pubsub.peer_topics.get(topic, ())))

    async def _read(self, subscription: Any, handler: TopicHandler) -> None:
        from libp2p.peer.id import ID

        while True:
            message = await subscription.get()
            if len(message.data) <= MAX_TOPIC_BYTES:
                handler(PeerId(ID(message.from_id).to_base58()), message.data)


@asynccontextmanager
async def light_topics(seed: bytes, addresses: Sequence[str]) -> AsyncIterator[LightTopics]:
    """Connected to those of the nodes that answer.

    seed: of an ed25519 identity, 32 bytes
    addresses: multiaddrs with /p2p/, over TCP
    raises: UsageError when py-libp2p is not installed; SwarmUnreachable when nobody answers
    """
    try:
        from libp2p import new_host
        from libp2p.crypto.ed25519 import create_new_key_pair
        from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
        from libp2p.pubsub.gossipsub import GossipSub
        from libp2p.pubsub.pubsub import Pubsub
        from libp2p.security.noise.transport import PROTOCOL_ID, Transport
        from libp2p.tools.anyio_service import background_trio_service
        from multiaddr import Multiaddr
    except ImportError as error:
        raise UsageError("the observer needs py-libp2p: pip install 'shoal[light]'") from error
    keys = create_new_key_pair(seed)
    noise = Transport(keys, noise_privkey=create_noise_key_pair().private_key)
    host = new_host(key_pair=keys, sec_opt={PROTOCOL_ID: noise}, listen_addrs=[Multiaddr(_LISTEN)])
    router = GossipSub(
        _MESH, degree=6, degree_low=4, degree_high=12, heartbeat_interval=1, max_messages_per_topic_per_second=1000.0
    )
    pubsub = Pubsub(host, router)
    async with (
        host.run(listen_addrs=[Multiaddr(_LISTEN)]),
        background_trio_service(pubsub),
        background_trio_service(router),
    ):
        await pubsub.wait_until_ready()
        reached = [address for address in addresses if await _dial(host, address)]
        if not reached:
            raise SwarmUnreachable(f"none of the {len(addresses)} addresses answered")
        async with anyio.create_task_group() as tasks:
            yield LightTopics(pubsub, tasks)
            tasks.cancel_scope.cancel()


async def _dial(host: Any, address: str) -> bool:
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from multiaddr import Multiaddr

    with anyio.move_on_after(DIAL_S):
        try:
            await host.connect(info_from_p2p_addr(Multiaddr(address)))
        except Exception:  # noqa: BLE001  the library raises whatever it likes; the next address may answer
            return False
        return True
    return False
