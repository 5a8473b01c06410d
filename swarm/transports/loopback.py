"""Streams from a node to itself: libp2p cannot dial its own PeerID, but a chain may pass the driver's node."""

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from shoal.swarm.errors import FrameTooLarge, StreamBroken
from shoal.swarm.identifiers import PeerId
from shoal.swarm.transport import MAX_FRAME_BYTES

_BUFFERED_FRAMES = 256


class LoopbackStream:
    """`transport.Stream` within one process; `None` in the queue is END."""

    def __init__(
        self,
        peer: PeerId,
        inbound: MemoryObjectReceiveStream[bytes | None],
        outbound: MemoryObjectSendStream[bytes | None],
    ) -> None:
        self._peer = peer
        self._inbound = inbound
        self._outbound = outbound
        self._ended = False
        self._finished = False

    @property
    def peer(self) -> PeerId:
        return self._peer

    async def send(self, frame: bytes) -> None:
        if len(frame) > MAX_FRAME_BYTES:
            raise FrameTooLarge(f"a frame of {len(frame)} bytes; the limit is {MAX_FRAME_BYTES}")
        try:
            await self._outbound.send(frame)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise StreamBroken("the stream to this node itself broke") from error

    async def receive(self) -> bytes | None:
        if self._finished:
            return None
        try:
            frame = await self._inbound.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError) as error:
            raise StreamBroken("the stream to this node itself ended without END") from error
        self._finished = frame is None
        return frame

    async def close(self) -> None:
        if self._ended:
            return
        self._ended = True
        try:
            self._outbound.send_nowait(None)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.WouldBlock):
            self.abort()

    def drop_unless_closed(self) -> None:
        if not self._ended:
            self.abort()

    def abort(self) -> None:
        self._ended = True
        self._outbound.close()
        self._inbound.close()


def loopback_pair(me: PeerId) -> tuple[LoopbackStream, LoopbackStream]:
    there, from_here = anyio.create_memory_object_stream[bytes | None](_BUFFERED_FRAMES)
    here, from_there = anyio.create_memory_object_stream[bytes | None](_BUFFERED_FRAMES)
    return LoopbackStream(me, from_there, there), LoopbackStream(me, from_here, here)
