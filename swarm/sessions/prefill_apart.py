"""The driver's part in a prompt that is computed apart: a second chain, for the prompt only, that feeds the first one.

Its hops compute as others do, and each sends every hop of the decoding chain the KV of that hop's own layers, chunk by
chunk. The last position is the decoding chain's, which so draws the first token itself. The decoding hops tell how far
they are; the first of them hears how far all others are and skips what everybody has. Whatever goes wrong here ends
here: the decoding chain is told, and computes the rest of the prompt.
"""

import math
from collections.abc import Awaitable, Callable
from dataclasses import replace

import anyio
from anyio.abc import TaskGroup

from shoal.compression.kv_levels import KvLevel
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.manifest import Manifest
from shoal.swarm.members.handshake import Gate
from shoal.swarm.routing.chain_plan import PlannedHop, PrefillPlan
from shoal.swarm.sampling import Sampling
from shoal.swarm.transport import Transport
from shoal.swarm.units import Span, describe, layer_range

from . import session_events as events
from .driver_push import DriverPush
from .feeder import IdFeeder
from .generation import RoutePrefill, TokenRequest
from .held_aside import hop_session
from .hop_link import HopLink, LinkAddress
from .messages import (
    Ahead,
    AnyMessage,
    NoPrefill,
    NoSuccessor,
    Open,
    Output,
    Pay,
    Prefill,
    Probe,
    Reused,
    SendCache,
    Streamed,
    Token,
)
from .metering import Payment
from .work_records import UsedHop, UsedSession

FIRST_KEY = 0xF000  # of the hops of such chains, apart from those of the session's own
HOPS = 64  # keys for each
FEED_POSITIONS = 128  # ids in one feed: small, so that the first KV leaves early
LIFE_S = 15.0  # less than what a hop waits before it gives a silent driver up
TRUSTED_POSITIONS = 256  # of a paid prompt that are paid before their KV has come

Tell = Callable[[events.HopKey, AnyMessage], Awaitable[None]]


