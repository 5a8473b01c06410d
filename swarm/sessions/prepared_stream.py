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


class PreparedStream:
    """To one peer at a time."""

    def __init__(self, transport: Transport, gate: Gate) -> None:
        self._transport = transport
        self._gate = gate
        self._to: Prepare | None = None
        self._stream: Stream | None = None
        self._opening = anyio.CancelScope()

    def prepare(self, to: Prepare, tasks: TaskGroup) -> None:
        """Whatever was ready for another peer, or another opening of this one, is given up."""
        if to != self._to:
            self.give_up()
            self._to, self._opening = to, anyio.CancelScope()
            tasks.start_soon(self._open, to, self._opening)

    async def _open(self, to: Prepare, scope: anyio.CancelScope) -> None:
        with scope:
            try:
                self._stream = await open_attached(
                    self._transport,
                    self._gate,
                    messages.PUSH_PROTOCOL,
                    to.peer,
                    to.addresses,
                    to.session,
                    early=True,
                )
                await self._stream.receive()  # nothing ever comes, but it may break
            except ShoalError:
                pass
            if self._opening is scope:
                self.give_up()

    def take(self, peer: PeerId, session: SessionId) -> Stream | None:
        """What is ready for this session at this peer; whose it is then. What is ready for another stays."""
        if self._to is None or (self._to.peer, self._to.session) != (peer, session):
            return None
        stream, self._stream = self._stream, None
        self.give_up()
        return stream

    def give_up(self) -> None:
        self._opening.cancel()
        if self._stream is not None:
            self._stream.abort()
        self._to = self._stream = None
