"""One hop of one session: takes positions from upstream, has them computed, pushes the result downstream.

The order is kept by the push stream itself: one reader takes a feed, computes it and passes it on before it reads the
next; while an upstream is replaced, the two readers take turns. The control stream stays free to answer probes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import msgspec
from anyio.abc import TaskGroup

from shoal.compression.errors import MalformedPayload
from shoal.swarm.errors import BadActivation, LocalFault, MalformedMessage, Refused, ShoalError, Unavailable
from shoal.swarm.identifiers import PeerId
from shoal.swarm.kv.cache_keeper import CacheKeeper
from shoal.swarm.kv.cache_streams import open_attached
from shoal.swarm.members.handshake import Gate, failure
from shoal.swarm.prefixes.hop_prefill import HopPrefill
from shoal.swarm.prefixes.hop_prefix import HopPrefix
from shoal.swarm.prefixes.prefix_race import Compute as ComputePiece
from shoal.swarm.prefixes.prefix_race import Skip
from shoal.swarm.transport import Stream, Transport

from . import messages
from .compute import Compute, Done, Work
from .hop_cache import HopCache, cache_lost
from .kept_outputs import KeptOutputs, split, without_held
from .messages import (
    Adopt,
    Ahead,
    Computed,
    Failed,
    Feed,
    Handed,
    HiddenSlice,
    Keep,
    Leaving,
    NoPrefill,
    NoSuccessor,
    Open,
    Output,
    Pay,
    Probe,
    Progress,
    Pushed,
    Restored,
    Rewire,
    SendCache,
    Skippable,
    Slice,
    Stay,
    Tick,
    Timing,
    Token,
    slice_of,
    unpacked,
    with_word,
)
from .metering import Meter, Metering
from .work_records import WorkRecord

ATTACH_PATIENCE_S = 10.0
PAY_S = 5.0  # a session that is over waits so long for the receipt that its driver sent before it left
IDLE_S = 60.0  # a driver whose session makes no progress probes every few seconds; one that is silent so long is gone


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
        metering: Metering | None = None,
        prefix: HopPrefix | HopPrefill | None = None,
    ) -> None:
        """metering: for a driver that pays later; prefix: where positions come from beside computing them"""
        self.request = request
        self.prefix = prefix
        self._meter = meter
        self._metering = metering
        self._paying: anyio.Event | None = None  # a late payment came; set when it has been looked at
        self._early_word = b""  # that came before it
        self._word_behind = b""  # that came with positions which were skipped here: the hops behind want it
        self.held = 0
        self._upstream = request.upstream
        self._upstream_changed = anyio.Event()
        self._compute = compute
        self._control = control
        self._transport = transport
        self._gate = gate
        self._kept = KeptOutputs(keep_bytes)
        self._record = record
        self._cache = HopCache(request, compute, transport, gate, lambda: self.held, self._tell)
        self._restored = anyio.Event()
        self._chosen: list[int] = []  # tokens, when the sampling has penalties
        self._handing = anyio.CancelScope()
        self._target: Rewire | None = None
        if request.downstream is not None and request.downstream_session is not None:
            self._target = Rewire(request.downstream, request.downstream_session, request.downstream_addresses)
        self._finished = False  # whom this hop pushes to has been told that nothing more comes
        self.handed = False  # a successor has everything
        self.stranded = ""  # why there is no successor
        self._taking = anyio.Lock(fast_acquire=True)  # without a turn of the event loop, 30 us each time
        self._active_s = anyio.current_time()
        self._downstream: Stream | None = None
        self._downstream_lock = anyio.Lock(fast_acquire=True)
        self._connecting = anyio.CancelScope()
        self._readers: set[anyio.CancelScope] = set()

    @property
    def driver(self) -> PeerId:
        return self._control.peer

    @property
    def compute(self) -> Compute:
        return self._compute

    # Downstream

    async def connect_downstream(self) -> None:
        """Open the push stream early, so that the first positions find it ready."""
        if self._target is None:
            return
        if self.request.cache_from is not None:
            await self._restored.wait()  # before that the next hop does not expect this one
        with self._connecting:
            async with self._downstream_lock:
                await self._open_downstream(self._target)

    async def _open_downstream(self, to: Rewire) -> None:
        try:
            self._downstream = await open_attached(
                self._transport,
                self._gate,
                messages.PUSH_PROTOCOL,
                to.downstream,
                to.downstream_addresses,
                to.downstream_session,
            )
        except ShoalError as error:
            await self._tell(failure("downstream_lost", error, culprit=to.downstream))

    def rewire(self, to: Rewire, tasks: TaskGroup) -> None:
        """Push to another peer from now on, beginning with what it lacks. Probes are answered meanwhile."""
        self._target, self._finished = to, False
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
        if to.start < self._kept.first:
            await self._tell(Failed("cannot_replay", "this hop no longer keeps its outputs", None))
            return
        await self._open_downstream(to)
        for feed in self._kept.replay(to.start):
            await self._push(feed)

    async def _push(self, pushed: Pushed) -> None:
        if self._downstream is None:
            return  # lost: kept until the driver names another
        try:
            await self._downstream.send(messages.encode(pushed))
        except Unavailable as error:
            peer = self._downstream.peer
            self._downstream.abort()
            self._downstream = None
            await self._tell(failure("downstream_lost", error, culprit=peer))

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
            pushed = messages.decode(frame)
            if not isinstance(pushed, Feed | Slice | HiddenSlice):
                raise MalformedMessage(f"{type(pushed).__name__} on a push stream")
            async with self._taking:
                if self._upstream != stream.peer or not await self._take(pushed):
                    return

    async def _take(self, pushed: Pushed) -> bool:
        """returns: whether the session can go on with this upstream"""
        self._active_s = anyio.current_time()
        blamed = None if self._upstream == self.driver else self._upstream
        try:
            feed, tick = unpacked(pushed)
            if tick and not await self._take_word(tick):
                return False
            if not feed.count:
                return await self._take_gap(feed.start, tick, blamed)
            fresh = without_held(feed, self.held)
        except MalformedPayload as error:
            await self._tell(failure("bad_input", error, blamed))
            return False
        if fresh is None:
            self._word_behind = tick or self._word_behind
            return True
        if self.prefix is not None and self.prefix.leads:
            return await self._take_in_steps(self.prefix, fresh, tick, blamed)
        if self.prefix is not None and fresh.start > self.held and not await self._fill(self.prefix, fresh.start):
            await self._tell(Failed("cannot_replay", f"positions {self.held} to {fresh.start} are not held", None))
            return False
        return await self._compute_feed(fresh, tick, blamed, sliced=not isinstance(pushed, Feed))

    async def _take_in_steps(
        self, prefix: HopPrefix | HopPrefill, feed: Feed, tick: bytes, blamed: PeerId | None
    ) -> bool:
        """Compute what has to be, in pieces, and skip what every hop of the chain holds."""
        left: Feed | None = feed
        while left is not None:
            step = await prefix.next(left.start, left.count)
            if isinstance(step, Skip):
                await self._fill(prefix, step.stop)
                await self._pass_gap(tick)
                tick = b""
                left = without_held(left, self.held)
            elif isinstance(step, ComputePiece):
                piece, left = split(left, step.count)
                if not await self._compute_feed(piece, tick, blamed, sliced=False):
                    return False
                tick = b""
        return True

    async def _take_gap(self, start: int, tick: bytes, blamed: PeerId | None) -> bool:
        """The hop before has skipped the positions before `start`; all of the chain are said to hold them."""
        if self.prefix is None or self.prefix.leads:
            await self._tell(Failed("bad_input", "a feed without positions", blamed))
            return False
        if start > self.held and not await self._fill(self.prefix, start):
            await self._tell(Failed("cannot_replay", f"positions {self.held} to {start} are not held", None))
            return False
        await self._pass_gap(tick)
        return True

    async def _pass_gap(self, tick: bytes) -> None:
        """So that the hops behind take in what they hold meanwhile, and the driver pays for it."""
        if self._target is not None:
            async with self._downstream_lock:
                await self._push(with_word(Feed(self.held, 0, (), b"", False, False, ()), tick))
        elif self.request.payment:
            await self._tell(Computed(self.held))

    async def _fill(self, prefix: HopPrefix | HopPrefill, stop: int) -> bool:
        """Take in what is held up to `stop`. returns: whether all of it is in"""
        before = self.held
        try:
            self.held = await prefix.fill(self.held, stop)
        except ShoalError as error:  # caches of this model cannot be moved, or the engine is at its end
            await prefix.give_up(error)
        if self.held > before:
            self._kept.start_at(self.held)
            self._cache.grew(before, self.held)
            if self._meter is not None and prefix.counts_as_work:
                self._meter.computed(self.held - before)
            elif self._meter is not None:
                self._meter.given(self.held - before)
            if self._record is not None:
                self._record.gave_up()
                self._record = None
        return self.held >= stop

    async def _compute_feed(self, fresh: Feed, tick: bytes, blamed: PeerId | None, *, sliced: bool) -> bool:
        if fresh.start != self.held:
            text = f"positions from {fresh.start} came, {self.held} are held"
            await self._tell(Failed("bad_input", text, blamed))
            return False
        if self._meter is not None:
            try:
                await self._meter.admit(fresh.count)
            except Refused as error:
                await self._tell(failure("refused", error))
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
            await self._tell(failure("bad_input", error, blamed))
            return False
        except LocalFault as error:
            await self._tell(failure("local", error))
            return False
        except ShoalError as error:
            await self._tell(failure("refused", error))
            return False
        self.held += fresh.count
        self._cache.grew(fresh.start, self.held)
        if self._meter is not None:
            self._meter.computed(fresh.count)
        if self._record is not None:
            self._record.worked(fresh, done)
        if self.prefix is not None and not await self.prefix.computed(
            fresh.start, fresh.count, done.compute_s, wants_token=fresh.wants_token
        ):
            await self._tell(Failed("cannot_replay", "a fetched part of the prefix was false", None))
            return False
        word, self._word_behind = tick or self._word_behind, b""
        await self._pass_on(fresh, done, word, sliced=sliced)
        return True

    async def _take_word(self, word: bytes) -> bool:
        """returns: whether the session goes on"""
        if self._meter is None:
            self._early_word = word  # a later one pays for those before it too
            return True
        try:
            self._meter.take(word)
        except Refused as error:
            await self._tell(failure("refused", error))
            return False
        return True

    async def _pass_on(self, fed: Feed, done: Done, tick: bytes, *, sliced: bool) -> None:
        trace = (*fed.trace, Timing(done.queue_s * 1e3, done.compute_s * 1e3))
        if self.request.downstream is None and self.request.for_others:
            if self.request.payment:
                await self._tell(Computed(self.held))
        elif self.request.downstream is not None:
            out = Feed(fed.start, fed.count, (), done.hidden, fed.wants_token, fed.replay, trace)
            async with self._downstream_lock:
                self._kept.add(out)
                await self._push(slice_of(out, tick) if sliced else with_word(out, tick))
        elif done.choice is not None:
            choice = done.choice
            if self.request.sampling.needs_history:
                self._chosen.append(choice.id)
            await self._tell(Token(fed.start + fed.count, choice.id, choice.logprob, choice.top, trace))
        elif done.hidden:
            await self._tell(Output(fed.start, fed.count, done.hidden, fed.wants_token, trace))
        elif self.request.payment:  # the driver sends the next slice when this one is computed
            await self._tell(Computed(self.held))

    # The cache

    async def load_kept(self, keeper: CacheKeeper) -> None:
        """Begin with what this node keeps as a standby."""
        request = self.request
        try:
            assert request.kept_as is not None
            chunks = keeper.chunks(request.kept_as, self.driver, request.cache_below)
        except ShoalError as error:
            await self._tell(cache_lost(request.session, error))
            chunks = []
        await self._begin_at(await self._cache.load(chunks))

    async def take_cache(self, stream: Stream) -> None:
        """Begin with what comes on a cache stream."""
        with self.reading():
            try:
                held = await self._cache.take(stream)
            except ShoalError as error:
                await self._tell(cache_lost(self.request.session, error))
                raise
            await self._begin_at(held)
            await stream.receive()  # its END, which is acknowledged so

    async def _begin_at(self, held: int) -> None:
        self.held = held
        self._kept.start_at(held)
        if self._meter is not None and held:
            self._meter.computed(held)  # the word that the driver gives covers them
        if self._record is not None and held:
            self._record.gave_up()
            self._record = None
        self._restored.set()
        await self._tell(Restored(held))

    async def take_prefill(self, stream: Stream) -> None:
        """What another peer computes for this hop."""
        if isinstance(self.prefix, HopPrefill):
            with self.reading():
                await self.prefix.take(stream)

    def send_cache(self, to: SendCache, tasks: TaskGroup) -> None:
        if to.until:
            tasks.start_soon(self._cache.send_part, to)
            return
        if not to.hands_over:
            tasks.start_soon(self._cache.follow, to)
            return
        self.stranded = ""
        self._handing.cancel()
        self._handing = anyio.CancelScope()
        tasks.start_soon(self._hand_over, to, self._handing)

    async def _hand_over(self, to: SendCache, scope: anyio.CancelScope) -> None:
        """The session goes on until all but the last chunk are sent; from then on nothing is computed here."""
        with scope:
            try:
                await self._compute.prepare_kv(self.request.span)
                sender = await self._cache.sender(to)
                try:
                    await sender.send_full_chunks(lambda: self.held)
                    async with self._taking:
                        await sender.send_to(self.held)
                        await self._finish_downstream()
                        await sender.end((*self.request.history, *self._chosen) if self._chosen else ())
                        self.handed = True
                        await self._tell(Handed(self.held))
                        await anyio.sleep_forever()  # the driver closes this hop
                finally:
                    sender.abort()
            except ShoalError as error:
                await self._tell(cache_lost(to.session, error))

    async def _finish_downstream(self) -> None:
        """What has been pushed arrives: the successor does not compute it again."""
        async with self._downstream_lock:
            if self._downstream is not None:
                await self._downstream.close()
                self._downstream, self._finished = None, True

    def stay(self, tasks: TaskGroup) -> None:
        """There is no successor after all."""
        self._handing.cancel()
        self.handed = False
        if self._finished and self._target is not None:
            self.rewire(msgspec.structs.replace(self._target, start=self.held), tasks)

    async def leave(self, within_s: float) -> None:
        """Ask the driver for a successor."""
        await self._tell(Leaving(within_s))

    async def run_prefix(self) -> None:
        if self.prefix is not None:
            await self.prefix.run(self._tell)

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
                    await self._tell(Progress(nonce, self.held))
                case Adopt(upstream):
                    self.adopt(upstream)
                case Rewire() as to:
                    self.rewire(to, tasks)
                case SendCache() as to:
                    self.send_cache(to, tasks)
                case Stay():
                    self.stay(tasks)
                case NoSuccessor(text):
                    self.stranded = text
                case Tick(word):
                    await self._take_word(word)
                case Skippable() | Keep() as said:
                    self._hear_of_prefix(said)
                case Ahead() | NoPrefill() as said:
                    if isinstance(self.prefix, HopPrefill):
                        self.prefix.hear(said)
                case Pay(payment):
                    self._begin_late(payment, tasks)
                case other:
                    raise MalformedMessage(f"{type(other).__name__} on a control stream")
        if self._paying is not None:
            with anyio.move_on_after(PAY_S):
                await self._paying.wait()

    def _hear_of_prefix(self, said: Skippable | Keep) -> None:
        """All hops are told, also one that took another's place, or keeps nothing. raises: MalformedMessage"""
        if not isinstance(self.prefix, HopPrefix):
            return
        if isinstance(said, Skippable):
            self.prefix.others_hold(said)
        else:
            self.prefix.grow(said)

    def _begin_late(self, payment: bytes, tasks: TaskGroup) -> None:
        """Nothing waits for it: in the free lane no position is owed for."""
        if self._paying is not None or self._meter is not None:
            raise MalformedMessage("a second payment for one session")
        self._paying = anyio.Event()
        tasks.start_soon(self._pay_late, payment, self._paying)

    async def _pay_late(self, payment: bytes, looked_at: anyio.Event) -> None:
        try:
            if self._metering is None:
                return
            meter = await self._metering.open_late(self.driver, self.request, payment)
            if meter is not None:
                meter.computed(self.held)
                self._meter = meter
                if self._early_word:
                    await self._take_word(self._early_word)
        except Refused as error:
            await self._tell(failure("refused", error))
        finally:
            looked_at.set()

    async def _tell(self, message: messages.AnyMessage) -> None:
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