class PrefillApart:
    """name: the session's. number: 0 for its first such chain. ids: all so far; plan: over embed and all layers
    tell: a hop of the decoding chain; blame: a peer, for what it did; spoiled: what was taken in is false
    """

    def __init__(
        self,
        name: SessionId,
        number: int,
        plan: PrefillPlan,
        ids: tuple[int, ...],
        request: TokenRequest,
        manifest: Manifest,
        dtype: str,
        transport: Transport,
        gate: Gate,
        payment: Payment | None,
        stamp: bytes,
        *,
        tell: Tell,
        blame: Callable[[PeerId], None],
        spoiled: Callable[[events.HopKey, str], None],
        outliving: TaskGroup,
    ) -> None:
        self.asked = len(ids) - 1
        self.trouble = ""
        self.over = False
        self._ids = ids[: self.asked]
        self._plan = plan
        self._request = replace(request, ids=self._ids, sampling=Sampling(), prefill="never")
        self._manifest = manifest
        self._dtype = dtype
        self._transport = transport
        self._gate = gate
        self._payment = payment
        self._stamp = stamp
        self._tell = tell
        self._blame = blame
        self._spoiled = spoiled
        self._outliving = outliving
        first = FIRST_KEY + HOPS * number
        self._at = [
            LinkAddress(first + n, hop.peer, hop.name, hop.span, hop_session(name, first + n), hop.addresses)
            for n, hop in enumerate(plan.hops)
        ]
        self._links: dict[events.HopKey, HopLink] = {}
        self._opened: set[events.HopKey] = set()
        self._decoding: dict[events.HopKey, LinkAddress] = {}  # the hops of the other chain, last first
        self._came: dict[events.HopKey, int] = {}
        self._ended: set[events.HopKey] = set()  # decoding hops to which no more comes
        self._reused: dict[events.HopKey, int] = {}
        self._computed = 0  # positions, as the last hop of this chain says
        self._events_in, self._events = anyio.create_memory_object_stream[events.Event](math.inf)
        slice_tokens = payment.slice_tokens if payment is not None else None
        self._push = DriverPush(
            transport,
            gate,
            IdFeeder(slice_tokens or FEED_POSITIONS),
            self._ids,
            self._post,
            payment.tick if payment is not None else bytes,
            in_turn=slice_tokens is not None,
        )

    def _post(self, event: events.Event) -> None:
        try:
            self._events_in.send_nowait(event)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return

    @property
    def level(self) -> KvLevel:
        return "default" if self._request.exactness == "fast" and not self._plan.exact else "lossless"

    # The decoding chain

    def wish(self, span: Span) -> Prefill | None:
        """What a decoding hop is told as it opens; None when nobody computes its layers."""
        sender = self._sender(span)
        if sender is None:
            return None
        plan, exact = self._plan, self.level == "lossless"
        return Prefill(sender.peer, self.asked, exact, plan.first_s, plan.chunk_s, plan.own_chunk_s)

    def _sender(self, span: Span) -> PlannedHop | None:
        """Who computes the layers of a decoding hop; anybody for one that has none."""
        mine = layer_range(span, self._manifest.layers)
        for hop in self._plan.hops:
            theirs = layer_range(hop.span, self._manifest.layers)
            if not mine or (theirs.start <= mine.start and mine.stop <= theirs.stop):
                return hop
        return None

    def add(self, at: LinkAddress) -> None:
        """A decoding hop that is being opened."""
        self._decoding[at.key] = at

    def knows(self, key: events.HopKey) -> bool:
        return key in self._decoding

    async def heard(self, key: events.HopKey, said: Streamed | Reused) -> None:
        """From a decoding hop."""
        if isinstance(said, Reused):
            self._reused[key] = self._reused.get(key, 0) + said.fetched
            return
        if said.fault:
            at = self._decoding[key]
            sender = self._sender(at.span)
            if sender is not None:
                self._blame(sender.peer)
            self.trouble = f"what {sender.name if sender else 'it'} sent is false: {said.fault}"
            await self._end(self.trouble)
            self._spoiled(key, f"the prompt was computed falsely for it: {said.fault}")
            return
        is_new = key not in self._came
        self._came[key] = min(said.held, self.asked)
        if said.over:
            self._ended.add(key)
        first = next(reversed(self._decoding))
        if len(self._decoding) > 1 and (key != first or is_new):  # it may have opened after the others spoke
            await self._tell(first, self._ahead(first))
        self._go_on()
        if self._is_complete:
            await self._end("")
        elif said.over and said.held < self.asked:
            await self._end(self.trouble or f"{self._decoding[key].name} got no more than {said.held} positions")

    def _ahead(self, first: events.HopKey) -> Ahead:
        others = [key for key in self._decoding if key != first]
        return Ahead(
            min(self._came.get(key, 0) for key in others),
            any(key in self._ended and self._came[key] < self.asked for key in others),
        )

    @property
    def reached(self) -> int:
        """Positions that have come to all decoding hops."""
        return min((self._came.get(key, 0) for key in self._decoding), default=0)

    @property
    def _is_complete(self) -> bool:
        return self.reached >= self.asked

    # This chain

    async def run(self) -> None:
        """Until it is over; what goes wrong is told in `trouble`."""
        async with anyio.create_task_group() as tasks:
            self._open_all(tasks)
            tasks.start_soon(self._show_life)
            async for event in self._events:
                await self._handle(event, tasks)
                if self.over:
                    break
            tasks.cancel_scope.cancel()

    async def _show_life(self) -> None:
        """A hop that has computed all, and sends over a slow link, hears nothing of its driver otherwise."""
        while True:
            await anyio.sleep(LIFE_S)
            for link in self._links.values():
                await link.tell(Probe(0))

    def _open_all(self, tasks: TaskGroup) -> None:
        for n in reversed(range(len(self._at))):  # downstream first, so that each finds its neighbour
            at, below = self._at[n], self._at[n + 1] if n + 1 < len(self._at) else None
            link = HopLink(at, self._transport, self._gate, self._post, _no_result, self._key_of)
            self._links[at.key] = link
            request = Open(
                session=at.session,
                model=self._request.model,
                dtype=self._dtype,
                span=at.span,
                max_tokens=self.asked,
                upstream=self._at[n - 1].peer if n else self._transport.me,
                downstream=below.peer if below else None,
                downstream_session=below.session if below else None,
                downstream_addresses=below.addresses if below else (),
                sampling=Sampling(),
                history=(),
                stamp=self._stamp,
                for_others=True,
            )
            tasks.start_soon(link.run, request, self._opening(at))

    def _opening(self, at: LinkAddress) -> Callable[[], Awaitable[bytes]] | None:
        payment = self._payment
        if payment is None or not payment.in_advance:
            return None

        async def ask() -> bytes:
            return await payment.opening(at.peer, at.session, at.span)

        return ask

    def _key_of(self, session: SessionId) -> events.HopKey:
        """Of the decoding hop that a cache was to go to."""
        return next((key for key, at in self._decoding.items() if at.session == session), 0)

    async def _handle(self, event: events.Event, tasks: TaskGroup) -> None:
        match event:
            case events.HopOpened(key):
                self._opened.add(key)
                if self._opened == self._links.keys():
                    await self._begin(tasks)
            case events.ProgressCame(key, held) if key == self._at[-1].key:
                self._computed = max(self._computed, min(held, self.asked))
                self._go_on()
            case events.HopLost(key, reason):
                self._blame(self._links[key].at.peer)
                await self._end(f"{self._links[key].at.name} was lost: {reason}")
            case events.HopFailed(key, _, text):
                await self._end(f"{self._links[key].at.name}: {text}")
            case events.CacheFailed(key, to, text):
                name = self._decoding[to].name if to in self._decoding else "nobody"
                await self._end(f"{self._links[key].at.name} could not send to {name}: {text}")
            case events.HopLeaves(key):
                await self._links[key].tell(NoSuccessor("a prompt that is computed for others is not moved"))
            case _:
                pass

    async def _begin(self, tasks: TaskGroup) -> None:
        for to in self._decoding.values():
            layers = layer_range(to.span, self._manifest.layers)
            sender = self._sender(to.span)
            if layers and sender is not None:  # else it was told of none
                link = next(link for link in self._links.values() if link.at.span == sender.span)
                first, stop = max(to.span.start, link.at.span.start), min(to.span.stop, link.at.span.stop)
                send = SendCache(to.peer, to.session, to.addresses, self.level, False, Span(first, stop), self.asked)
                await link.tell(send)
        self._push.connect(self._at[0], 0, tasks)

    def _go_on(self) -> None:
        """Who is paid for each slice gets the next when the last is computed, and shown by what came of it."""
        if self._payment is not None:
            shown = min(self._computed, self.reached + TRUSTED_POSITIONS)
            self._payment.arrived(shown)
            self._push.computed(shown)

    # The end

    async def _end(self, trouble: str) -> None:
        if self.over:
            return
        self.trouble = trouble
        self._finish()
        if trouble:
            for key in self._decoding:
                await self._tell(key, NoPrefill(trouble[:500]))

    def abandon(self) -> None:
        """The decoding chain is gone, or needs no more."""
        if not self.over:
            self._finish()

    def _finish(self) -> None:
        self.over = True
        self._post(events.Ticked())
        for link in self._links.values():
            self._outliving.start_soon(self._let_go, link)

    async def _let_go(self, link: HopLink) -> None:
        payment, word = self._payment, b""
        if payment is not None:
            payment.arrived(self.reached)
            if not payment.in_advance and self.reached:
                opening = await payment.opening(link.at.peer, link.at.session, link.at.span)
                if opening:
                    await link.tell(Pay(opening))
            word = payment.word()
        await link.close(word)

    def route(self) -> RoutePrefill:
        with_layers = [key for key, at in self._decoding.items() if layer_range(at.span, self._manifest.layers)]
        taken = min((self._reused.get(key, 0) for key in with_layers), default=0)
        layers = tuple(describe(at.span, self._manifest.layers) for at in self._at)
        peers, names = tuple(at.peer for at in self._at), tuple(at.name for at in self._at)
        return RoutePrefill(peers, names, layers, taken, self.asked, self.trouble)

    def taken(self, key: events.HopKey) -> int:
        """Positions that a decoding hop did not compute."""
        return self._reused.get(key, 0)

    def used(self) -> UsedSession | None:
        """For audits of those who computed all of it."""
        if not self._is_complete:
            return None
        hops = tuple(UsedHop(at.peer, at.session, at.span, self.asked, 0, stayed=True) for at in self._at)
        return UsedSession(self._request, self._manifest, self._dtype, self._ids, hops)


def _no_result(key: events.HopKey, result: Token | Output) -> None:
    """Nothing is wanted of this chain but its cache."""


def refused(peer: PeerId, asked: int, why: str) -> RoutePrefill:
    """Somebody was named who does not do it."""
    return RoutePrefill((peer,), (peer[-8:],), ("",), 0, asked, why)
