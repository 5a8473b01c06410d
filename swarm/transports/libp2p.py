"""The real transport: hivemind's P2P over a p2pd of our own, with framed binary streams and small unary calls."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from shoal.swarm import errors, framing
from shoal.swarm.errors import (
    DaemonDied,
    FrameTooLarge,
    MalformedMessage,
    NotSpoken,
    PeerUnreachable,
    ShoalError,
    StreamBroken,
    TimedOut,
)
from shoal.swarm.identifiers import PeerId
from shoal.swarm.transport import MAX_CALL_BYTES, MAX_FRAME_BYTES, CallHandler, Stream, StreamHandler

from .call_envelope import open_answer, seal_answer, seal_error
from .hivemind_imports import import_p2p
from .loopback import LoopbackStream, loopback_pair
from .p2pd import Daemon, NetworkOptions

_p2p_daemon = import_p2p()
PeerID = _p2p_daemon.PeerID
Multiaddr = _p2p_daemon.Multiaddr

T = TypeVar("T")

_READ_BYTES = 256 << 10
_WRITE_HIGH_WATER_BYTES = 1 << 20
CLOSE_TIMEOUT_S = 5.0
DEATH_S = 1.0  # between the first broken socket of a daemon that dies and its end


def _retrieve(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


def _unreachable(text: str) -> PeerUnreachable:
    return (NotSpoken if "protocols not supported" in text else PeerUnreachable)(text)


class Libp2pStream:
    """`transport.Stream` over one p2pd binary stream. One reader and one writer task at a time."""

    def __init__(
        self,
        peer: PeerId,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        daemon_died: Callable[[], bool],
    ) -> None:
        self._peer = peer
        self._reader = reader
        self._writer = writer
        self._daemon_died = daemon_died
        self._decoder = framing.FrameDecoder(MAX_FRAME_BYTES)
        self._frames: deque[framing.Frame] = deque()
        self._sent = 0
        self._ended = False  # we sent END, or aborted
        self._finished = False  # the peer sent END
        self._acknowledged = asyncio.Event()
        self._receiving = False
        writer.transport.set_write_buffer_limits(high=_WRITE_HIGH_WATER_BYTES)

    @property
    def peer(self) -> PeerId:
        return self._peer

    def _broken(self, why: str) -> ShoalError:
        if self._daemon_died():
            return DaemonDied("our own p2pd is gone")
        return StreamBroken(f"the stream with {self._peer} broke: {why}")

    async def send(self, frame: bytes) -> None:
        if len(frame) > MAX_FRAME_BYTES:
            raise FrameTooLarge(f"a frame of {len(frame)} bytes; the limit is {MAX_FRAME_BYTES}")
        if self._ended or self._writer.is_closing():
            raise self._broken("closed on our side")
        try:
            self._writer.write(framing.data_frame(frame))
            self._sent += 1
            await self._writer.drain()
        except (ConnectionError, RuntimeError, OSError) as error:
            raise self._broken(str(error)) from error

    async def receive(self) -> bytes | None:
        while True:
            while self._frames:
                frame = self._frames.popleft()
                if frame.kind == framing.DATA:
                    return frame.payload
                if frame.kind == framing.END:
                    self._finished = True
                    self._acknowledge()
                else:
                    self._acknowledged.set()
            if self._finished:
                return None
            self._receiving = True
            try:
                data = await self._reader.read(_READ_BYTES)
            except (ConnectionError, OSError) as error:
                raise self._broken(str(error)) from error
            finally:
                self._receiving = False
            if not data:
                raise self._broken("it ended without END")
            try:
                self._frames.extend(self._decoder.feed(data))
            except (FrameTooLarge, MalformedMessage):
                self.abort()
                raise

    def _acknowledge(self) -> None:
        try:
            self._writer.write(framing.ack_frame())
        except (ConnectionError, RuntimeError, OSError):
            self._ended = True  # the other side will see the stream as broken; nothing more to say to it

    async def close(self) -> None:
        if self._ended:
            return
        self._ended = True
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                self._writer.write(framing.end_frame(self._sent))
                await self._writer.drain()
                await self._await_acknowledgement()
        except (ShoalError, ConnectionError, RuntimeError, OSError, TimeoutError):
            pass  # close never raises: there is nothing a caller could do
        finally:
            self._writer.close()

    async def _await_acknowledgement(self) -> None:
        if self._receiving:
            await self._acknowledged.wait()
            return
        while not self._acknowledged.is_set():
            data = await self._reader.read(_READ_BYTES)
            if not data:
                return
            for frame in self._decoder.feed(data):
                if frame.kind == framing.ACK:
                    self._acknowledged.set()
                elif frame.kind == framing.END:
                    self._acknowledge()

    def drop_unless_closed(self) -> None:
        if not self._ended:
            self.abort()

    def abort(self) -> None:
        self._ended = True
        self._writer.transport.abort()


class Libp2pTransport:
    """`transport.Transport` over hivemind's P2P. Lives in one asyncio loop; `start` and `stop` belong to that loop."""

    def __init__(self, daemon: Daemon, p2p: Any) -> None:
        self._daemon = daemon
        self._p2p = p2p
        self._me = PeerId(p2p.peer_id.to_base58())
        self._addresses: tuple[str, ...] = ()
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: set[Libp2pStream | LoopbackStream] = set()
        self._handlers: dict[str, StreamHandler] = {}
        self._answers: dict[str, CallHandler] = {}

    @classmethod
    async def start(cls, key: bytes, options: NetworkOptions) -> "Libp2pTransport":
        """key: libp2p PrivateKey protobuf of an ed25519 identity

        raises: UsageError (port in use), DaemonDied
        """
        daemon = await Daemon.start(key, options)
        try:
            in_folder = type("P2PInFolder", (_p2p_daemon.P2P,), {"_UNIX_SOCKET_PREFIX": f"/unix{daemon.folder}/"})
            p2p = await in_folder.replicate(Multiaddr(daemon.control))  # type: ignore[attr-defined]
            p2p._client.control._write_task.add_done_callback(_retrieve)  # it fails when the daemon dies: we know
            transport = cls(daemon, p2p)
            await transport.refresh_addresses()
        except BaseException:
            await asyncio.shield(daemon.stop())
            raise
        return transport

    async def stop(self) -> None:
        self._stopping = True
        for stream in tuple(self._streams):
            stream.abort()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._p2p.shutdown()
        await self._daemon.stop()

    @property
    def me(self) -> PeerId:
        return self._me

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    @property
    def hivemind_p2p(self) -> Any:
        """For the DHT, which shares this daemon."""
        return self._p2p

    @property
    def daemon_control(self) -> str:
        """The multiaddr of the daemon's control socket, for `p2pd_topics`."""
        return self._daemon.control

    @property
    def daemon_pid(self) -> int:
        return self._daemon.guard_pid

    async def refresh_addresses(self) -> tuple[str, ...]:
        """Ask the daemon again what it listens on; NAT traversal finds addresses over time."""
        _, addresses = await self._p2p._client.identify()  # hivemind offers no public way
        self._addresses = tuple(str(address) for address in addresses)
        return self._addresses

    async def died(self) -> None:
        await self._daemon.died.wait()

    @property
    def is_dead(self) -> bool:
        return self._daemon.died.is_set()

    def _dead(self) -> bool:
        return self.is_dead

    async def _expect_death(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEATH_S):
                await self.died()

    async def _bounded(self, work: Coroutine[Any, Any, T], timeout_s: float, what: str) -> T:
        """raises: DaemonDied, TimedOut, PeerUnreachable"""
        if self._dead():
            work.close()
            raise DaemonDied("our own p2pd is gone")
        try:
            async with asyncio.timeout(timeout_s):
                return await work
        except TimeoutError:
            if self._dead():
                raise DaemonDied("our own p2pd is gone") from None
            raise TimedOut(f"{what}: no answer within {timeout_s:.1f} s") from None
        except (_p2p_daemon.P2PDaemonError, ConnectionError, OSError, asyncio.IncompleteReadError) as error:
            if not isinstance(error, _p2p_daemon.P2PDaemonError):  # our own end of it: the daemon's is seen in a moment
                await self._expect_death()
            if self._dead():
                raise DaemonDied("our own p2pd is gone") from error
            raise _unreachable(f"{what}: {' '.join(str(error).split())}") from error

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float = 10.0) -> None:
        if peer == self._me:
            return
        work = self._p2p._client.connect(PeerID.from_base58(peer), [Multiaddr(a) for a in addresses])
        try:
            await self._bounded(work, timeout_s, f"connect to {peer}")
        except TimedOut as error:
            raise PeerUnreachable(str(error)) from error

    async def disconnect(self, peer: PeerId) -> None:
        try:
            work = self._p2p._client.disconnect(PeerID.from_base58(peer))
            await self._bounded(work, 5.0, f"disconnect {peer}")
        except (PeerUnreachable, TimedOut):
            return  # it is gone already

    async def open(self, peer: PeerId, protocol: str, timeout_s: float = 10.0) -> Stream:
        if peer == self._me:
            return self._open_to_myself(protocol)
        work = self._p2p.call_binary_stream_handler(PeerID.from_base58(peer), protocol)
        try:
            _, reader, writer = await self._bounded(work, timeout_s, f"stream to {peer}")
        except TimedOut as error:
            raise PeerUnreachable(str(error)) from error
        return Libp2pStream(peer, reader, writer, self._dead)

    async def call(self, peer: PeerId, method: str, payload: bytes, timeout_s: float = 5.0) -> bytes:
        if len(payload) > MAX_CALL_BYTES:
            raise FrameTooLarge(f"a call of {len(payload)} bytes; the limit is {MAX_CALL_BYTES}")
        if peer == self._me:
            return await self._answers[method](peer, payload)
        work = self._p2p._client.call_unary_handler(PeerID.from_base58(peer), method, payload)
        try:
            answer = await self._bounded(work, timeout_s, f"{method} at {peer}")
        except _p2p_daemon.P2PHandlerError as error:
            raise _unreachable(f"{method} at {peer}: {error}") from error
        if not isinstance(answer, bytes):
            raise PeerUnreachable(f"{method} at {peer}: the daemon gave no answer")
        return open_answer(answer)

    def _open_to_myself(self, protocol: str) -> Stream:
        if protocol not in self._handlers:
            raise PeerUnreachable(f"this node does not serve {protocol}")
        here, there = loopback_pair(self._me)
        task = asyncio.create_task(self._handle(protocol, there))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return here

    async def _handle(self, protocol: str, stream: Libp2pStream | LoopbackStream) -> None:
        self._streams.add(stream)
        try:
            await self._handlers[protocol](stream)
        except errors.ShoalError:
            pass  # the handler has told its peer; a broken stream needs no words
        finally:
            self._streams.discard(stream)
            stream.drop_unless_closed()

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        self._handlers[protocol] = handler

        async def accept(info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                peer = PeerId(info.peer_id.to_base58())
                await self._handle(protocol, Libp2pStream(peer, reader, writer, self._dead))
            except asyncio.CancelledError:
                if not self._stopping:
                    raise  # asyncio would log the task of a server's callback as failed
            finally:
                self._tasks.discard(task)

        await self._p2p.add_binary_stream_handler(protocol, accept)

    async def answer(self, method: str, handler: CallHandler) -> None:
        self._answers[method] = handler

        async def respond(request: bytes, peer: Any) -> bytes:
            if len(request) > MAX_CALL_BYTES:
                return seal_error(FrameTooLarge(f"a call of {len(request)} bytes; the limit is {MAX_CALL_BYTES}"))
            try:
                return seal_answer(await handler(PeerId(peer.to_base58()), request))
            except ShoalError as error:
                return seal_error(error)

        await self._p2p._client.add_unary_handler(method, respond)
