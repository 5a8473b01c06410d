"""One generation, as a machine that does no I/O and reads no clock: the chain, its failures, its repair.

The failover ladder of DESIGN 6 without snapshots: one lost hop is replaced and its upstream neighbour replays its kept
outputs (the driver, when the first hop is lost); when that cannot be, the whole chain is opened anew and the driver
feeds all tokens again. Peers that failed are excluded for the rest of the session; the number of failures is bounded.

Events go in through `handle` with the time they happened; effects come out in the order in which the shell carries them
out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, assert_never

from .compute import Choice
from .errors import ModelNotServable, OutOfMemory, Refused, ShoalError, Unavailable, VersionMismatch
from .identifiers import PeerId
from .session_events import (
    AdoptUpstream,
    Broke,
    CloseHop,
    ConnectFirst,
    Effect,
    Emit,
    Event,
    FeedToken,
    Finished,
    HopFailed,
    HopKey,
    HopLost,
    HopOpened,
    OpenHop,
    Plan,
    PlanFailed,
    Planned,
    ProgressCame,
    Repaired,
    RewireHop,
    SendProbe,
    Ticked,
    TokenCame,
    WakeAt,
)
from .units import Span

_TICK_SLACK_S = 1e-3  # a wake-up may come this much early


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. A hop that is silent is probed; one that does not answer a probe is lost; one that answers and makes no
    progress is lost later."""

    open_s: float = 15.0
    probe_after_s: float = 1.0  # of silence, or 4 times the usual step, whichever is longer
    probe_s: float = 2.0
    step_s: float = 30.0  # for one decode step
    prefill_s: float = 120.0  # for one chunk of a prompt or of a replay
    plan_retry_s: float = 1.0
    plan_tries: int = 4
    failures: int = 8


@dataclass(slots=True)
class Hop:
    key: HopKey
    peer: PeerId
    span: Span
    opened: bool = False
    held: int = 0
    unanswered_since_s: float | None = None  # a probe is out


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
    ids: list[int] = field(default_factory=list)
    hops: list[Hop] = field(default_factory=list)
    phase: Phase = "planning"
    _next_key: int = 0
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
            case HopFailed():
                yield from self._on_failed(event, now)
            case HopLost(key, reason):
                hop = self._hop(key)
                if hop:
                    yield from self._lose(hop, reason, now)
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
        for hop in (*self.hops, *self._pending):
            yield CloseHop(hop.key)
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
        )

    def _neighbours(self) -> tuple[Hop | None, Hop | None]:
        """The hops before and after the gap; None stands for the driver."""
        if self._gap is None:
            return None, None
        before = self.hops[self._gap - 1] if self._gap else None
        return before, self.hops[self._gap] if self._gap < len(self.hops) else None

    def _on_plan_failed(self, error: ShoalError) -> Iterator[Effect]:
        assert self._gap_span is not None
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
        fresh = []
        for peer, span in chain:
            self._next_key += 1
            fresh.append(Hop(self._next_key, peer, span))
        self._pending = fresh
        before, after = self._neighbours()
        for index in reversed(range(len(fresh))):  # downstream first, so that each finds its neighbour
            hop = fresh[index]
            upstream = fresh[index - 1].peer if index else (before.peer if before else None)
            below = fresh[index + 1] if index + 1 < len(fresh) else after
            yield OpenHop(hop.key, hop.peer, hop.span, upstream, below.key if below else None)
        self._deadline_s = now + self.patience.open_s
        yield from self._wake(self._deadline_s)

    def _on_opened(self, key: HopKey, now: float) -> Iterator[Effect]:
        for hop in self._pending:
            if hop.key == key:
                hop.opened = True
        if self.phase != "opening" or not all(hop.opened for hop in self._pending):
            return
        at = self._gap if self._gap is not None else 0
        fresh, self._pending = self._pending, []
        self.hops[at:at] = fresh
        after = self.hops[at + len(fresh)] if at + len(fresh) < len(self.hops) else None
        if after:
            yield AdoptUpstream(after.key, fresh[-1].peer)
        if at == 0:
            yield ConnectFirst(fresh[0].key)
        else:
            yield RewireHop(self.hops[at - 1].key, fresh[0].key)
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
        if self._failures > self.patience.failures:
            yield from self._give_up(reason)
            return
        if self.phase == "running" and hop in self.hops:
            self._gap = self.hops.index(hop)
            self.hops.remove(hop)
            yield from self._plan(hop.span, 0.0)
            return
        if hop in self._pending:
            self._pending.remove(hop)
        elif hop in self.hops:
            self.hops.remove(hop)
        yield from self._plan_all()

    def _give_up(self, reason: str) -> Iterator[Effect]:
        yield from self._break(Unavailable(f"gave up after {self._failures} failures; the last: {reason}"))

    def _break(self, error: ShoalError) -> Iterator[Effect]:
        yield from self._close_all()
        yield Broke(error)

    def _close_all(self) -> Iterator[Effect]:
        self.phase = "over"
        for hop in (*self.hops, *self._pending):
            yield CloseHop(hop.key)

    # Running

    def _on_token(self, position: int, choice: Choice, now: float) -> Iterator[Effect]:
        """A token may come while a hop before it is being replaced: the rest of the chain had its input already."""
        if position != len(self.ids):
            return  # a replay computed again what we have
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

    def _note_step(self, now: float) -> Iterator[Effect]:
        step_s = now - self._waiting_since_s
        if not self._filling:
            self._usual_step_s = step_s if not self._usual_step_s else 0.8 * self._usual_step_s + 0.2 * step_s
        for peer, span, reason in self._lost:
            replaced_by = tuple(hop.peer for hop in self.hops if hop.span.intersects(span))
            yield Repaired(peer, span, reason, now - self._broke_at_s, replaced_by)
        self._lost.clear()

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
        hop.held = held
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
        late = [hop for hop in self._pending if not hop.opened]
        if now >= self._deadline_s and late:
            yield from self._lose(late[0], f"did not open within {self.patience.open_s:.0f} s", now)
        else:
            yield from self._wake(self._deadline_s)

    def _tick_running(self, now: float) -> Iterator[Effect]:
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
