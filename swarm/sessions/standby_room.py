"""A node that stands by for a hop of somebody's session: what it keeps, and what it has ready to take the hop's place.

The bytes that come lie in the `CacheKeeper`. While the engine has room that no session needs, they are decoded into it
as they come, so that the session waits for no more than the last of them; a session that needs the room takes it away,
and the bytes have to do. The control stream over which the driver asked for all this becomes that of the hop.
"""

import sys

import anyio
from anyio.abc import TaskGroup

from shoal.swarm.errors import MalformedMessage, ShoalError, Unavailable
from shoal.swarm.kv.cache_keeper import CacheKeeper
from shoal.swarm.members.handshake import Gate
from shoal.swarm.transport import Stream, Transport

from . import messages
from .compute import Compute
from .lanes import Claim
from .messages import Hold, Kept, Open, Prepare
from .prepared_stream import PreparedStream

HOLD_IDLE_S = 600.0  # a standby that is sent nothing for so long forgets what it keeps


class StandbyRoom:
    def __init__(
        self, request: Hold, compute: Compute, keeper: CacheKeeper, control: Stream, transport: Transport, gate: Gate
    ) -> None:
        self.request = request
        self.compute = compute
        self.prepared = PreparedStream(transport, gate)  # to the hop behind the one that it stands by for
        self._keeper = keeper
        self._control = control
        self._grew = anyio.Event()
        self._is_warm = False  # there is room for it in the engine
        self._ready = 0  # positions in the engine

    def grew(self) -> None:
        """More has come."""
        self._grew.set()

    async def stand_by(self) -> Open | None:
        """Until the driver wants it as a hop, or no more. raises: Unavailable, RemoteFault, Refused, LocalFault"""
        opened: Open | None = None
        error: ShoalError | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow)
            try:
                opened = await self._listen(tasks)
            except ShoalError as caught:  # goes on below, as it is and not in a group
                error = caught
            tasks.cancel_scope.cancel()
        if error is not None:
            raise error
        return opened

    async def _listen(self, tasks: TaskGroup) -> Open | None:
        await self.compute.prepare_kv(self.request.span)
        held = -1
        while (now := self._keeper.held(self.request.session)) != held:
            held = now
            with anyio.move_on_after(HOLD_IDLE_S):
                while (frame := await self._control.receive()) is not None:
                    match messages.decode(frame):
                        case Prepare() as to:
                            self.prepared.prepare(to, tasks)
                        case Open() as opened if self._is_meant(opened):
                            return opened
                        case other:
                            raise MalformedMessage(f"{type(other).__name__} to a standby")
                return None
        return None

    def _is_meant(self, opened: Open) -> bool:
        """It may become what it was made for and nothing else."""
        mine = self.request
        theirs = Hold(opened.session, opened.model, opened.dtype, opened.span, mine.sender, mine.max_tokens)
        return theirs == mine and opened.kept_as == mine.session

    async def _follow(self) -> None:
        """Tell the driver what has come, and take it into the engine."""
        told = 0
        try:
            await self._make_room()
            while True:
                self._grew = grew = anyio.Event()
                held = self._keeper.held(self.request.session)
                if held > told:
                    told = held
                    await self._control.send(messages.encode(Kept(held)))
                if not await self._take_in_one():
                    await grew.wait()
        except Unavailable:
            return  # who listens finds out too

    async def _make_room(self) -> None:
        if not self.request.max_tokens:
            return
        try:
            await self.compute.stand_by(self.request.session, self.request.span, self.request.max_tokens)
        except ShoalError:
            return  # the bytes have to do
        self._is_warm = True

    async def _take_in_one(self) -> bool:
        """returns: whether there may be more to do at once"""
        if not self._is_warm:
            return False
        name = self.request.session
        try:
            due = self._keeper.chunks(name, self._control.peer, sys.maxsize, self._ready)[:1]
            if not due:
                return False
            self._ready = await self.compute.import_kv(name, self._ready, due)
        except ShoalError:  # its room was needed, or the chunk is false, which is told when it is loaded
            self._cool()
            return False
        return True

    def _cool(self) -> None:
        if self._is_warm:
            self.compute.close(self.request.session)
        self._is_warm, self._ready = False, 0

    async def become(self, opened: Open, claim: Claim) -> int:
        """Make room for the session. returns: positions that are in it already. raises: as `Compute.open`"""
        name, span, sampling = opened.session, opened.span, opened.sampling
        if self._is_warm:
            try:
                ready = await self.compute.take_over(
                    name, span, opened.max_tokens, sampling, opened.history, opened.cache_below, claim
                )
            except ShoalError:
                self._cool()
            else:
                self._is_warm = False  # it is the session's now
                return ready
        await self.compute.open(name, span, opened.max_tokens, sampling, opened.history, claim)
        return 0

    def close(self) -> None:
        self._cool()
        self.prepared.give_up()
