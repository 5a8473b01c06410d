"""Topics of a simulated network: one message goes straight to every listener that lives, over the links there are.

How a mesh relays at scale is in `swarm/simulated/topics.py`; here are only what a listener can see of it: delay, loss,
cuts, silence.
"""

import anyio

from shoal.swarm.errors import DaemonDied, FrameTooLarge, LocalFault
from shoal.swarm.identifiers import PeerId
from shoal.swarm.topics import MAX_TOPIC_BYTES, TopicHandler

from .memory import MemoryNetwork
from .memory_transport import MemoryTransport


class MemoryGossip:
    """What all `MemoryTopics` of one network share: who listens to what."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self.listeners: dict[str, dict[MemoryTransport, TopicHandler]] = {}

    def join(self, transport: MemoryTransport) -> "MemoryTopics":
        return MemoryTopics(self, transport)


class MemoryTopics:
    """`topics.Topics` of one peer."""

    def __init__(self, gossip: MemoryGossip, transport: MemoryTransport) -> None:
        self._gossip = gossip
        self._transport = transport

    async def publish(self, topic: str, data: bytes) -> None:
        if len(data) > MAX_TOPIC_BYTES:
            raise FrameTooLarge(f"a message of {len(data)} bytes for {topic}; the limit is {MAX_TOPIC_BYTES}")
        await self._transport.host.awake()
        self._check_alive()
        for listener, handler in self._listeners(topic).items():
            self._deliver(listener, handler, bytes(data))

    async def listen(self, topic: str, handler: TopicHandler) -> None:
        self._check_alive()
        listeners = self._gossip.listeners.setdefault(topic, {})
        if self._transport in listeners:
            raise LocalFault(f"{self._transport.me} listens to {topic} already")
        listeners[self._transport] = handler

    async def neighbours(self, topic: str) -> tuple[PeerId, ...]:
        self._check_alive()
        return tuple(sorted(t.me for t in self._listeners(topic) if t is not self._transport))

    def _listeners(self, topic: str) -> dict[MemoryTransport, TopicHandler]:
        listeners = self._gossip.listeners.get(topic, {})
        return {t: handler for t, handler in listeners.items() if not t.host.dead.is_set()}

    def _deliver(self, listener: MemoryTransport, handler: TopicHandler, data: bytes) -> None:
        sender = self._transport.me
        link = self._gossip.network.link(sender, listener.me)
        mine = listener is self._transport
        arrives_at = anyio.current_time() if mine else link.carry(len(data), anyio.current_time())
        if not mine and link.loses_call():
            return

        async def run() -> None:
            await anyio.sleep_until(arrives_at)
            await listener.host.awake()
            if not listener.host.dead.is_set():
                handler(sender, data)

        self._gossip.network.start(run)

    def _check_alive(self) -> None:
        if self._transport.host.dead.is_set():
            raise DaemonDied(f"{self._transport.me} was killed")
