"""One hop of one session: takes positions from upstream, has them computed, pushes the result downstream.

The order is kept by the push stream itself: one reader takes a feed, computes it and passes it on before it reads the
next; while an upstream is replaced, the two readers take turns. The control stream stays free to answer probes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from anyio.abc import TaskGroup

from shoal.compression.errors import MalformedPayload

from . import messages
from .compute import Compute, Done, Work
from .errors import BadActivation, LocalFault, MalformedMessage, Refused, ShoalError, Unavailable
from .handshake import Gate, failure, greet, read_welcome
from .hop_prefix import HopPrefix
from .identifiers import PeerId, SessionId
from .kept_outputs import KeptOutputs, split, without_held
from .messages import (
    Adopt,
    Attach,
    Failed,
    Feed,
    Keep,
    Open,
    Output,
    PaidFeed,
    Probe,
    Progress,
    Reused,
    Rewire,
    Skippable,
    Staged,
    Tick,
    Timing,
    Token,
    with_word,
)
from .metering import Meter
from .prefix_race import Compute as ComputePiece
from .prefix_race import Skip
from .transport import Stream, Transport
from .work_records import WorkRecord

ATTACH_PATIENCE_S = 10.0
IDLE_S = 60.0  # a driver whose session makes no progress probes every few seconds; one that is silent so long is gone


async def open_push(
    transport: Transport, gate: Gate, peer: PeerId, addresses: tuple[str, ...], session: SessionId
) -> Stream:
    """A push stream to `peer`, attached to its session. raises: Unavailable, Refused, RemoteFault"""
    if addresses:
        await transport.connect(peer, addresses)
    stream = await transport.open(peer, messages.PUSH_PROTOCOL)
    try:
        await greet(stream, gate)
        await stream.send(messages.encode(Attach(session)))
        await read_welcome(stream, gate)
    except BaseException:
        stream.abort()
        raise
    return stream


class Hop:
    """State of one session at this node, between `Open` and the end of its control stream."""

    def __init__(
        self,
        request: Open,
        compute: Compute,
        control: Stream,
        transport: Transport,
        gate: Gate,
        keep_bytes: int,
        meter: Meter | None = None,
        record: WorkRecord | None = None,
        prefix: HopPrefix | None = None,
    ) -> None:
        self.request = request
        self.prefix = prefix
        self._meter = meter
        self.held = 0
        self._upstream = request.upstream
        self._upstream_changed = anyio.Event()
        self._compute = compute
        self._control = control
        self._transport = transport
        self._gate = gate
        self._kept = KeptOutputs(keep_bytes)
        self._record = record
        self._taking = anyio.Lock(fast_acquire=True)  # without a turn of the event loop, 30 us each time
        self._active_s = anyio.current_time()
        self._downstream: Stream | None = None
        self._downstream_lock = anyio.Lock(fast_acquire=True)
        self._connecting = anyio.CancelScope()
        self._readers: set[anyio.CancelScope] = set()

    @property
    def driver(self) -> PeerId:
        return self._control.peer

    # Downstream

    async def connect_downstream(self) -> None:
        """Open the push stream early, so that the first positions find it ready."""
        request = self.request
        if request.downstream is None or request.downstream_session is None:
            return
        with self._connecting:
            async with self._downstream_lock:
                await self._open_downstream(
                    request.downstream, request.downstream_session, request.downstream_addresses
                )

    async def _open_downstream(self, peer: PeerId, session: SessionId, addresses: tuple[str, ...]) -> None:
        try:
            self._downstream = await open_push(self._transport, self._gate, peer, addresses, session)
        except ShoalError as error:
            await self.tell_driver(failure("downstream_lost", error, culprit=peer))

    def rewire(self, to: Rewire, tasks: TaskGroup) -> None:
        """Push to another peer from now on, beginning with everything so far. Probes are answered meanwhile."""
        self._connecting.cancel()
        self._connecting = anyio.CancelScope()
        if self._downstream is not None:
            self._downstream.abort()  # a push that hangs holds the lock; this ends it
        tasks.start_soon(self._rewire, to, self._connecting)

    async def _rewire(self, to: Rewire, scope: anyio.CancelScope) -> None:
        with scope:
            async with self._downstream_lock:
                await self._replay(to)

    async def _replay(self, to: Rewire) -> None:
        if self._downstream is not None:
            self._downstream.abort()
            self._downstream = None
        if self._kept.dropped:
            await self.tell_driver(Failed("cannot_replay", "this hop no longer keeps its outputs", None))
            return
        await self._open_downstream(to.downstream, to.downstream_session, to.downstream_addresses)
        for feed in self._kept.replay():
            await self._push(feed)

    async def _push(self, feed: Feed) -> None:
        if self._downstream is None:
            return  # lost: kept until the driver names another
        try:
            await self._downstream.send(messages.encode(feed))
        except Unavailable as error:
            peer = self._downstream.peer
            self._downstream.abort()
            self._downstream = None
            await self.tell_driver(failure("downstream_lost", error, culprit=peer))

    # Upstream

    def adopt(self, upstream: PeerId) -> None:
        self._upstream = upstream
        self._upstream_changed.set()
        self._upstream_changed = anyio.Event()

    async def admit_upstream(self, peer: PeerId) -> None:
        """Wait until the driver has named this peer as upstream. raises: Refused"""
        with anyio.move_on_after(ATTACH_PATIENCE_S):
            while self._upstream != peer:
                await self._upstream_changed.wait()
        if self._upstream != peer:
            raise Refused("the driver of this session named another upstream")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around the reader of a push stream: it ends with the session, whatever its upstream does."""
        with anyio.CancelScope() as scope:
            self._readers.add(scope)
            try:
                yield
            finally:
                self._readers.discard(scope)

    async def take_all(self, stream: Stream) -> None:
        """Compute what comes on a push stream, until it ends or another upstream is named."""
        while self._upstream == stream.peer:
            frame = await stream.receive()
            if frame is None:
                return
            feed = messages.decode(frame)
            if not isinstance(feed, Feed):
                raise MalformedMessage(f"{type(feed).__name__} on a push stream")
            async with self._taking:
                if self._upstream != stream.peer or not await self._take(feed):
                    return

    async def _take(self, feed: Feed) -> bool:
        """returns: whether the session can go on with this upstream"""
        self._active_s = anyio.current_time()
        blamed = None if self._upstream == self.driver else self._upstream
        tick = feed.tick if isinstance(feed, PaidFeed) else b""
        if tick and not await self._take_word(tick):
            return False
        try:
            fresh = without_held(feed, self.held)
        except MalformedPayload as error:
            await self.tell_driver(failure("bad_input", error, blamed))
            return False
        if fresh is None:
            return True
        if self.prefix is not None and self.prefix.leads:
            return await self._take_in_steps(self.prefix, fresh, tick, blamed)
        if self.prefix is not None and fresh.start > self.held and not await self._fill(self.prefix, fresh.start):
            await self.tell_driver(
                Failed("cannot_replay", f"positions {self.held} to {fresh.start} are not held", None)
            )
            return False
        return await self._compute_feed(fresh, tick, blamed)

    async def _take_in_steps(self, prefix: HopPrefix, feed: Feed, tick: bytes, blamed: PeerId | None) -> bool:
        """Compute what has to be, in pieces, and skip what every hop of the chain holds."""
        left: Feed | None = feed
        while left is not None:
            step = await prefix.next(left.start, left.count)
            if isinstance(step, Skip):
                await self._fill(prefix, step.stop)
                left = without_held(left, self.held)
            elif isinstance(step, ComputePiece):
                piece, left = split(left, step.count)
                if not await self._compute_feed(piece, tick, blamed):
                    return False
                tick = b""
        return True

    async def _fill(self, prefix: HopPrefix, stop: int) -> bool:
        """Take in what is held up to `stop`. returns: whether all of it is in"""
        before = self.held
        try:
            self.held = await prefix.fill(self.held, stop)
        except ShoalError as error:
            await self.tell_driver(failure("local", error))
            return False
        if self.held > before:
            self._kept.drop()  # of what was not computed there is nothing to replay
            if self._meter is not None:
                self._meter.computed(self.held - before)
            if self._record is not None:
                self._record.ended()
                self._record = None
        return self.held >= stop

    async def _compute_feed(self, fresh: Feed, tick: bytes, blamed: PeerId | None) -> bool:
        if fresh.start != self.held:
            text = f"positions from {fresh.start} came, {self.held} are held"
            await self.tell_driver(Failed("bad_input", text, blamed))
            return False
        if self._meter is not None:
            try:
                await self._meter.admit(fresh.count)
            except Refused as error:
                await self.tell_driver(failure("refused", error))
                return False
        try:
            done = await self._compute.run(
                Work(
                    self.request.session,
                    fresh.start,
                    fresh.count,
                    fresh.ids,
                    fresh.hidden,
                    fresh.wants_token,
                    self._record is not None,
                )
            )
        except BadActivation as error:
            await self.tell_driver(failure("bad_input", error, blamed))
            return False
        except LocalFault as error:
            await self.tell_driver(failure("local", error))
            return False
        except ShoalError as error:
            await self.tell_driver(failure("refused", error))
            return False
        self.held += fresh.count
        if self._meter is not None:
            self._meter.computed(fresh.count)
        if self._record is not None:
            self._record.worked(fresh, done)
        if self.prefix is not None and not await self.prefix.computed(
            fresh.start, fresh.count, done.compute_s, wants_token=fresh.wants_token
        ):
            await self.tell_driver(Failed("cannot_replay", "a fetched part of the prefix was false", None))
            return False
        await self._pass_on(fresh, done, tick)
        return True

    async def _take_word(self, word: bytes) -> bool:
        """returns: whether the session goes on"""
        if self._meter is None:
            return True
        try:
            self._meter.take(word)
        except Refused as error:
            await self.tell_driver(failure("refused", error))
            return False
        return True

    async def _pass_on(self, fed: Feed, done: Done, tick: bytes) -> None:
        trace = (*fed.trace, Timing(done.queue_s * 1e3, done.compute_s * 1e3))
        if self.request.downstream is not None:
            out = with_word(Feed(fed.start, fed.count, (), done.hidden, fed.wants_token, fed.replay, trace), tick)
            async with self._downstream_lock:
                self._kept.add(out)
                await self._push(out)
        elif done.choice is not None:
            choice = done.choice
            await self.tell_driver(Token(fed.start + fed.count, choice.id, choice.logprob, choice.top, trace))
        elif done.hidden:
            await self.tell_driver(Output(fed.start, fed.count, done.hidden, fed.wants_token, trace))
        elif self._meter is not None and self._meter.shows_progress:
            await self.tell_driver(Progress(0, self.held))

    # Control

    async def end_when_idle(self, session: anyio.CancelScope) -> None:
        """A driver that was stopped or sleeps keeps its streams open; its room is for others after a while."""
        while (idle_s := anyio.current_time() - self._active_s) < IDLE_S:  # noqa: ASYNC110  time is what it waits for
            await anyio.sleep(IDLE_S - idle_s)
        session.cancel()

    async def control_loop(self, tasks: TaskGroup) -> None:
        """Serve the driver until it ends the stream or vanishes (StreamBroken)."""
        while (frame := await self._control.receive()) is not None:
            self._active_s = anyio.current_time()
            match messages.decode(frame):
                case Probe(nonce):
                    await self.tell_driver(Progress(nonce, self.held))
                case Adopt(upstream):
                    self.adopt(upstream)
                case Rewire() as to:
                    self.rewire(to, tasks)
                case Tick(word):
                    await self._take_word(word)
                case Skippable() as said if self.prefix is not None:
                    self.prefix.others_hold(said)
                case Keep() as told if self.prefix is not None:
                    self.prefix.grow(told)
                case other:
                    raise MalformedMessage(f"{type(other).__name__} on a control stream")

    async def tell_driver(self, message: Failed | Token | Output | Progress | Staged | Reused) -> None:
        try:
            await self._control.send(messages.encode(message))
        except Unavailable:
            return  # the driver is gone; the control loop notices and ends the session

    def close(self) -> None:
        for reader in self._readers:
            reader.cancel()
        if self._downstream is not None:
            self._downstream.abort()
        self._compute.close(self.request.session)
        if self.prefix is not None:
            self.prefix.close()
        if self._meter is not None:
            self._meter.close()
        if self._record is not None:
            self._record.ended()
