"""One generation, as a machine that does no I/O and reads no clock: the chain, its failures, its repair.

The failover ladder of DESIGN 6: a lost hop is replaced by its standby, which has a snapshot of its cache
(`session_standby`), and its upstream neighbour replays its kept outputs from there on (the driver, when the first hop
is lost); with no standby another holder replaces it and gets all outputs; when that cannot be, the whole chain is
opened anew and the driver feeds all tokens again. Peers that failed are excluded for the rest of the session; the
number of failures is bounded. A hop that leaves of its own accord is replaced while it works (`session_move`).

Events go in through `handle` with the time they happened; effects come out in the order in which the shell carries them
out.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, assert_never

from shoal.compression.kv_levels import CHUNK_TOKENS
from shoal.swarm.errors import (
    DaemonDied,
    ModelNotServable,
    Refused,
    ShoalError,
    Unavailable,
)
from shoal.swarm.identifiers import PeerId
from shoal.swarm.units import Span

from .compute import Choice
from .generation import Exactness
from .session_events import (
    AdoptUpstream,
    Broke,
    CacheCame,
    CacheFailed,
    CacheKept,
    CloseHop,
    ConnectFirst,
    Effect,
    Emit,
    Event,
    FeedToken,
    Finished,
    HopFailed,
    HopHanded,
    HopKey,
    HopLeaves,
    HopLost,
    HopOpened,
    OpenHop,
    PeerSought,
    Plan,
    PlanFailed,
    Planned,
    PrepareLink,
    ProgressCame,
    PromoteHold,
    Restore,
    RewireHop,
    SendKept,
    TellStranded,
    Ticked,
    TokenCame,
)
from .session_hop import Hop, Patience, Standby
from .session_move import Move, neighbours
from .session_repairs import Repairs
from .session_standby import Standbys
from .session_watch import Watch

Phase = Literal["planning", "opening", "running", "over"]


@dataclass(slots=True)
class Session:
    """prompt: ids. span: what the chain must cover. max_new: tokens to generate at most. stop_ids: end-of-text ids."""

    prompt: tuple[int, ...]
    span: Span
    max_new: int
    stop_ids: frozenset[int]
    exclude: frozenset[PeerId]
    patience: Patience
    max_hops: int
    exactness: Exactness = "replay"
    keep_snapshots: bool = False
    ids: list[int] = field(default_factory=list)
    hops: list[Hop] = field(default_factory=list)
    phase: Phase = "planning"
    _keys: Iterator[HopKey] = field(default_factory=lambda: itertools.count(1))
    _plan_number: int = 0
    _gap: int | None = None  # index in `hops` where a replacement goes; None: the whole chain is being opened
    _gap_span: Span | None = None
    _pending: list[Hop] = field(default_factory=list)  # replacements on their way
    _repairs: Repairs = field(default_factory=Repairs)
    _plan_tries: int = 0
    _watch: Watch = field(init=False)
    _standbys: Standbys = field(init=False)
    _loading: Standby | None = None  # the replacement begins with what is kept there
    _move: Move | None = None

    def __post_init__(self) -> None:
        self._standbys = Standbys(self.exactness, self.keep_snapshots, self.patience)
        self._watch = Watch(self.patience)

    def start(self) -> Iterator[Effect]:
        self.ids[:] = self.prompt
        yield from self._plan_all()

    def handle(self, event: Event, now: float) -> Iterator[Effect]:
        if self.phase == "over":
            return
        match event:
            case Planned(number, hops):
                if number == self._plan_number and self.phase == "planning":
                    yield from self._on_planned(hops, now)
            case PlanFailed(number, error):
                if number == self._plan_number and self.phase == "planning":
                    yield from self._on_plan_failed(error)
            case HopOpened(key):
                yield from self._on_opened(key, now)
            case HopFailed(key, kind, text):
                if self._is_aside(key):
                    yield from self._lose_aside(key, f"{kind}: {text}")
                else:
                    yield from self._on_failed(event, now)
            case HopLost(key, reason, ours):
                hop = self._hop(key)
                if self._is_aside(key):
                    yield from self._lose_aside(key, reason)
                elif hop and ours:
                    yield from self._break(DaemonDied(reason))
                elif hop:
                    yield from self._lose(hop, reason, now)
            case PeerSought(key, peer, reason):
                yield from self._on_sought(key, peer, reason, now)
            case CacheKept(key, held):
                self._standbys.kept(self.hops, key, held)
            case CacheCame(key, held):
                most = self._most_restored(key)
                if 0 <= held <= most:
                    yield from self._on_cache(key, held, now)
                else:
                    text = f"says that it holds {held} positions of a cache that has {most} for it"
                    yield from self.handle(HopLost(key, text), now)
            case CacheFailed(key, to, reason):
                yield from self._on_cache_failed(key, to, reason, now)
            case HopLeaves(key, within_s):
                hop = self._hop(key)
                if hop:
                    hop.leaving, hop.hurried = True, within_s < self.patience.hurried_s
                elif self._is_aside(key):
                    yield from self._lose_aside(key, "it leaves too")
                yield from self._tend(now)
            case HopHanded(key):
                if self._move and self._move.leaver.key == key:
                    self._move.handed_at_s = now
                    yield from self._complete_move(now)
            case TokenCame(position, choice):
                yield from self._on_token(position, choice, now)
            case ProgressCame(key, held):
                yield from self._on_progress(key, held, now)
            case Ticked():
                yield from self._on_tick(now)
            case _:
                assert_never(event)

    # Planning and opening

    def _plan_all(self) -> Iterator[Effect]:
        yield from self._end_hops()
        self.hops, self._pending, self._gap = [], [], None
        yield from self._plan(self.span, 0.0)

    def _plan(self, span: Span, after_s: float) -> Iterator[Effect]:
        self.phase = "planning"
        self._gap_span = span
        self._plan_number += 1
        before, after = self._neighbours()
        yield Plan(
            self._plan_number,
            span,
            self.exclude,
            before.peer if before else None,
            after.peer if after else None,
            self.max_hops - len(self.hops),
            after_s,
            self._gap is None,
        )

    def _neighbours(self) -> tuple[Hop | None, Hop | None]:
        """The hops before and after the gap; None stands for the driver."""
        if self._gap is None:
            return None, None
        before = self.hops[self._gap - 1] if self._gap else None
        return before, self.hops[self._gap] if self._gap < len(self.hops) else None

    def _on_plan_failed(self, error: ShoalError) -> Iterator[Effect]:
        assert self._gap_span is not None
        if isinstance(error, DaemonDied | Refused):  # the reason lies with us
            yield from self._break(error)
            return
        self._plan_tries += 1
        worth_retrying = isinstance(error, ModelNotServable | Unavailable) and self._repairs.failures > 0
        if worth_retrying and self._plan_tries < self.patience.plan_tries:
            yield from self._plan(self._gap_span, self.patience.plan_retry_s)
            return
        yield from self._break(self._repairs.explained(error))

    def _on_planned(self, chain: tuple[tuple[PeerId, Span], ...], now: float) -> Iterator[Effect]:
        self.phase = "opening"
        self._plan_tries = 0
        fresh = [Hop(next(self._keys), peer, span) for peer, span in chain]
        self._pending = fresh
        before, after = self._neighbours()
        kept = self._loading
        if kept is not None and len(fresh) == 1 and self._loadable() >= CHUNK_TOKENS:
            fresh[0].restoring = True
        for index in reversed(range(len(fresh))):  # downstream first, so that each finds its neighbour
            hop = fresh[index]
            upstream = fresh[index - 1].peer if index else (before.peer if before else None)
            below = fresh[index + 1] if index + 1 < len(fresh) else after
            restore = None
            if kept is not None and hop.restoring:
                restore = Restore(None)
            yield OpenHop(hop.key, hop.peer, hop.span, upstream, below.key if below else None, restore)
        if self._gap is not None:
            yield PrepareLink(before.key if before else None, fresh[0].key)  # while it opens
        self._watch.deadline_s = now + self.patience.open_s
        yield from self._watch.wake(self._watch.deadline_s)

    def _loadable(self) -> int:
        """A replacement may begin with the positions below this, and no more: who stands behind it has those, and the
        last one is computed again for the token that it gives."""
        behind = [hop.held for hop in self.hops[self._gap :]] if self._gap is not None else []
        return min([len(self.ids) - 1, *behind])

    def _most_restored(self, key: HopKey) -> int:
        """Positions that a hop which was to take in a cache can have. Beyond that the chain would have a gap."""
        promoted = next((hop for hop in self.hops if hop.key == key and hop.restoring), None)
        if promoted is not None:
            return promoted.most
        is_replacement = any(hop.key == key and hop.restoring for hop in self._pending)
        return self._loadable() if is_replacement else len(self.ids)

    def _on_opened(self, key: HopKey, now: float) -> Iterator[Effect]:
        if self._standbys.is_standby(self.hops, key):
            yield from self._standbys.opened(self.hops, key)
            return
        if self._move and self._move.successor and self._move.successor.key == key:
            yield from self._move.opened()
            return
        for hop in self._pending:
            if hop.key == key:
                hop.opened = True
                if hop.restoring:
                    self._watch.deadline_s = now + self.patience.step_s
                if hop.restoring and self._loading:
                    yield SendKept(self._loading.key, key, self._loadable())
        yield from self._complete_opening(now)

    def _complete_opening(self, now: float) -> Iterator[Effect]:
        if self.phase != "opening" or not all(hop.opened and not hop.restoring for hop in self._pending):
            return
        if self._loading is not None:
            yield CloseHop(self._loading.key)
            self._loading = None
        at = self._gap if self._gap is not None else 0
        fresh, self._pending = self._pending, []
        self.hops[at:at] = fresh
        after = self.hops[at + len(fresh)] if at + len(fresh) < len(self.hops) else None
        if after:
            yield AdoptUpstream(after.key, fresh[-1].peer)
        if at == 0:
            yield ConnectFirst(fresh[0].key, fresh[0].loaded)
        else:
            yield RewireHop(self.hops[at - 1].key, fresh[0].key, fresh[0].loaded)
        self._gap = self._gap_span = None
        self.phase = "running"
        yield from self._go_on(now)

    def _go_on(self, now: float) -> Iterator[Effect]:
        """The chain is whole again."""
        yield from self._standbys.connect(self.hops)
        for hop in self.hops:
            hop.unanswered_since_s = None
        yield from self._watch.await_step(now, filling=True)

    # Losing a hop

    def _hop(self, key: HopKey) -> Hop | None:
        return next((hop for hop in (*self.hops, *self._pending) if hop.key == key), None)

    def _on_failed(self, event: HopFailed, now: float) -> Iterator[Effect]:
        hop = self._hop(event.hop)
        if hop is None:
            return
        if not hop.opened:
            self._repairs.refused(event)
        if event.kind == "cannot_replay":
            self._repairs.failures += 1
            if self._repairs.failures > self.patience.failures:
                yield from self._give_up(event.text)
            else:
                yield from self._plan_all()
            return
        blamed = next((h for h in (*self.hops, *self._pending) if h.peer == event.culprit), None)
        if event.culprit is not None and blamed is None:
            return  # the peer it blames has left the chain already
        yield from self._lose(blamed or hop, f"{event.kind}: {event.text}", now)

    def _lose(self, hop: Hop, reason: str, now: float) -> Iterator[Effect]:
        self.exclude |= {hop.peer}
        self._repairs.lost(hop, reason, self._watch.waiting_since_s or now)
        yield CloseHop(hop.key)
        yield from self._end_move()
        if self._repairs.failures > self.patience.failures:
            yield from self._give_up(reason)
            return
        if self.phase == "running" and hop in self.hops:
            self._gap = self.hops.index(hop)
            self.hops.remove(hop)
            yield from self._replace(hop, now)
            return
        if hop in self._pending and self._loading is not None and self._gap_span is not None:
            for other in self._pending:
                if other is not hop:
                    yield CloseHop(other.key)
            self._pending.clear()
            yield CloseHop(self._loading.key)
            self._loading = None
            yield from self._plan(self._gap_span, 0.0)  # without the snapshot
            return
        yield from self._standbys.end(hop)
        if hop in self._pending:
            self._pending.remove(hop)
        elif hop in self.hops:
            self.hops.remove(hop)
        yield from self._plan_all()

    def _replace(self, hop: Hop, now: float) -> Iterator[Effect]:
        """By its standby; with none, by whom the planner names."""
        standby, hop.standby = hop.standby, None
        if standby is not None and (not standby.holding or standby.peer in self.exclude):
            yield CloseHop(standby.key)
            standby = None
        if standby is not None and standby.peer is not None:
            yield from self._promote(standby, standby.peer, hop.span, now)
            return
        self._loading = standby
        yield from self._plan(hop.span, 0.0)

    def _promote(self, standby: Standby, peer: PeerId, span: Span, now: float) -> Iterator[Effect]:
        """All that is needed is said at once: to the standby, and to those before and behind it."""
        assert self._gap is not None
        below = self._loadable()
        before, after = self._neighbours()
        held = min(standby.held, below) // CHUNK_TOKENS * CHUNK_TOKENS  # it may have more, and is sent that for nothing
        hop = Hop(standby.key, peer, span, opened=True, restoring=True, most=below, loaded=held, held=held)
        upstream = before.peer if before else None
        yield PromoteHold(hop.key, peer, span, upstream, after.key if after else None, below)
        self.hops.insert(self._gap, hop)
        self._gap = self._gap_span = None
        if after is not None:
            yield AdoptUpstream(after.key, peer)
        yield self._feeding(hop)
        yield from self._go_on(now)

    def _feeding(self, hop: Hop) -> Effect:
        """Have a hop sent what it lacks, by whoever stands before it."""
        at = self.hops.index(hop)
        return RewireHop(self.hops[at - 1].key, hop.key, hop.loaded) if at else ConnectFirst(hop.key, hop.loaded)

    def _give_up(self, reason: str) -> Iterator[Effect]:
        yield from self._break(Unavailable(f"gave up after {self._repairs.failures} failures; the last: {reason}"))

    def _break(self, error: ShoalError) -> Iterator[Effect]:
        yield from self._close_all()
        yield Broke(error)

    def _close_all(self) -> Iterator[Effect]:
        self.phase = "over"
        yield from self._end_hops()

    def _end_hops(self) -> Iterator[Effect]:
        yield from self._end_move()
        for hop in (*self.hops, *self._pending):
            yield CloseHop(hop.key)
            yield from self._standbys.end(hop)
        if self._loading is not None:
            yield CloseHop(self._loading.key)
            self._loading = None

    # Standbys and successors

    def _is_aside(self, key: HopKey) -> bool:
        """Whether it is that of a standby or of a successor, without which the chain goes on."""
        successor = self._move.successor if self._move else None
        return self._standbys.is_standby(self.hops, key) or (successor is not None and successor.key == key)

    def _lose_aside(self, key: HopKey, reason: str) -> Iterator[Effect]:
        move = self._move
        if move is None or move.successor is None or move.successor.key != key:
            yield from self._standbys.lost(self.hops, key)
            return
        self.exclude |= {move.successor.peer}
        yield from self._fail_move(reason)

    def _fail_move(self, reason: str) -> Iterator[Effect]:
        """The successor is gone, or of no use."""
        move = self._move
        assert move is not None
        yield from move.failed()
        if move.may_try_again:
            yield from move.seek(self.hops, self.exclude)
        else:
            yield from move.stranded(reason)
            self._move = None

    def _end_move(self) -> Iterator[Effect]:
        if self._move is not None:
            yield from self._move.failed()
            self._move = None

    def _tend(self, now: float) -> Iterator[Effect]:
        """While all is well: look for successors of those that leave, and for the standbys that are missing."""
        if self.phase != "running":
            return
        if self._move is None:
            for hop in self.hops:
                if hop.leaving and not hop.stranded:
                    self._move = Move(hop, self.patience, now)
                    yield from self._move_to_standby(self._move, now)
                    break
        yield from self._standbys.tend(self.hops, len(self.ids), self.exclude, now, self._keys)

    def _move_to_standby(self, move: Move, now: float) -> Iterator[Effect]:
        """Who was ready to take over is the first choice."""
        standby = move.leaver.standby
        if standby is not None and standby.peer is not None and standby.peer not in {hop.peer for hop in self.hops}:
            move.tries += 1
            yield from move.found(standby.peer, self.hops, next(self._keys), now)
        else:
            yield from move.seek(self.hops, self.exclude)

    def _on_sought(self, key: HopKey, peer: PeerId | None, reason: str, now: float) -> Iterator[Effect]:
        hop = self._hop(key)
        move = self._move
        if move is not None and move.leaver is hop and move.seeking:
            if peer is not None:
                yield from move.found(peer, self.hops, next(self._keys), now)
            elif move.may_try_again:
                yield TellStranded(key, reason)  # so far
                yield from move.seek(self.hops, self.exclude, self.patience.successor_retry_s)
            else:
                yield from move.stranded(reason)
                self._move = None
        elif hop is not None and hop.seeking:
            yield from self._standbys.found(hop, peer, now, self._keys)

    def _on_cache(self, key: HopKey, held: int, now: float) -> Iterator[Effect]:
        successor = self._move.successor if self._move else None
        if self._move is not None and successor is not None and successor.key == key:
            self._move.restored = held
            yield from self._complete_move(now)
            return
        for hop in self.hops:
            if hop.key == key and hop.restoring:
                yield from self._begin_promoted(hop, held)
                return
        for hop in self._pending:
            if hop.key == key and hop.restoring:
                hop.restoring = False
                hop.held = hop.loaded = held
        yield from self._complete_opening(now)

    def _begin_promoted(self, hop: Hop, held: int) -> Iterator[Effect]:
        """A standby has become a hop, and has as much as it said, or less: then it is sent more."""
        lacks = held < hop.loaded
        hop.restoring = False
        hop.held = hop.loaded = held
        if not lacks:
            return
        if self._gap is not None and self._gap == self.hops.index(hop):
            yield from self._plan_all()  # who is to come before it may begin too late to send that
        else:
            yield self._feeding(hop)

    def _on_cache_failed(self, key: HopKey, to: HopKey, reason: str, now: float) -> Iterator[Effect]:
        """What a standby has got so far stays useful, and with nothing a replacement begins at position 0."""
        move = self._move
        if move is not None and move.successor is not None and move.successor.key in {key, to}:
            leaver = move.leaver
            yield from move.failed()
            self._move = None
            yield from self._lose(leaver, f"leaves, and its cache cannot be moved: {reason}", now)
            return
        for hop in self._pending:
            if hop.key == key and hop.restoring and self._loading is not None:
                yield from self._lose(hop, f"cannot use the snapshot: {reason}", now)
                return

    def _complete_move(self, now: float) -> Iterator[Effect]:
        move = self._move
        if move is None or not move.is_complete or move.successor is None:
            return
        assert move.restored is not None
        successor, leaver = move.successor, move.leaver
        successor.restoring = False
        successor.held = successor.loaded = move.restored
        _, after = neighbours(self.hops, leaver)
        self.hops[self.hops.index(leaver)] = successor
        if after is not None:
            yield AdoptUpstream(after.key, successor.peer)
        yield self._feeding(successor)
        yield CloseHop(leaver.key)
        yield from self._standbys.end(leaver)
        yield from self._standbys.connect(self.hops)
        self._move = None
        self._repairs.moved(move, successor)
        yield from self._watch.await_step(now, filling=self._watch.filling)

    # Running

    def _on_token(self, position: int, choice: Choice, now: float) -> Iterator[Effect]:
        """A token may come while a hop before it is being replaced: the rest of the chain had its input already."""
        if position != len(self.ids):
            return  # a replay computed again what we have
        for hop in self.hops:
            if not hop.restoring:  # one that is comes in the place of the hop that passed it on
                hop.held = max(hop.held, position)
        running = self.phase == "running"
        if running:
            self._watch.step_came(now)
            yield from self._repairs.told(self.hops, now)
        if choice.id in self.stop_ids:
            yield from self._close_all()
            yield Finished("stop")
            return
        self.ids.append(choice.id)
        last = len(self.ids) - len(self.prompt) >= self.max_new
        if not last:
            yield FeedToken(len(self.ids))
        yield Emit(choice)
        if last:
            yield from self._close_all()
            yield Finished("length")
            return
        if running:
            yield from self._watch.await_step(now, filling=False)
            yield from self._tend(now)

    def _on_progress(self, key: HopKey, held: int, now: float) -> Iterator[Effect]:
        hop = self._hop(key)
        if hop is None:
            return
        hop.unanswered_since_s = None
        if held > hop.held and self.phase == "running":
            self._watch.goes_on(now)
        hop.held = max(hop.held, held)
        yield from ()

    def _on_tick(self, now: float) -> Iterator[Effect]:
        self._watch.woken(self.hops, now)
        if self.phase == "opening":
            yield from self._tick_opening(now)
        elif self.phase == "running":
            yield from self._tick_running(now)

    def _tick_opening(self, now: float) -> Iterator[Effect]:
        late = [hop for hop in self._pending if not hop.opened or hop.restoring]
        if now >= self._watch.deadline_s and late:
            wanted = "took in no cache" if late[0].opened else "did not open"
            yield from self._lose(late[0], f"{wanted} in time", now)
        else:
            yield from self._watch.wake(self._watch.deadline_s)

    def _tick_running(self, now: float) -> Iterator[Effect]:
        if self._move is not None and self._move.is_late(now):
            yield from self._fail_move(f"took over nothing within {self.patience.prefill_s:.0f} s")
        given_up = self._watch.lost(self.hops, len(self.ids), now)
        if given_up is not None:
            yield from self._lose(*given_up, now)
        else:
            yield from self._watch.probe(self.hops, now)
