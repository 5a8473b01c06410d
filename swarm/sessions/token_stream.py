"""A running generation: carries out the effects of its `Session` and collects the route."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from dataclasses import replace as with_fields
from functools import partial

import anyio
from anyio.abc import TaskGroup
from msgspec.structs import replace

from shoal.compression.kv_levels import CHUNK_TOKENS, KvLevel
from shoal.swarm.errors import MalformedMessage, ShoalError
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.kv.cache_streams import CacheReceiver
from shoal.swarm.kv.kv_chunks import KvFormat
from shoal.swarm.manifest import Manifest
from shoal.swarm.members.handshake import Gate
from shoal.swarm.prefixes.driver_prefix import DriverPrefix
from shoal.swarm.routing.chain_plan import ChainPlanner, PlannedHop, PrefillPlan
from shoal.swarm.transport import Transport
from shoal.swarm.units import describe, has_head, layer_range

from . import session_events as events
from .compute import Choice
from .driver_push import DriverPush
from .feeder import Feeder
from .generation import Failover, FinishReason, Route, RouteHop, TokenRequest
from .held_aside import HeldAside, hop_session
from .hop_link import HopLink, LinkAddress
from .local_head import LocalHead
from .messages import (
    Adopt,
    AnyMessage,
    NoSuccessor,
    Open,
    Output,
    Pay,
    Prefill,
    Prefix,
    Prepare,
    Probe,
    Reused,
    Rewire,
    SendCache,
    Staged,
    Stay,
    Streamed,
    Tick,
    Timing,
    Token,
)
from .metering import Payment
from .own_fault import own_fault
from .prefill_apart import PrefillApart, refused
from .session import Session
from .work_records import UsedHop, UsedSession

MOST_PREFILLS = 2  # of one session: a chain that is opened whole again has its prompt computed apart again


@dataclass(slots=True)
class _Tally:
    """Of one hop, for the route."""

    tokens: int = 0
    steps: int = 0
    compute_ms: float = 0.0
    queue_ms: float = 0.0


class _Offer:
    """A payment that is asked for while the hop is being reached."""

    def __init__(self, ask: Callable[[], Awaitable[bytes]]) -> None:
        self._ask = ask
        self._there = anyio.Event()
        self._bytes = b""

    async def run(self) -> None:
        self._bytes = await self._ask()
        self._there.set()

    async def wait(self) -> bytes:
        await self._there.wait()
        return self._bytes


class DriverStream:
    """`generation.TokenStream`; `run` does the work in a task of the driver."""

    def __init__(
        self,
        name: SessionId,
        session: Session,
        request: TokenRequest,
        manifest: Manifest,
        transport: Transport,
        gate: Gate,
        planner: ChainPlanner,
        feeder: Feeder,
        head: LocalHead | None,
        clock: Callable[[], float],
        dtype: str | None,
        payment: Payment | None,
        stamp: bytes,
        outliving: TaskGroup,
        receiver: CacheReceiver,
        pay_prefill: Callable[[tuple[int, ...]], Payment | None] = lambda _: None,
    ) -> None:
        """pay_prefill: for a chain that computes these ids only"""
        self._holds = HeldAside(name, transport, gate, receiver, self._post, self._take_result, self._key_of)
        self._outliving = outliving  # streams are closed after the caller has left
        self._payment = payment
        self._stamp = stamp
        self._prefix = DriverPrefix(request) if request.reuses_kv and not request.local_layers else None
        self.route = Route()
        self.finish_reason: FinishReason | None = None
        self._name = name
        self._session = session
        self._request = request
        self._manifest = manifest
        self._transport = transport
        self._gate = gate
        self._planner = planner
        self._head = head
        self._clock = clock
        self._dtype = dtype
        self._began_s = clock()
        self._wished: Prefix | None = None
        self._pay_prefill = pay_prefill
        self._prefill_plan: PrefillPlan | None = None
        self._prefill: PrefillApart | None = None
        self._prefills: list[PrefillApart] = []
        self._links: dict[events.HopKey, HopLink] = {}
        self._tallies: dict[events.HopKey, _Tally] = {}
        self._since: dict[events.HopKey, int] = {}  # the session's length at its opening, 0 in the first chain
        self._took_over: set[events.HopKey] = set()  # hops that begin with another's cache
        self._used: list[UsedHop] = []
        self._planned: dict[tuple[str, int, int], PlannedHop] = {}
        tick = payment.tick if payment else bytes
        in_turn = payment is not None and payment.slice_tokens is not None
        self._push = DriverPush(transport, gate, feeder, session.ids, self._post, tick, in_turn=in_turn)
        self._late: dict[events.HopKey, anyio.Event] = {}  # set when the payment that came late has left
        self._events_in, self._events = anyio.create_memory_object_stream[events.Event](math.inf)
        self._choices_in, self._choices = anyio.create_memory_object_stream[Choice | ShoalError](math.inf)
        self._outputs_in, self._outputs = anyio.create_memory_object_stream[tuple[events.HopKey, Output]](math.inf)

    def let_all_go(self) -> None:
        """The session is over, at every hop and standby."""
        self._push.end()
        if self._prefill is not None:
            self._prefill.abandon()
        for link in self._links.values():
            self.let_go(link)
        for hold in self._holds.end_all():
            self._outliving.start_soon(hold.close)

    def let_go(self, link: HopLink) -> None:
        """End the session at a hop, with the word for what has come."""
        self._outliving.start_soon(self._let_go, link)

    async def _let_go(self, link: HopLink) -> None:
        late = self._late.get(link.at.key)
        if late is not None:
            await late.wait()
        await link.close(self._last_word())

    def _last_word(self) -> bytes:
        if self._payment is None:
            return b""
        return self._payment.word() if self.route.failovers else self._payment.last()

    @property
    def chain(self) -> tuple[PeerId, ...]:
        """The peers that serve this session now, in order."""
        return tuple(hop.peer for hop in self._session.hops)

    @property
    def standbys(self) -> tuple[PeerId | None, ...]:
        """Who keeps what each of them would be replaced with; None: nobody, or this process."""
        return tuple(hop.standby.peer if hop.standby is not None else None for hop in self._session.hops)

    async def __aiter__(self) -> AsyncIterator[Choice]:
        async for item in self._choices:
            if isinstance(item, ShoalError):
                raise item
            yield item

    def _post(self, event: events.Event) -> None:
        try:
            self._events_in.send_nowait(event)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # the session is over

    async def run(self, tasks: TaskGroup) -> None:
        if self._head is not None:
            tasks.start_soon(self._run_head, self._head)
        with self._choices_in, self._events:
            over = await self._carry_out(self._session.start(), tasks)
            while not over:
                event = await self._events.receive()
                self._pay(event)
                over = await self._carry_out(self._session.handle(event, self._clock()), tasks)
                self._keep(event, tasks)

    def finish(self) -> None:
        """The caller has left: complete the route."""
        self.route.prefills += [each.route() for each in self._prefills]
        for link in self._links.values():
            self._note_hop(link, stayed=True)
        self.route.total_s = self._clock() - self._began_s
        if self.finish_reason is None:
            self.finish_reason = "cancelled"

    async def _carry_out(self, effects: Iterator[events.Effect], tasks: TaskGroup) -> bool:
        """returns: whether the session is over"""
        for effect in effects:
            match effect:
                case events.FeedToken(stop):
                    self._push.feed(stop)
                case events.Emit(choice):
                    if self._prefill is not None:
                        self._prefill.abandon()
                    if not self.route.first_token_s:
                        self.route.first_token_s = self._clock() - self._began_s
                    self._choices_in.send_nowait(choice)
                case events.WakeAt(when_s):
                    tasks.start_soon(self._wake_at, when_s)
                case events.SendProbe(key):
                    tasks.start_soon(self._links[key].tell, Probe(key))
                case events.Plan():
                    tasks.start_soon(self._plan, effect)
                case events.OpenHop():
                    self._open_hop(effect, tasks)
                case events.CloseHop(key):
                    self._close_hop(key)
                case events.SeekPeer():
                    tasks.start_soon(self._seek, effect)
                case events.OpenHold():
                    self._open_hold(effect, tasks)
                case events.PrepareLink(source, to_key):
                    await self._prepare_link(source, to_key, tasks)
                case events.PromoteHold():
                    await self._promote(effect, tasks)
                case events.KeepHere(hold, sender):
                    self._keep_here(hold, sender)
                case events.SendSnapshots(key, hold):
                    await self._links[key].tell(self._holds.send_to(hold, self._level))
                case events.SendKept(hold, key, below):
                    tasks.start_soon(self._holds.send_kept, hold, self._links[key].at, below)
                case events.HandOver(key, successor):
                    to = self._links[successor].at
                    handover = SendCache(to.peer, to.session, to.addresses, self._level, hands_over=True)
                    await self._links[key].tell(handover)
                case events.KeepOn(key):
                    if key in self._links:
                        await self._links[key].tell(Stay())
                case events.TellStranded(key, reason):
                    await self._links[key].tell(NoSuccessor(reason[:500]))
                case events.AdoptUpstream(key, upstream):
                    await self._links[key].tell(Adopt(upstream or self._transport.me))
                case events.RewireHop(key, downstream, start):
                    to = self._links[downstream].at
                    await self._links[key].tell(Rewire(to.peer, to.session, to.addresses, start))
                    self._tell_all_again(tasks)
                case events.ConnectFirst(key, start):
                    await self._tell_skippable()
                    self._push.connect(self._links[key].at, start, tasks)
                    self._tell_all_again(tasks)
                case events.Repaired():
                    self._note_repair(effect)
                case events.Finished(reason):
                    self.finish_reason = reason
                    return True
                case events.Broke(error):
                    self._choices_in.send_nowait(error)
                    return True
        return False

    # Payment

    def _pay(self, event: events.Event) -> None:
        """What the last hop shows is due; the word goes with what is fed next."""
        payment = self._payment
        if payment is None:
            return
        match event:
            case events.TokenCame(position):
                payment.arrived(position)
                self._push.computed(position)
                if not payment.in_advance:
                    self._pay_hops_late(payment)
            case events.ProgressCame(key, held) if self._is_last(key):
                payment.arrived(held)
                self._push.computed(held)
            case _:
                pass

    def _pay_hops_late(self, payment: Payment) -> None:
        for hop in self._session.hops:
            if hop.key in self._links and hop.key not in self._late:
                self._late[hop.key] = anyio.Event()
                self._outliving.start_soon(self._pay_late, payment, self._links[hop.key], self._late[hop.key])

    @staticmethod
    async def _pay_late(payment: Payment, link: HopLink, left: anyio.Event) -> None:
        opening = await payment.opening(link.at.peer, link.at.session, link.at.span)
        if opening:
            await link.tell(Pay(opening))
        left.set()

    def _is_last(self, key: events.HopKey) -> bool:
        last = self._session.hops[-1] if self._session.hops else None
        return last is not None and last.key == key and last.span.stop == self._session.span.stop

    def _tell_all(self, word: bytes, tasks: TaskGroup) -> None:
        if word:
            for link in self._links.values():
                tasks.start_soon(link.tell, Tick(word))

    def _tell_all_again(self, tasks: TaskGroup) -> None:
        """A word may have been lost with a hop."""
        if self._payment is not None:
            self._tell_all(self._payment.word(), tasks)

    # Effects

    @property
    def _level(self) -> KvLevel:
        return "default" if self._request.exactness == "fast" else "lossless"

    async def _wake_at(self, when_s: float) -> None:
        await anyio.sleep(max(0.0, when_s - self._clock()))
        self._post(events.Ticked())

    async def _plan(self, effect: events.Plan) -> None:
        try:
            await anyio.sleep(effect.after_s)
            sliced = self._payment.slice_tokens if self._payment is not None else None
            plan = await self._planner.plan(self._request, with_fields(effect, slice_tokens=sliced), self._dtype)
        except ShoalError as error:
            self._post(events.PlanFailed(effect.number, await own_fault(self._transport, self._gate) or error))
            return
        self._dtype = plan.dtype
        self._prefill_plan = plan.prefill
        if plan.no_prefill and self._request.prefiller is not None and not self.route.prefills:
            asked = len(self._session.ids) - 1
            self.route.prefills.append(refused(self._request.prefiller, asked, plan.no_prefill))
        for hop in plan.hops:
            self._planned[hop.peer, hop.span.start, hop.span.stop] = hop
        self._post(events.Planned(effect.number, tuple((hop.peer, hop.span) for hop in plan.hops)))

    async def _seek(self, effect: events.SeekPeer) -> None:
        """One peer for all of the span, chosen as a chain of one hop."""
        wanted = events.Plan(0, effect.span, effect.exclude, effect.before, effect.after, 1, 0.0)
        try:
            await anyio.sleep(effect.after_s)
            plan = await self._planner.plan(self._request, wanted, self._dtype)
        except ShoalError as error:
            self._post(events.PeerSought(effect.hop, None, str(error)))
            return
        (hop,) = plan.hops
        self._planned[hop.peer, hop.span.start, hop.span.stop] = hop
        self._post(events.PeerSought(effect.hop, hop.peer))

    def _open_hold(self, effect: events.OpenHold, tasks: TaskGroup) -> None:
        planned = self._planned[effect.peer, effect.span.start, effect.span.stop]
        sender = self._links[effect.sender].at.peer
        link, request = self._holds.open(
            effect.hold, planned, effect.span, self._request.model, self._dtype or "", sender, self._max_tokens
        )
        tasks.start_soon(link.run, request, None)

    @property
    def _max_tokens(self) -> int:
        return len(self._request.ids) + self._request.max_new_tokens

    async def _prepare_link(self, source: events.HopKey | None, to_key: events.HopKey, tasks: TaskGroup) -> None:
        to = self._links.get(to_key) or self._holds.link(to_key)
        if to is None:
            return
        if source is None:
            self._push.prepare(to.at, tasks)
            return
        link = self._links.get(source) or self._holds.link(source)
        if link is not None:
            await link.tell(Prepare(to.at.peer, to.at.session, to.at.addresses))

    async def _promote(self, effect: events.PromoteHold, tasks: TaskGroup) -> None:
        link = self._holds.promote(effect.hold)
        me, name = effect.peer, link.at.session
        request = self._request_for(link.at, effect.upstream, effect.downstream)
        request = replace(request, cache_from=me, kept_as=name, cache_below=effect.below)
        self._took_over.add(effect.hold)
        self._note_link(link)
        await link.promote(request, self._opening(link.at, tasks))  # before anything else is said to it

    def _note_link(self, link: HopLink) -> None:
        key = link.at.key
        self._links[key] = link
        self._tallies[key] = _Tally()
        self._since[key] = len(self._session.ids) if self._used else 0

    def _opening(self, at: LinkAddress, tasks: TaskGroup) -> Callable[[], Awaitable[bytes]] | None:
        """What gives the payment that goes with the opening of a hop."""
        if self._payment is None or not self._payment.in_advance:
            return None
        offer = _Offer(partial(self._payment.opening, at.peer, at.session, at.span))
        tasks.start_soon(offer.run)
        return offer.wait

    def _request_for(self, at: LinkAddress, upstream: PeerId | None, downstream: events.HopKey | None) -> Open:
        below = self._links[downstream].at if downstream is not None else None
        sampling = self._request.sampling
        with_history = sampling.needs_history and has_head(at.span, self._manifest.layers)
        return Open(
            session=at.session,
            model=self._request.model,
            dtype=self._dtype or "",
            span=at.span,
            max_tokens=self._max_tokens,
            upstream=upstream or self._transport.me,
            downstream=below.peer if below else None,
            downstream_session=below.session if below else None,
            downstream_addresses=below.addresses if below else (),
            sampling=sampling,
            history=tuple(self._session.ids) if with_history else (),
            stamp=self._stamp,
        )

    def _keep_here(self, hold: events.HopKey, sender: events.HopKey) -> None:
        at = self._links[sender].at
        layers = layer_range(at.span, self._manifest.layers)
        # Any profile will do: the bytes are not read here.
        kind = KvFormat(self._request.model, self._dtype or "", (layers.start, layers.stop))
        self._holds.keep_here(hold, at.peer, kind)

    def _open_hop(self, effect: events.OpenHop, tasks: TaskGroup) -> None:
        planned = self._planned[effect.peer, effect.span.start, effect.span.stop]
        at = LinkAddress(
            effect.hop,
            effect.peer,
            planned.name,
            effect.span,
            hop_session(self._name, effect.hop),
            planned.addresses,
        )
        request = self._request_for(at, effect.upstream, effect.downstream)
        request = replace(request, prefix=self._wish(effect), prefill=self._wish_prefill(effect, at))
        if effect.restore is not None:
            request = replace(request, cache_from=self._holds.source(effect.restore))
            self._took_over.add(effect.hop)
        link = HopLink(at, self._transport, self._gate, self._post, self._take_result, self._key_of, self._take_prefix)
        self._note_link(link)
        tasks.start_soon(link.run, request, self._opening(at, tasks))
        if self._prefill is not None and self._prefill.knows(effect.hop) and effect.upstream is None:
            tasks.start_soon(self._prefill.run)  # this was the last of the chain to be opened

    def _close_hop(self, key: events.HopKey) -> None:
        hold = self._holds.end(key)
        if hold is not None:
            self._outliving.start_soon(hold.close)
        if self._prefill is not None and self._prefill.knows(key):
            self._prefill.abandon()
        link = self._links.pop(key, None)
        if link is not None:
            self._note_hop(link, stayed=self._session.phase == "over")
            self.let_go(link)

    # Prefix

    def _wish(self, effect: events.OpenHop) -> Prefix | None:
        """Only for a chain that is opened whole: a replacement is replayed everything."""
        if self._prefix is None or self._session.hops:
            return None
        if effect.downstream is None:  # the last hop, which is opened first
            self._wished = self._prefix.wish(self._session.ids, self._dtype or "")
        return self._wished

    def _wish_prefill(self, effect: events.OpenHop, at: LinkAddress) -> Prefill | None:
        """As with a prefix. Who computes it is opened when the whole chain is on its way."""
        if self._session.hops or effect.restore is not None:
            return None
        if effect.downstream is None:  # the last hop, which is opened first
            self._prefill = self._new_prefill()
        if self._prefill is None:
            return None
        self._prefill.add(at)
        return self._prefill.wish(effect.span)

    def _new_prefill(self) -> PrefillApart | None:
        plan, ids = self._prefill_plan, tuple(self._session.ids)
        if plan is None or len(self._prefills) >= MOST_PREFILLS or len(ids) <= CHUNK_TOKENS:
            return None
        made = PrefillApart(
            self._name,
            len(self._prefills),
            plan,
            ids,
            self._request,
            self._manifest,
            self._dtype or "",
            self._transport,
            self._gate,
            self._pay_prefill(ids[:-1]),
            self._stamp,
            tell=self._tell_hop,
            blame=self._planner.blame,
            spoiled=lambda key, text: self._post(events.HopFailed(key, "cannot_replay", text)),
            outliving=self._outliving,
        )
        self._prefills.append(made)
        return made

    async def _tell_hop(self, key: events.HopKey, message: AnyMessage) -> None:
        if key in self._links:
            await self._links[key].tell(message)

    def _take_prefix(self, key: events.HopKey, said: Staged | Reused | Streamed) -> None:
        if self._prefill is not None and self._prefill.knows(key) and not isinstance(said, Staged):
            self._outliving.start_soon(self._prefill.heard, key, said)
            return
        if isinstance(said, Streamed):
            return  # of a chain that is gone
        if self._prefix is None:
            return
        if isinstance(said, Reused):
            self._prefix.note(key, said)
            return
        try:
            told = self._prefix.staged(key, said, [hop.key for hop in self._session.hops])
        except MalformedMessage as error:
            self._post(events.HopFailed(key, "bad_input", str(error)))
            return
        if told is not None and told[0] in self._links:
            self._outliving.start_soon(self._links[told[0]].tell, told[1])

    async def _tell_skippable(self) -> None:
        hops = [hop.key for hop in self._session.hops]
        if self._prefix is not None and len(hops) > 1:
            await self._links[hops[0]].tell(self._prefix.skippable(hops))

    def _keep(self, event: events.Event, tasks: TaskGroup) -> None:
        if self._prefix is None or not isinstance(event, events.TokenCame):
            return
        told = self._prefix.keep(self._session.ids)
        if told is not None:
            for link in self._links.values():
                tasks.start_soon(link.tell, told)

    def _key_of(self, name: SessionId) -> events.HopKey:
        """Of a hop or a hold, by the name that it has at its peer; 0 for none."""
        suffix = name.removeprefix(self._name)
        known = {*self._links, *self._holds.keys()}
        return next((key for key in known if suffix == f"{key:04x}"), 0)

    def _note_repair(self, effect: events.Repaired) -> None:
        if not effect.planned:
            self._planner.blame(effect.peer)
        self.route.failovers.append(
            Failover(
                effect.peer,
                describe(effect.span, self._manifest.layers),
                effect.reason,
                effect.pause_s,
                effect.replaced_by,
                effect.loaded,
                effect.planned,
            )
        )

    # Results

    def _take_result(self, key: events.HopKey, result: Token | Output) -> None:
        """Check what the last hop says before the session believes it."""
        if not self._is_last(key):
            fault: str | None = "a result from a hop that is not the last"
        elif isinstance(result, Output):
            fault = None if self._head is not None else "hidden states for a driver without a head"
        elif not 0 <= result.id < self._manifest.vocabulary:
            fault = f"token {result.id} lies outside the vocabulary"
        else:
            fault = None if math.isfinite(result.logprob) else "the log-probability is not finite"
        if fault is not None:
            if key in self._links:
                self._post(events.HopFailed(key, "bad_input", fault))
            return
        self._count(result.trace)
        match result:
            case Token(position, token, logprob, top):
                self._post(events.TokenCame(position, Choice(token, logprob, top)))
            case Output():
                if self._payment is not None and not result.wants_token:
                    self._post(events.ProgressCame(key, result.start + result.count))
                self._outputs_in.send_nowait((key, result))

    async def _run_head(self, head: LocalHead) -> None:
        async for key, output in self._outputs:
            try:
                choice = await head.take(output)
            except ShoalError as error:
                self._post(events.HopFailed(key, "bad_input", str(error)))
                continue
            if choice is not None:
                self._post(events.TokenCame(output.start + output.count, choice))

    def _count(self, trace: tuple[Timing, ...]) -> None:
        for hop, timing in zip(self._session.hops, trace, strict=False):
            tally = self._tallies[hop.key]
            tally.steps += 1
            tally.compute_ms += timing.compute_ms
            tally.queue_ms += timing.queue_ms

    def used(self) -> UsedSession:
        """After `finish`: whom this session went through."""
        return UsedSession(
            self._request, self._manifest, self._dtype or "", tuple(self._session.ids), tuple(self._used)
        )

    def used_apart(self) -> list[UsedSession]:
        """After `finish`: those that computed the prompt for this session."""
        return [used for each in self._prefills if (used := each.used()) is not None]

    def _note_use(self, link: HopLink, *, stayed: bool) -> None:
        """One token may be on its way past a hop that is opened in another's place, so the second one counts. A hop
        that took a cache over has not computed all that an audit would have it show."""
        since, length = self._since[link.at.key], len(self._session.ids)
        came = length - (since or len(self._request.ids))
        key = link.at.key
        from_elsewhere = key in self._took_over or self._reused(key) != (0, 0)
        shown = length - 1 if came >= (2 if since else 1) and not from_elsewhere else 0
        self._used.append(UsedHop(link.at.peer, link.at.session, link.at.span, shown, since, stayed))

    def _reused(self, key: events.HopKey) -> tuple[int, int]:
        """Positions that a hop did not compute: what lay there, what came from others."""
        stored, fetched = self._prefix.reused.get(key, (0, 0)) if self._prefix is not None else (0, 0)
        return stored, fetched + sum(each.taken(key) for each in self._prefills)

    def _note_hop(self, link: HopLink, *, stayed: bool) -> None:
        self._note_use(link, stayed=stayed)
        tally = self._tallies.pop(link.at.key)
        if not tally.steps:
            return
        self.route.hops.append(
            RouteHop(
                link.at.peer,
                link.at.name,
                describe(link.at.span, self._manifest.layers),
                tally.steps,
                tally.compute_ms / tally.steps,
                tally.queue_ms / tally.steps,
                *self._reused(link.at.key),
            )
        )
