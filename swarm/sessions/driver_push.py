"""The driver's push into the first hop: everything from position 0, then each new token."""

from collections.abc import Callable, Sequence

import anyio
from anyio.abc import TaskGroup

from shoal.swarm.errors import DaemonDied, ShoalError
from shoal.swarm.kv.cache_streams import open_attached
from shoal.swarm.members.handshake import Gate
from shoal.swarm.transport import Stream, Transport

from . import messages
from .feeder import Feeder
from .hop_link import LinkAddress
from .session_events import Event, HopLost


class DriverPush:
    """ids: the session's tokens, prompt first; it grows, and all of it may be pushed. tick: the word that is due
    in_turn: a slice of the prompt waits until the last hop has computed the one before
    """

    def __init__(
        self,
        transport: Transport,
        gate: Gate,
        feeder: Feeder,
        ids: Sequence[int],
        post: Callable[[Event], None],
        tick: Callable[[], bytes],
        *,
        in_turn: bool,
    ) -> None:
        self._transport = transport
        self._gate = gate
        self._feeder = feeder
        self._ids = ids
        self._post = post
        self._tick = tick
        self._in_turn = in_turn
        self._computed = 0  # positions, by the last hop's word
        self._wanted = 0  # tokens that may be pushed
        self._more = anyio.Event()
        self._scope = anyio.CancelScope()
        self._connected_before = False

    def connect(self, to: LinkAddress, start: int, tasks: TaskGroup) -> None:
        """Push into this hop from now on, from position `start`; what still goes on with an earlier one ends."""
        self._scope.cancel()
        self._scope = anyio.CancelScope()
        replay, self._connected_before = self._connected_before, True
        tasks.start_soon(self._run, to, start, replay, self._scope)

    def feed(self, stop: int) -> None:
        """Push all tokens before index `stop` that were not pushed yet."""
        self._wanted = stop
        self._more.set()

    def computed(self, positions: int) -> None:
        """The whole chain has computed so many."""
        if positions > self._computed:
            self._computed = positions
            self._more.set()

    async def _turn(self, start: int) -> bytes:
        while self._computed < start:
            self._more = anyio.Event()
            await self._more.wait()
        return self._tick()

    async def _run(self, to: LinkAddress, start: int, replay: bool, scope: anyio.CancelScope) -> None:
        with scope:
            stream = None
            try:
                stream = await open_attached(
                    self._transport, self._gate, messages.PUSH_PROTOCOL, to.peer, to.addresses, to.session
                )
                await self._push_all(stream, start, replay)
            except ShoalError as error:
                self._post(HopLost(to.key, str(error), isinstance(error, DaemonDied)))
            finally:
                if stream is not None:
                    stream.abort()

    async def _push_all(self, stream: Stream, start: int, replay: bool) -> None:
        """For ever."""
        known = tuple(self._ids)
        await self._feeder.feed_all(stream, known, start, replay, self._turn if self._in_turn else None)
        fed = len(known)
        while True:
            while fed < self._wanted:
                await self._feeder.feed_token(stream, fed, self._ids[fed], self._tick())
                fed += 1
            self._more = anyio.Event()
            await self._more.wait()
