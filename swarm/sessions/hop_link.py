"""The driver's end of one hop: its control stream, read in a task of its own, as session events."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
from msgspec.structs import replace

from shoal.swarm.errors import DaemonDied, RemoteFault, ShoalError, StreamBroken, Unavailable, VersionMismatch
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.members.handshake import Gate, greet, next_message, read_welcome
from shoal.swarm.transport import Stream, Transport
from shoal.swarm.units import Span

from . import messages
from .messages import (
    CacheLost,
    Computed,
    Failed,
    Handed,
    Hold,
    Kept,
    Leaving,
    Open,
    Opened,
    Output,
    Progress,
    Restored,
    Reused,
    Staged,
    Streamed,
    Token,
)
from .session_events import (
    CacheCame,
    CacheFailed,
    CacheKept,
    Event,
    HopFailed,
    HopHanded,
    HopKey,
    HopLeaves,
    HopLost,
    HopOpened,
    ProgressCame,
)


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """Where a hop is to be opened."""

    key: HopKey
    peer: PeerId
    name: str
    span: Span
    session: SessionId  # the hop's own name for the session
    addresses: tuple[str, ...]


class HopLink:
    def __init__(
        self,
        at: LinkAddress,
        transport: Transport,
        gate: Gate,
        post: Callable[[Event], None],
        on_result: Callable[[HopKey, Token | Output], None],
        key_of: Callable[[SessionId], HopKey],
        on_prefix: Callable[[HopKey, Staged | Reused | Streamed], None] = lambda _, __: None,
    ) -> None:
        self.at = at
        self._transport = transport
        self._gate = gate
        self._post = post
        self._on_result = on_result
        self._on_prefix = on_prefix
        self._key_of = key_of
        self._stream: Stream | None = None
        self._scope = anyio.CancelScope()
        self._has_asked = False  # the request has gone, which has to be the first
        self._closing = False

    async def run(self, request: Open | Hold, opening: Callable[[], Awaitable[bytes]] | None) -> None:
        """Open the hop and read what it says until the session lets it go. Never raises; what goes wrong is posted.

        opening: asks for the payment that goes with the request
        """
        key = self.at.key
        with self._scope:
            try:
                if self.at.addresses:
                    await self._transport.connect(self.at.peer, self.at.addresses)
                self._stream = await self._transport.open(self.at.peer, messages.CONTROL_PROTOCOL)
                await greet(self._stream, self._gate)
                if opening is not None and isinstance(request, Open):
                    request = replace(request, payment=await opening())
                await self._stream.send(messages.encode(request))
                self._has_asked = True
                await read_welcome(self._stream, self._gate)
                await self._read(self._stream)
            except VersionMismatch as error:
                self._post(HopFailed(key, "version", str(error)))
            except (Unavailable, RemoteFault) as error:
                self._post(HopLost(key, str(error), isinstance(error, DaemonDied)))
            except ShoalError as error:
                self._post(HopFailed(key, "refused", str(error)))

    async def promote(self, request: Open, opening: Callable[[], Awaitable[bytes]] | None) -> None:
        """Of a link to a standby: make it the link to a hop."""
        if opening is not None:
            request = replace(request, payment=await opening())
        await self.tell(request)

    async def _read(self, stream: Stream) -> None:
        key = self.at.key
        while True:
            match await next_message(stream):
                case Token() | Output() as result:
                    self._on_result(key, result)
                case Progress(_, held) | Computed(held):
                    self._post(ProgressCame(key, held))
                case Staged() | Reused() | Streamed() as said:
                    self._on_prefix(key, said)
                case Opened():
                    self._post(HopOpened(key))
                case Kept(held):
                    self._post(CacheKept(key, held))
                case Restored(held):
                    self._post(CacheCame(key, held))
                case CacheLost(session, text):
                    self._post(CacheFailed(key, self._key_of(session), text))
                case Leaving(within_s):
                    self._post(HopLeaves(key, within_s))
                case Handed(held):
                    self._post(HopHanded(key, held))
                case Failed(kind, text, culprit):
                    self._post(HopFailed(key, kind, text, culprit))
                case other:
                    raise RemoteFault(f"{stream.peer} sent {type(other).__name__} to a driver")

    async def tell(self, message: messages.AnyMessage) -> None:
        if self._stream is None or not self._has_asked:
            return
        try:
            await self._stream.send(messages.encode(message))
        except (StreamBroken, DaemonDied) as error:
            self._post(HopLost(self.at.key, str(error), isinstance(error, DaemonDied)))

    async def close(self, word: bytes = b"") -> None:
        """End the session at this hop, with the last word that is due; a hop that does not acknowledge is left behind
        after the transport's bound."""
        self._scope.cancel()
        if self._stream is not None and not self._closing:
            self._closing = True
            if word:
                await self.tell(messages.Tick(word))
            await self._stream.close()
