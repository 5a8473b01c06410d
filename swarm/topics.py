"""The seam to a gossip of small messages: whoever listens to a topic hears, sooner or later, what any peer publishes.

Delivery is likely, not certain, in any order, once per listener; a mesh forms within about a second after one begins
to listen, and what is published before may be lost. Two adapters: `transports/p2pd_topics.py` (GossipSub
in our own p2pd) and `transports/memory_topics.py`; `simulated/topics.py` is the mesh at scale. What travels is sealed
by its sender (`topic_envelope.py`), so that it is worth something whoever relays or stores it.
"""

from collections.abc import Callable
from typing import Protocol

from .identifiers import PeerId

MAX_TOPIC_BYTES = 16 << 10  # of one message; a listener never sees a longer one

TopicHandler = Callable[[PeerId, bytes], None]  # who published it, by the transport's word, and the message


class Topics(Protocol):
    async def publish(self, topic: str, data: bytes) -> None:
        """Our own listeners hear it too.

        raises: FrameTooLarge (ours, before anything is sent), DaemonDied
        """

    async def listen(self, topic: str, handler: TopicHandler) -> None:
        """One handler a topic, until the adapter is stopped. It decides and returns; it must not raise.

        raises: DaemonDied, LocalFault when somebody listens already
        """

    async def neighbours(self, topic: str) -> tuple[PeerId, ...]:
        """Peers we are connected to that listen too. raises: DaemonDied"""
