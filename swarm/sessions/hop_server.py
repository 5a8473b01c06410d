"""The serving side of sessions: accepts control and push streams and joins them to hops."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import anyio

from shoal.swarm.errors import (
    ContextTooLong,
    LocalFault,
    MalformedMessage,
    OutOfMemory,
    Refused,
    RemoteFault,
    ShoalError,
    StreamBroken,
    Unavailable,
)
from shoal.swarm.identifiers import ModelId, SessionId
from shoal.swarm.kv.cache_keeper import CacheKeeper, Kept
from shoal.swarm.kv.cache_streams import ATTACH_PATIENCE_S, CacheReceiver
from shoal.swarm.members.handshake import Gate, failure, prompt_message, receive_greeting
from shoal.swarm.prefixes.hop_prefill import HopPrefill
from shoal.swarm.prefixes.hop_prefix import HopPrefix, begun
from shoal.swarm.prefixes.prefixes import Prefixes
from shoal.swarm.routing.link_speed import LinkSpeed
from shoal.swarm.transport import Stream, Transport
from shoal.swarm.units import Span

from . import messages
from .compute import Compute
from .hop import Hop
from .lanes import Accounts, NoBooks
from .messages import Attach, Hold, Open, Opened
from .metering import Meter, Metering
from .standby_room import StandbyRoom
from .work_records import WorkRecords

KEEP_BYTES = 64 << 20  # of outputs per session, for replay
DRAIN_LOOK_S = 0.05


class Hosting(Protocol):
    """What this node serves now."""

    def find(self, model: ModelId, dtype: str, span: Span) -> Compute:
        """raises: Refused when the model, the dtype or a unit of the span is not served here"""


@dataclass(frozen=True, slots=True)
class OpenSession:
    """For status: a session that is open here."""

    session: SessionId
    driver: str
    span: Span
    held: int


@dataclass(frozen=True, slots=True)
class Drained:
    """How far a leaving node has come. moved: to successors; ended: by themselves, or by their drivers"""

    sessions: int  # when it began
    moved: int = 0
    ended: int = 0
    waiting: int = 0  # still here
    stranded: str = ""  # why one of those has no successor

    @property
    def over(self) -> bool:
        return not self.waiting


@dataclass(slots=True, eq=False)
class _Departure:
    """Sessions that have been asked to go, and what became of them."""

    of: Compute | None  # only those that are computed there; None: all
    asked: set[SessionId] = field(default_factory=set)
    moved: int = 0
    ended: int = 0

    def concerns(self, compute: Compute) -> bool:
        return self.of is None or compute is self.of

    def over(self, session: SessionId, *, moved: bool) -> None:
        if session in self.asked:
            self.moved += moved
            self.ended += not moved


class HopServer:
    """metering: who is paid; accounts: whose turn it is; records: who keeps what was done, for
    audits; prefixes: KV that outlives its session; link: hears how fast KV comes"""

    def __init__(
        self,
        transport: Transport,
        gate: Gate,
        hosting: Hosting,
        keep_bytes: int = KEEP_BYTES,
        *,
        metering: Metering | None = None,
        accounts: Accounts | None = None,
        records: WorkRecords | None = None,
        prefixes: Prefixes | None = None,
        receiver: CacheReceiver | None = None,
        link: LinkSpeed | None = None,
    ) -> None:
        self._transport = transport
        self._gate = gate
        self._hosting = hosting
        self._keep_bytes = keep_bytes
        self._metering = metering
        self._accounts = accounts or NoBooks()
        self._records = records
        self._prefixes = prefixes
        self.link = link or LinkSpeed()
        self.receiver = receiver or CacheReceiver(transport, gate, CacheKeeper())
        self._leaving = False
        self._departures: list[_Departure] = []
        self._hops: dict[SessionId, Hop] = {}
        self._scopes: dict[anyio.CancelScope, Compute] = {}  # of open sessions and of holds
        self._rooms: dict[SessionId, StandbyRoom] = {}
        self._appeared = anyio.Event()

    async def start(self) -> None:
        await self._transport.serve(messages.CONTROL_PROTOCOL, self._control)
        await self._transport.serve(messages.PUSH_PROTOCOL, self._push)
        await self.receiver.start()

    def sessions(self) -> list[OpenSession]:
        return [OpenSession(key, hop.driver, hop.request.span, hop.held) for key, hop in self._hops.items()]

    # Leaving

    async def drain(
        self, limit_s: float, told: Callable[[Drained], None], *, waits: bool = True, of: Compute | None = None
    ) -> Drained:
        """Have the sessions that are here moved to successors, and wait until the last is gone.

        told: each time that something has changed; waits: also for those that find no successor
        of: only those that this computes, which takes no more already; None: all, and no more are taken

        returns: what became of them, after `limit_s` at the latest
        """
        departure = _Departure(of)
        self._leaving = self._leaving or of is None
        self._departures.append(departure)
        last = Drained(len(self._concerned(departure)), waiting=len(self._concerned(departure)))
        told(last)
        try:
            async with anyio.create_task_group() as tasks:
                with anyio.move_on_after(limit_s):
                    while not last.over:
                        for session, hop in self._concerned(departure).items():
                            if session not in departure.asked:  # one that was just about to open comes later
                                departure.asked.add(session)
                                tasks.start_soon(hop.leave, limit_s)
                        await anyio.sleep(DRAIN_LOOK_S)
                        last = self._standing(departure, last, told)
                        if not waits and self._all_stranded(departure):
                            break
                tasks.cancel_scope.cancel()
        finally:
            self._departures.remove(departure)
        return last

    def _concerned(self, departure: _Departure) -> dict[SessionId, Hop]:
        return {name: hop for name, hop in self._hops.items() if departure.concerns(hop.compute)}

    def _standing(self, departure: _Departure, last: Drained, told: Callable[[Drained], None]) -> Drained:
        here = self._concerned(departure)
        stranded = next((hop.stranded for hop in here.values() if hop.stranded), "")
        now = Drained(len(departure.asked), departure.moved, departure.ended, len(here), stranded)
        if now != last:
            told(now)
        return now

    def _all_stranded(self, departure: _Departure) -> bool:
        return all(hop.stranded for hop in self._concerned(departure).values())

    def end(self, of: Compute) -> None:
        """What is computed there is not computed any more; caches are not held for it either."""
        for scope, compute in tuple(self._scopes.items()):
            if compute is of:
                scope.cancel()

    def stay(self) -> None:
        """Take sessions again."""
        self._leaving = False

    # Streams

    async def _control(self, stream: Stream) -> None:
        await receive_greeting(stream, self._gate)
        request = await prompt_message(stream)
        match request:
            case Hold():
                await self._hold(stream, request)
            case Open():
                try:
                    await self._serve(stream, request)
                finally:  # the end of a stream may take its time, and layers that are let go do not wait for it
                    with anyio.CancelScope(shield=True):
                        await stream.close()
            case other:
                raise MalformedMessage(f"a control stream began with {type(other).__name__}")

    async def _serve(self, stream: Stream, request: Open, room: StandbyRoom | None = None) -> None:
        """Until the driver ends the session, or is gone. room: what stands by to become this hop"""
        opened = await self._open(stream, request, room)
        if opened is None:
            return
        hop, ready = opened
        scope: anyio.CancelScope | None = None
        try:
            async with anyio.create_task_group() as tasks:
                scope = tasks.cancel_scope
                self._scopes[scope] = hop.compute
                tasks.start_soon(hop.connect_downstream)
                tasks.start_soon(hop.end_when_idle, tasks.cancel_scope)
                if hop.prefix is not None:
                    tasks.start_soon(hop.run_prefix)
                if request.kept_as is not None:
                    tasks.start_soon(hop.load_kept, self.receiver.keeper, ready)
                elif request.cache_from is not None:
                    self.receiver.expect(request.session, hop.take_cache)
                elif request.prefill is not None:
                    self.receiver.expect(request.session, hop.take_prefill)
                try:
                    await hop.control_loop(tasks)
                finally:
                    tasks.cancel_scope.cancel()
        except* (StreamBroken, RemoteFault):
            pass  # the driver is gone or talks nonsense: the session ends here
        finally:
            if hop.prefix is not None:
                await hop.prefix.settle()
            self.receiver.expect_no_more(request.session)
            del self._hops[request.session]
            if scope is not None:
                self._scopes.pop(scope, None)
            hop.close()
            for departure in self._departures:
                departure.over(request.session, moved=hop.handed)

    def _check_stays(self) -> None:
        """raises: Refused"""
        if self._leaving:
            raise Refused("this node is about to leave")

    async def _hold(self, stream: Stream, request: Hold) -> None:
        """Keep what a hop sends of its cache, until the driver ends the stream, or makes a hop of this."""
        keeper, name = self.receiver.keeper, request.session
        kind: messages.FailureKind = "not_hosted"
        try:
            self._check_stays()
            compute = self._hosting.find(request.model, request.dtype, request.span)
            kind = "no_room"
            room = StandbyRoom(request, compute, keeper, stream, self._transport, self._gate)
            kept = Kept(stream.peer, request.sender, compute.kv_format(request.span), grew=room.grew)
            self.receiver.keep(name, kept)
        except ShoalError as error:
            await stream.send(messages.encode(failure(kind, error)))
            await stream.close()
            return
        self._rooms[name] = room
        try:
            await stream.send(messages.encode(Opened(name)))
            opened = None
            with anyio.CancelScope() as scope:
                self._scopes[scope] = compute
                try:
                    opened = await room.stand_by()
                finally:
                    del self._scopes[scope]
            if opened is not None:
                await self._serve(stream, opened, room)
        except (Unavailable, Refused, LocalFault):
            return  # the driver is gone, or this node cannot take caches in: the driver sees the stream end
        finally:
            room.close()
            keeper.end(name)
            del self._rooms[name], room, compute  # as above
            self._tell_waiting()
            with anyio.CancelScope(shield=True):
                await stream.close()

    async def _open(self, stream: Stream, request: Open, room: StandbyRoom | None) -> tuple[Hop, int] | None:
        """returns: the hop, and positions that it has in the engine already"""
        ready = 0
        kind: messages.FailureKind = "not_hosted"
        meter: Meter | None = None
        prefix: HopPrefix | HopPrefill | None = None
        try:
            self._check_stays()
            compute = self._hosting.find(request.model, request.dtype, request.span)
            kind = "refused"
            if request.session in self._hops:
                raise Refused("a session of this name is open already")
            if self._metering is not None:
                meter = await self._metering.open(stream.peer, request)
            claim = await self._accounts.claim(stream.peer, request)
            if request.cache_from is not None or request.prefill is not None:
                await compute.prepare_kv(request.span)
            prefix = self._prefix(request, compute)
            kind = "no_room"
            if room is not None and room.compute is compute:
                ready = await room.become(request, claim)
            else:
                await compute.open(
                    request.session, request.span, request.max_tokens, request.sampling, request.history, claim
                )
        except ShoalError as error:
            if isinstance(error, ContextTooLong):
                kind = "too_long"
            elif not isinstance(error, OutOfMemory | Refused):
                kind = "local"
            if meter is not None:
                meter.close()
            if prefix is not None:
                prefix.close()
            await stream.send(messages.encode(failure(kind, error)))
            await stream.close()
            return None
        record = self._records.begin(request, stream.peer) if self._records is not None else None
        hop = Hop(
            request,
            compute,
            stream,
            self._transport,
            self._gate,
            self._keep_bytes,
            meter,
            record,
            self._metering,
            prefix,
            room.prepared if room is not None else None,
        )
        self._hops[request.session] = hop
        self._tell_waiting()
        try:
            if isinstance(prefix, HopPrefix):
                await stream.send(messages.encode(prefix.staged()))
            await stream.send(messages.encode(Opened(request.session)))
        except Unavailable:
            del self._hops[request.session]
            hop.close()
            return None
        return hop, ready

    def _prefix(self, request: Open, compute: Compute) -> HopPrefix | HopPrefill | None:
        """raises: MalformedMessage, RemoteFault"""
        if request.prefill is None or request.cache_from is not None:
            return begun(self._prefixes, request, compute)
        wish, auditing = request.prefill, self._prefixes
        if auditing is None:
            return HopPrefill(request, wish, compute, None, link=self.link)
        coder, share = auditing.coder_of(request.model), auditing.audit_share
        return HopPrefill(request, wish, compute, coder, audit_share=share, draw=auditing.draw, link=self.link)

    async def _push(self, stream: Stream) -> None:
        await receive_greeting(stream, self._gate)
        attach = await prompt_message(stream)
        if not isinstance(attach, Attach):
            raise MalformedMessage(f"a push stream began with {type(attach).__name__}")
        hop = await self._find(attach.session)
        with hop.reading():
            await hop.admit_upstream(stream.peer, early=attach.early)
            await hop.take_all(stream)

    async def _find(self, session: SessionId) -> Hop:
        """The hop of that name, also one that is just being opened, or that a standby is to become. raises: Refused"""
        with anyio.move_on_after(ATTACH_PATIENCE_S) as patience:
            while (hop := self._hops.get(session)) is None:
                if session in self._rooms:
                    patience.deadline = math.inf
                elif patience.deadline == math.inf:
                    break  # the driver has let the standby go
                await self._appeared.wait()
        if hop is None:
            raise Refused("no such session")
        return hop

    def _tell_waiting(self) -> None:
        self._appeared.set()
        self._appeared = anyio.Event()
