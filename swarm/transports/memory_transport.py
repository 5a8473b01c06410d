"""One simulated peer's end of the network: opening streams, calling, serving, answering."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import anyio
from anyio.lowlevel import checkpoint

from shoal.swarm.errors import DaemonDied, FrameTooLarge, NotSpoken, PeerUnreachable, ShoalError, TimedOut
from shoal.swarm.identifiers import PeerId
from shoal.swarm.transport import MAX_CALL_BYTES, CallHandler, Stream, StreamHandler

from .memory_link import Host, Link
from .memory_stream import MemoryStream


class Network(Protocol):
    """What a transport asks of `memory.MemoryNetwork`."""

    def link(self, sender: PeerId, receiver: PeerId) -> Link: ...

    def living(self, peer: PeerId) -> "MemoryTransport | None": ...

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """In a task that ends with the network."""

    def connection(self, near: Host, far: Host) -> tuple[MemoryStream, MemoryStream]: ...

    def disconnect(self, one: PeerId, other: PeerId) -> None: ...


class Reply:
    """What a caller waits for."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.outcome: bytes | ShoalError = b""

    def set(self, outcome: bytes | ShoalError) -> None:
        if not self.done.is_set():
            self.outcome = outcome
            self.done.set()


class MemoryTransport:
    """`transport.Transport` of one peer of a `MemoryNetwork`."""

    def __init__(self, network: Network, host: Host) -> None:
        self.host = host
        self._network = network
        self._protocols: dict[str, StreamHandler] = {}
        self._methods: dict[str, CallHandler] = {}
        self._scopes: dict[anyio.CancelScope, None] = {}  # running handlers, in order of arrival
        self._replies: dict[Reply, None] = {}

    @property
    def me(self) -> PeerId:
        return self.host.peer

    @property
    def addresses(self) -> tuple[str, ...]:
        return (f"/memory/{self.me}",)

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float = 10.0) -> None:
        await self._reach(peer, timeout_s)
        await anyio.sleep(self._network.link(peer, self.me).latency_s)
        self._check_alive()

    async def disconnect(self, peer: PeerId) -> None:
        self._network.disconnect(self.me, peer)
        await checkpoint()

    async def open(self, peer: PeerId, protocol: str, timeout_s: float = 10.0) -> Stream:
        far = await self._reach(peer, timeout_s)
        handler = far.protocol_handler(protocol)
        back_s = self._network.link(peer, self.me).latency_s
        if handler is None:
            await anyio.sleep(back_s)
            raise NotSpoken(f"{peer} does not speak {protocol}")
        here, there = self._network.connection(self.host, far.host)
        far.accept(handler, there)
        try:
            await anyio.sleep(back_s)
            self._check_alive()
        except BaseException:
            here.abort()
            raise
        return here

    async def call(self, peer: PeerId, method: str, payload: bytes, timeout_s: float = 5.0) -> bytes:
        self._check_alive()
        if len(payload) > MAX_CALL_BYTES:
            raise FrameTooLarge(f"a call of {len(payload)} bytes; the limit is {MAX_CALL_BYTES}")
        deadline = anyio.current_time() + timeout_s
        link = self._network.link(self.me, peer)
        arrives_at = link.carry(len(payload), anyio.current_time())
        lost = link.loses_call() and not link.cut
        reply = Reply()
        self._replies[reply] = None
        try:
            far = await self._reach(peer, timeout_s)
            with anyio.CancelScope(deadline=deadline):
                await anyio.sleep_until(arrives_at)
                if not lost:
                    far.respond(self.me, method, bytes(payload), reply)
                await reply.done.wait()
                await self.host.awake()
        finally:
            del self._replies[reply]
        self._check_alive()
        if not reply.done.is_set():
            raise TimedOut(f"{method} at {peer}: no answer within {timeout_s:.1f} s")
        if isinstance(reply.outcome, ShoalError):
            raise reply.outcome
        return reply.outcome

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        self._protocols[protocol] = handler
        await checkpoint()

    async def answer(self, method: str, handler: CallHandler) -> None:
        self._methods[method] = handler
        await checkpoint()

    async def died(self) -> None:
        await self.host.dead.wait()

    @property
    def handlers_running(self) -> int:
        """Streams and calls of others that are being served here."""
        return len(self._scopes)

    def protocol_handler(self, protocol: str) -> StreamHandler | None:
        return self._protocols.get(protocol)

    def accept(self, handler: StreamHandler, stream: MemoryStream) -> None:
        async def run() -> None:
            scope = anyio.CancelScope()
            self._scopes[scope] = None
            try:
                with scope:
                    await self.host.awake()
                    await handler(stream)
            except ShoalError:
                pass  # the handler has told its peer; a broken stream needs no words
            finally:
                del self._scopes[scope]
                stream.abort()

        self._network.start(run)

    def respond(self, caller: PeerId, method: str, payload: bytes, reply: Reply) -> None:
        """Answer a call in a task of this peer; the answer may get lost on its way back."""

        async def run() -> None:
            scope = anyio.CancelScope()
            self._scopes[scope] = None
            outcome: bytes | ShoalError = PeerUnreachable(f"{self.me} died while it answered {method}")
            try:
                with scope:
                    await self.host.awake()
                    outcome = await self._outcome(caller, method, payload)
                    await self.host.awake()
            finally:
                del self._scopes[scope]
            link = self._network.link(self.me, caller)
            arrives_at = link.carry(len(outcome) if isinstance(outcome, bytes) else 0, anyio.current_time())
            if not link.loses_call():
                await anyio.sleep_until(arrives_at)
                reply.set(outcome)

        self._network.start(run)

    async def _outcome(self, caller: PeerId, method: str, payload: bytes) -> bytes | ShoalError:
        handler = self._methods.get(method)
        if handler is None:
            return NotSpoken(f"{self.me} does not answer {method}")
        try:
            answer = await handler(caller, payload)
        except ShoalError as error:
            return type(error)(str(error))  # as after a journey: same class and text, no traceback
        if len(answer) > MAX_CALL_BYTES:
            return FrameTooLarge(f"the answer has {len(answer)} bytes; the limit is {MAX_CALL_BYTES}")
        return bytes(answer)

    def cancel_all(self, error: ShoalError) -> None:
        for scope in self._scopes:
            scope.cancel()
        for reply in self._replies:
            reply.set(error)

    async def _reach(self, peer: PeerId, timeout_s: float) -> "MemoryTransport":
        """Travel to the peer: one way there, or all the way back with the news that nobody is there.

        raises: PeerUnreachable, DaemonDied
        """
        self._check_alive()
        there, back = self._network.link(self.me, peer), self._network.link(peer, self.me)
        await self.host.awake()
        if there.cut or there.latency_s + back.latency_s > timeout_s:
            await anyio.sleep(timeout_s)
            self._check_alive()
            raise PeerUnreachable(f"{peer}: no connection within {timeout_s:.1f} s")
        await anyio.sleep(there.latency_s)
        self._check_alive()
        far = self._network.living(peer)
        if far is None:
            await anyio.sleep(back.latency_s)
            self._check_alive()
            raise PeerUnreachable(f"{peer}: nobody there")
        return far

    def _check_alive(self) -> None:
        if self.host.dead.is_set():
            raise DaemonDied(f"{self.me} was killed")
