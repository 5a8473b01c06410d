"""Topics over GossipSub in our own p2pd, which has it (`-pubsub=1`) though hivemind wraps it nowhere.

The daemon signs what it publishes with the node's key and drops what is not signed by the peer that it names, so the
origin of a message is authenticated before we look at it. It keeps 32 messages for a slow listener and drops more.
"""

import asyncio
import contextlib
import sys
from collections.abc import Callable
from typing import Any

from shoal.swarm.errors import DaemonDied, FrameTooLarge, LocalFault
from shoal.swarm.identifiers import PeerId
from shoal.swarm.topics import MAX_TOPIC_BYTES, TopicHandler

from .hivemind_imports import import_p2p

_p2p_daemon = import_p2p()
_wire = sys.modules["hivemind.p2p.p2p_daemon_bindings.utils"]
_control = sys.modules["hivemind.p2p.p2p_daemon_bindings.control"]
_pb = sys.modules["hivemind.proto.p2pd_pb2"]

ANSWER_TIMEOUT_S = 5.0
_GONE = (ConnectionError, OSError, asyncio.IncompleteReadError, _wire.P2PDaemonError)
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class P2pdTopics:
    """`topics.Topics`. Lives in one asyncio loop; `stop` belongs to that loop.

    control: the multiaddr of the daemon's control socket
    """

    def __init__(self, control: str) -> None:
        self._connector = _control.DaemonConnector(_p2p_daemon.Multiaddr(control))
        self._asking: _Connection | None = None
        self._lock = asyncio.Lock()  # of the connection above: one question at a time
        self._listening: dict[str, asyncio.Task[None]] = {}

    async def publish(self, topic: str, data: bytes) -> None:
        if len(data) > MAX_TOPIC_BYTES:
            raise FrameTooLarge(f"a message of {len(data)} bytes for {topic}; the limit is {MAX_TOPIC_BYTES}")
        await self._ask(_pb.PSRequest(type=_pb.PSRequest.PUBLISH, topic=topic, data=data))

    async def listen(self, topic: str, handler: TopicHandler) -> None:
        if topic in self._listening:
            raise LocalFault(f"somebody listens to {topic} already")
        connection = await self._connected()
        try:
            await _exchange(connection, _pb.PSRequest(type=_pb.PSRequest.SUBSCRIBE, topic=topic))
        except BaseException:
            connection[1].close()
            raise
        self._listening[topic] = asyncio.create_task(_read_on(connection, handler))

    async def neighbours(self, topic: str) -> tuple[PeerId, ...]:
        answer = await self._ask(_pb.PSRequest(type=_pb.PSRequest.LIST_PEERS, topic=topic))
        return tuple(PeerId(_p2p_daemon.PeerID(peer).to_base58()) for peer in answer.pubsub.peerIDs)

    async def stop(self) -> None:
        """Leave all topics. raises: what a handler raised, which is a bug of ours"""
        listening, self._listening = tuple(self._listening.values()), {}
        for task in listening:
            task.cancel()
        ends = await asyncio.gather(*listening, return_exceptions=True)
        self._drop()
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _ask(self, request: Any) -> Any:
        async with self._lock:
            if self._asking is None:
                self._asking = await self._connected()
            try:
                return await _exchange(self._asking, request)
            except BaseException:  # cancelled as well: the next question must not read the answer to this one
                self._drop()
                raise

    async def _connected(self) -> _Connection:
        try:
            reader, writer = await self._connector.open_connection()
        except OSError as error:
            raise DaemonDied("our own p2pd is gone") from error
        return reader, writer

    def _drop(self) -> None:
        if self._asking is not None:
            self._asking[1].close()
            self._asking = None


async def _exchange(connection: _Connection, request: Any) -> Any:
    """raises: DaemonDied, also when the daemon does not answer or refuses"""
    reader, writer = connection
    answer = _pb.Response()
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await _wire.write_pbmsg(writer, _pb.Request(type=_pb.Request.PUBSUB, pubsub=request))
            await _wire.read_pbmsg_safe(reader, answer)
        _wire.raise_if_failed(answer)
    except (*_GONE, TimeoutError) as error:
        raise DaemonDied(f"our own p2pd does not gossip: {error}") from error
    return answer


async def _read_on(connection: _Connection, handler: TopicHandler) -> None:
    """Until the daemon is gone or we are cancelled; closing the connection ends the subscription."""
    reader, writer = connection
    try:
        with contextlib.suppress(*_GONE):
            while True:
                message = _pb.PSMessage()
                await _wire.read_pbmsg_safe(reader, message)
                _hand_on(message, handler)
    finally:
        writer.close()


def _hand_on(message: Any, handler: Callable[[PeerId, bytes], None]) -> None:
    if len(message.data) > MAX_TOPIC_BYTES:
        return
    try:
        origin = PeerId(_p2p_daemon.PeerID(getattr(message, "from")).to_base58())
    except Exception:  # noqa: BLE001  hivemind's parser raises whatever it likes at bytes of others
        return
    handler(origin, message.data)
