"""A push stream that is open before it is needed: to a standby, or from one to the hop that would come after it.

Reaching a peer, opening a stream and greeting take three round trips; a chain that has lost a hop should not wait for
them. Nothing depends on it: where it cannot be had, or has broken, a stream is opened when it is needed.
"""

import anyio
from anyio.abc import TaskGroup

from shoal.swarm.errors import ShoalError
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.kv.cache_streams import open_attached
from shoal.swarm.members.handshake import Gate
from shoal.swarm.transport import Stream, Transport

from . import messages
from .messages import Prepare


class ReadyStream:
    """One that is open, or being opened."""

    def __init__(self, to: Prepare) -> None:
        self.to = to
        self._stream: Stream | None = None
        self._settled = anyio.Event()
        self._scope = anyio.CancelScope()
        self._taken = False

    @property
    def is_broken(self) -> bool:
        return self._settled.is_set() and self._stream is None

    async def open(self, transport: Transport, gate: Gate) -> None:
        to = self.to
        with self._scope:
            try:
                self._stream = await open_attached(
                    transport, gate, messages.PUSH_PROTOCOL, to.peer, to.addresses, to.session, early=True
                )
                self._settled.set()
                if not self._taken:
                    await self._stream.receive()  # nothing ever comes, but it may break
            except ShoalError:
                pass
            finally:
                self._settled.set()
            if not self._taken:
                self.give_up()

    def take(self) -> None:
        """It is about to be used."""
        self._taken = True
        if self._stream is not None:
            self._scope.cancel()

    async def stream(self) -> Stream | None:
        """When it is open; None when it cannot be had."""
        try:
            await self._settled.wait()
        except BaseException:
            self.give_up()
            raise
        stream, self._stream = self._stream, None
        return stream

    def give_up(self) -> None:
        self._scope.cancel()
        if self._stream is not None:
            self._stream.abort()
        self._stream = None


class PreparedStream:
    """To one peer at a time."""

    def __init__(self, transport: Transport, gate: Gate) -> None:
        self._transport = transport
        self._gate = gate
        self._ready: ReadyStream | None = None

    def prepare(self, to: Prepare, tasks: TaskGroup) -> None:
        """Whatever was ready for another peer, or another opening of this one, is given up."""
        if self._ready is not None and self._ready.to == to and not self._ready.is_broken:
            return
        self.give_up()
        self._ready = ReadyStream(to)
        tasks.start_soon(self._ready.open, self._transport, self._gate)

    def take(self, peer: PeerId, session: SessionId) -> ReadyStream | None:
        """What is ready for this session at this peer; whose it is then. What is ready for another stays."""
        ready = self._ready
        if ready is None or (ready.to.peer, ready.to.session) != (peer, session):
            return None
        self._ready = None
        ready.take()
        return ready

    def give_up(self) -> None:
        if self._ready is not None:
            self._ready.give_up()
            self._ready = None
