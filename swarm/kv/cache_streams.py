"""Cache streams: a session's KV cache on its way to whoever is to hold it, and what takes it in there.

The one who receives waits for it under a name that the session's driver chose: as a standby's bytes (`cache_keeper`),
or as a hop that takes another's place.
"""

from collections.abc import Awaitable, Callable

import anyio

from shoal.swarm.errors import MalformedMessage, Refused
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.members.handshake import Gate, greet, next_message, prompt_message, read_welcome, receive_greeting
from shoal.swarm.sessions import messages
from shoal.swarm.sessions.messages import Attach, CacheEnd, Chunk
from shoal.swarm.transport import Stream, Transport

from .cache_keeper import CacheKeeper, Kept

ATTACH_PATIENCE_S = 10.0

Sink = Callable[[Stream], Awaitable[None]]


async def open_attached(
    transport: Transport,
    gate: Gate,
    protocol: str,
    peer: PeerId,
    addresses: tuple[str, ...],
    session: SessionId,
    *,
    early: bool = False,
) -> Stream:
    """A stream to `peer`, attached to what it calls `session`. early: see `messages.Attach`

    raises: Unavailable, Refused, RemoteFault
    """
    if addresses:
        await transport.connect(peer, addresses)
    stream = await transport.open(peer, protocol)
    try:
        await greet(stream, gate)
        await stream.send(messages.encode(Attach(session, early)))
        await read_welcome(stream, gate)
    except BaseException:
        stream.abort()
        raise
    return stream


async def next_of_cache(stream: Stream) -> Chunk | CacheEnd:
    """raises: StreamBroken, MalformedMessage, FrameTooLarge"""
    message = await next_message(stream)
    if not isinstance(message, Chunk | CacheEnd):
        raise MalformedMessage(f"{type(message).__name__} on a cache stream")
    return message


class CacheReceiver:
    """Serves the cache protocol of one node or client."""

    def __init__(self, transport: Transport, gate: Gate, keeper: CacheKeeper) -> None:
        self.keeper = keeper
        self._transport = transport
        self._gate = gate
        self._sinks: dict[SessionId, Sink] = {}
        self._changed = anyio.Event()
        self._started = False

    async def start(self) -> None:
        """Once; again does no harm."""
        if not self._started:
            self._started = True
            await self._transport.serve(messages.CACHE_PROTOCOL, self._serve)

    def expect(self, session: SessionId, sink: Sink) -> None:
        """A hop that is open waits for its cache."""
        self._sinks[session] = sink
        self._told()

    def keep(self, name: SessionId, kept: Kept) -> None:
        """Bytes alone. raises: Refused, OutOfMemory"""
        self.keeper.begin(name, kept)
        self._told()

    def expect_no_more(self, session: SessionId) -> None:
        self._sinks.pop(session, None)

    def _told(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def _serve(self, stream: Stream) -> None:
        await receive_greeting(stream, self._gate)
        attach = await prompt_message(stream)
        if not isinstance(attach, Attach):
            raise MalformedMessage(f"a cache stream began with {type(attach).__name__}")
        with anyio.move_on_after(ATTACH_PATIENCE_S):
            while attach.session not in self._sinks and not self.keeper.knows(attach.session):
                await self._changed.wait()
        sink = self._sinks.get(attach.session)
        if sink is not None:
            await sink(stream)
        else:
            await self._keep(stream, attach.session)

    async def _keep(self, stream: Stream, name: SessionId) -> None:
        self.keeper.check_sender(name, stream.peer)
        while True:
            match await next_of_cache(stream):
                case Chunk(data):
                    await stream.send(messages.encode(messages.Kept(self.keeper.add(name, data))))
                case CacheEnd():
                    raise Refused("a standby is not handed over to")
