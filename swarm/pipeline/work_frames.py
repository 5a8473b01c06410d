"""A message with its tensor on a stream: the message, then the tensor in pieces, checked whole at the other end.

The receiver says how large a tensor may be before it takes one; nothing is allocated for more.
"""

import anyio
import google_crc32c

from shoal.swarm.errors import MalformedMessage, StreamBroken
from shoal.swarm.transport import Stream

from . import messages
from .messages import PIECE_BYTES, AnyMessage, Done, Work


class DamagedTensor(MalformedMessage):
    """The bytes that arrived are not those that were sent."""


def checksum(data: bytes) -> int:
    return int(google_crc32c.value(data))


class WorkFrames:
    """One end of a stream for work: whole messages go out one after another, whoever sends them."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._sending = anyio.Lock()

    async def send(self, message: AnyMessage, tensor: bytes = b"") -> None:
        """Cancelled half-way it drops the stream, which is of no use then. raises: StreamBroken, DaemonDied"""
        async with self._sending:
            whole = False
            try:
                await self.stream.send(messages.encode(message))
                view = memoryview(tensor)
                for at in range(0, len(tensor), PIECE_BYTES):
                    await self.stream.send(bytes(view[at : at + PIECE_BYTES]))
                whole = True
            finally:
                if not whole:
                    self.stream.abort()

    async def receive(self, max_bytes: int) -> tuple[AnyMessage, bytes]:
        """The next message with its tensor, unchecked: see `checked`.

        raises: StreamBroken, also when the peer has closed; MalformedMessage
        """
        frame = await self.stream.receive()
        if frame is None:
            raise StreamBroken(f"{self.stream.peer} has closed the stream")
        message = messages.decode(frame)
        if not isinstance(message, Work | Done):
            return message, b""
        if not 0 <= message.size_bytes <= max_bytes:
            raise MalformedMessage(f"{self.stream.peer} announced {message.size_bytes} bytes; at most {max_bytes} fit")
        pieces, missing = [], message.size_bytes
        while missing:
            piece = await self.stream.receive()
            if piece is None:
                raise StreamBroken(f"{self.stream.peer} closed the stream within a tensor")
            if len(piece) != min(PIECE_BYTES, missing):
                raise MalformedMessage(f"{self.stream.peer} sent a piece of {len(piece)} bytes")
            pieces.append(piece)
            missing -= len(piece)
        return message, b"".join(pieces)


def checked(message: Work | Done, tensor: bytes) -> bytes:
    """raises: DamagedTensor"""
    if checksum(tensor) != message.checksum:
        raise DamagedTensor(f"a tensor of {len(tensor)} bytes does not have the checksum that was sent with it")
    return tensor
