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
    OutOfMemory,
    Refused,
    ShoalError,
    Unavailable,
    VersionMismatch,
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
    ProgressCame,
    Repaired,
    Restore,
    RewireHop,
    SendKept,
    SendProbe,
    TellStranded,
    Ticked,
    TokenCame,
    WakeAt,
)
from .session_hop import Hop, Patience, Standby
from .session_move import Move, neighbours
from .session_standby import Standbys

_TICK_SLACK_S = 1e-3  # a wake-up may come this much early


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
    _lost: list[tuple[PeerId, Span, str]] = field(default_factory=list)
    _broke_at_s: float = 0.0
    _failures: int = 0
    _plan_tries: int = 0
    _refusal: ShoalError | None = None
    _waiting_since_s: float = 0.0
    _usual_step_s: float = 0.0
    _deadline_s: float = 0.0  # of the phase
    _filling: bool = True  # the chain computes a prompt or a replay, in chunks
    _wake_s: float = 0.0
    _standbys: Standbys = field(init=False)
    _loading: Standby | None = None  # the replacement begins with what is kept there
    _move: Move | None = None
    _moved: list[tuple[Move, Hop]] = field(default_factory=list)  # with who took over; the next token ends the pause

    def __post_init__(self) -> None:
        self._standbys = Standbys(self.exactness, self.keep_snapshots, self.patience)

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
            case CacheCame(key, held):
                yield from self._on_cache(key, held, now)
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
        worth_retrying = isinstance(error, ModelNotServable | Unavailable) and self._failures > 0
        if worth_retrying and self._plan_tries < self.patience.plan_tries:
            yield from self._plan(self._gap_span, self.patience.plan_retry_s)
            return
        yield from self._break(self._refusal or self._with_reason(error))

    def _with_reason(self, error: ShoalError) -> ShoalError:
        """The error with what became of the last peer that was lost: nobody is left because somebody failed."""
        if not self._lost:
            return error
        peer, _, reason = self._lost[-1]
        return type(error)(f"{error} ({peer} failed: {reason})")

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
                at_peer = kept.peer is not None
                restore = Restore(kept.peer, kept.key if at_peer else None, self._loadable() if at_peer else 0)
            yield OpenHop(hop.key, hop.peer, hop.span, upstream, below.key if below else None, restore)
        self._deadline_s = now + self.patience.open_s
        yield from self._wake(self._deadline_s)

    def _loadable(self) -> int:
        """A replacement may begin with the positions below this, and no more: who stands behind it has those, and the
        last one is computed again for the token that it gives."""
        behind = [hop.held for hop in self.hops[self._gap :]] if self._gap is not None else []
        return min([len(self.ids) - 1, *behind])

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
                    self._deadline_s = now + self.patience.step_s
                if hop.restoring and self._loading and self._loading.peer is None:
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
        for hop in self.hops:
            hop.unanswered_since_s = None
        yield from self._await_step(now, filling=True)

    # Losing a hop

    def _hop(self, key: HopKey) -> Hop | None:
        return next((hop for hop in (*self.hops, *self._pending) if hop.key == key), None)

    def _on_failed(self, event: HopFailed, now: float) -> Iterator[Effect]:
        hop = self._hop(event.hop)
        if hop is None:
            return
        if not hop.opened:
            self._refusal = _refusal(event) or self._refusal
        if event.kind == "cannot_replay":
            self._failures += 1
            if self._failures > self.patience.failures:
                yield from self._give_up(event.text)
            else:
                yield from self._plan_all()
            return
        blamed = next((h for h in (*self.hops, *self._pending) if h.peer == event.culprit), None)
        if event.culprit is not None and blamed is None:
            return  # the peer it blames has left the chain already
        yield from self._lose(blamed or hop, f"{event.kind}: {event.text}", now)

    def _lose(self, hop: Hop, reason: str, now: float) -> Iterator[Effect]:
        self._failures += 1
        self.exclude |= {hop.peer}
        if not self._lost:
            self._broke_at_s = self._waiting_since_s or now
        self._lost.append((hop.peer, hop.span, reason))
        yield CloseHop(hop.key)
        yield from self._end_move()
        if self._failures > self.patience.failures:
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
        self._loading = standby
        if standby is None or standby.peer is None:
            yield from self._plan(hop.span, 0.0)
            return
        self._gap_span = hop.span
        self._plan_number += 1  # no plan is awaited
        yield from self._on_planned(((standby.peer, hop.span),), now)

    def _give_up(self, reason: str) -> Iterator[Effect]:
        yield from self._break(Unavailable(f"gave up after {self._failures} failures; the last: {reason}"))

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
        for hop in self._pending:
            if hop.key == key and hop.restoring:
                hop.restoring = False
                hop.held = hop.loaded = held
        yield from self._complete_opening(now)

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
            if hop.key == key and hop.restoring and self._loading is not None and self._loading.peer is None:
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
        before, after = neighbours(self.hops, leaver)
        self.hops[self.hops.index(leaver)] = successor
        if after is not None:
            yield AdoptUpstream(after.key, successor.peer)
        if before is None:
            yield ConnectFirst(successor.key, successor.loaded)
        else:
            yield RewireHop(before.key, successor.key, successor.loaded)
        yield CloseHop(leaver.key)
        yield from self._standbys.end(leaver)
        self._move = None
        self._moved.append((move, successor))
        yield from self._await_step(now, filling=self._filling)

    def _give_reports(self, now: float) -> Iterator[Effect]:
        for peer, span, reason in self._lost:
            by = [hop for hop in self.hops if hop.span.intersects(span)]
            loaded = max((hop.loaded for hop in by), default=0)
            yield Repaired(peer, span, reason, now - self._broke_at_s, tuple(hop.peer for hop in by), loaded)
        self._lost.clear()
        for move, by_hop in self._moved:
            pause_s = now - (move.handed_at_s or now)
            leaver = move.leaver
            yield Repaired(leaver.peer, leaver.span, "left", pause_s, (by_hop.peer,), by_hop.loaded, planned=True)
        self._moved.clear()

    # Running

    def _on_token(self, position: int, choice: Choice, now: float) -> Iterator[Effect]:
        """A token may come while a hop before it is being replaced: the rest of the chain had its input already."""
        if position != len(self.ids):
            return  # a replay computed again what we have
        for hop in self.hops:
            hop.held = max(hop.held, position)  # it came through all of them
        running = self.phase == "running"
        if running:
            yield from self._note_step(now)
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
            yield from self._await_step(now, filling=False)
            yield from self._tend(now)

    def _note_step(self, now: float) -> Iterator[Effect]:
        step_s = now - self._waiting_since_s
        if not self._filling:
            self._usual_step_s = step_s if not self._usual_step_s else 0.8 * self._usual_step_s + 0.2 * step_s
        if self._lost or self._moved:
            yield from self._give_reports(now)

    def _await_step(self, now: float, *, filling: bool) -> Iterator[Effect]:
        self._waiting_since_s = now
        self._filling = filling
        self._deadline_s = now + (self.patience.prefill_s if filling else self.patience.step_s)
        yield from self._wake(now + self._silence_s())

    def _silence_s(self) -> float:
        return max(self.patience.probe_after_s, 4 * self._usual_step_s)

    def _wake(self, when_s: float) -> Iterator[Effect]:
        """Ask for a wake-up unless one that is early enough is out already."""
        if self._wake_s == 0.0 or when_s < self._wake_s:
            self._wake_s = when_s
            yield WakeAt(when_s)

    def _on_progress(self, key: HopKey, held: int, now: float) -> Iterator[Effect]:
        hop = self._hop(key)
        if hop is None:
            return
        hop.unanswered_since_s = None
        if held > hop.held and self._filling and self.phase == "running":
            self._deadline_s = max(self._deadline_s, now + self.patience.prefill_s)
        hop.held = max(hop.held, held)
        yield from ()

    def _on_tick(self, now: float) -> Iterator[Effect]:
        overslept_s = now - self._wake_s if self._wake_s else 0.0
        self._wake_s = 0.0
        if overslept_s > self.patience.probe_s:
            self._forgive(overslept_s, now)
        if self.phase == "opening":
            yield from self._tick_opening(now)
        elif self.phase == "running":
            yield from self._tick_running(now)

    def _forgive(self, overslept_s: float, now: float) -> None:
        """This process stood still (a suspended machine, Ctrl-Z): the time is nobody's fault, and probes start anew."""
        self._deadline_s += overslept_s
        for hop in self.hops:
            if hop.unanswered_since_s is not None:
                hop.unanswered_since_s = now

    def _tick_opening(self, now: float) -> Iterator[Effect]:
        late = [hop for hop in self._pending if not hop.opened or hop.restoring]
        if now >= self._deadline_s and late:
            wanted = "took in no cache" if late[0].opened else "did not open"
            yield from self._lose(late[0], f"{wanted} in time", now)
        else:
            yield from self._wake(self._deadline_s)

    def _tick_running(self, now: float) -> Iterator[Effect]:
        if self._move is not None and self._move.is_late(now):
            yield from self._fail_move(f"took over nothing within {self.patience.prefill_s:.0f} s")
        for hop in self.hops:
            since_s = hop.unanswered_since_s
            if since_s is not None and now - since_s >= self.patience.probe_s - _TICK_SLACK_S:
                yield from self._lose(hop, f"no answer to a probe for {now - since_s:.1f} s", now)
                return
        if now >= self._deadline_s:
            yield from self._lose(self._stuck_hop(), "answers probes but computes nothing", now)
            return
        probed = False
        if now >= self._waiting_since_s + self._silence_s():  # as the wake-up was asked for, to the last bit
            for hop in self.hops:
                if hop.unanswered_since_s is None:
                    hop.unanswered_since_s = now
                    yield SendProbe(hop.key)
                probed = True
        yield from self._wake(now + self.patience.probe_s if probed else self._waiting_since_s + self._silence_s())

    def _stuck_hop(self) -> Hop:
        """The first hop that lacks positions its upstream has."""
        target = len(self.ids)
        return next((hop for hop in self.hops if hop.held < target), self.hops[-1])


def _refusal(event: HopFailed) -> ShoalError | None:
    """What to tell the user when a hop would not open and nobody else is left."""
    match event.kind:
        case "no_room" | "too_long":
            return OutOfMemory(event.text)
        case "refused":
            return Refused(event.text)
        case "version":
            return VersionMismatch(event.text)
        case _:
            return None
