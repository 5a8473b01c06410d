"""The one seam between shoal and a network: framed streams kept open, and small calls with a timeout.

Two adapters: `transports/libp2p.py` (hivemind's P2P over a p2pd of our own) and `transports/memory.py` (the
simulator's).
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from .identifiers import PeerId

MAX_FRAME_BYTES = 32 << 20
MAX_CALL_BYTES = 256 << 10  # both ways; hivemind's unary responses over 4 MiB hang the caller


class Stream(Protocol):
    """Ordered frames both ways. Every frame sent before `close` is delivered, or the reader is told."""

    @property
    def peer(self) -> PeerId:
        """The other end, authenticated by the transport."""

    async def send(self, frame: bytes) -> None:
        """raises: StreamBroken, FrameTooLarge (ours, before anything is sent), DaemonDied"""

    async def receive(self) -> bytes | None:
        """The next frame, or None after the peer's END.

        raises: StreamBroken when the stream ends without END; FrameTooLarge; MalformedMessage; DaemonDied
        """

    async def close(self) -> None:
        """Send END and wait, within a bound, for the peer's ACK; never raises."""

    def abort(self) -> None:
        """Drop the stream at once; the other end sees StreamBroken."""


StreamHandler = Callable[[Stream], Awaitable[None]]  # the stream is aborted when the handler returns without closing
CallHandler = Callable[[PeerId, bytes], Awaitable[bytes]]  # a ShoalError raised reaches the caller


class Transport(Protocol):
    @property
    def me(self) -> PeerId: ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs that others may dial, without the /p2p/ part."""

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float = 10.0) -> None:
        """raises: PeerUnreachable"""

    async def disconnect(self, peer: PeerId) -> None: ...

    async def open(self, peer: PeerId, protocol: str, timeout_s: float = 10.0) -> Stream:
        """raises: PeerUnreachable, DaemonDied"""

    async def call(self, peer: PeerId, method: str, payload: bytes, timeout_s: float = 5.0) -> bytes:
        """raises: PeerUnreachable, TimedOut, Refused, MalformedMessage, DaemonDied"""

    async def serve(self, protocol: str, handler: StreamHandler) -> None: ...

    async def answer(self, method: str, handler: CallHandler) -> None: ...

    async def died(self) -> None:
        """Return when this transport can no longer carry anything (its daemon is gone)."""
