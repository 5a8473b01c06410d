"""How long a session waits for its hops: when to look, whom to probe, who has been silent too long.

A part of the session's machine, without I/O. There is one wake-up under way at most that matters: the earliest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .session_events import Effect, SendProbe, WakeAt
from .session_hop import Hop, Patience

_TICK_SLACK_S = 1e-3  # a wake-up may come this much early


@dataclass(slots=True)
class Watch:
    """filling: the chain computes a prompt or a replay, in chunks; deadline_s: of the phase"""

    patience: Patience
    filling: bool = True
    waiting_since_s: float = 0.0  # for the next token
    deadline_s: float = 0.0
    _usual_step_s: float = 0.0
    _wake_s: float = 0.0

    def await_step(self, now: float, *, filling: bool) -> Iterator[Effect]:
        self.waiting_since_s = now
        self.filling = filling
        self.deadline_s = now + (self.patience.prefill_s if filling else self.patience.step_s)
        yield from self.wake(now + self._silence_s)

    def step_came(self, now: float) -> None:
        step_s = now - self.waiting_since_s
        if not self.filling:
            self._usual_step_s = step_s if not self._usual_step_s else 0.8 * self._usual_step_s + 0.2 * step_s

    def goes_on(self, now: float) -> None:
        """A part of what is being filled has been computed."""
        if self.filling:
            self.deadline_s = max(self.deadline_s, now + self.patience.prefill_s)

    def wake(self, when_s: float) -> Iterator[Effect]:
        """Ask for a wake-up unless one that is early enough is out already."""
        if self._wake_s == 0.0 or when_s < self._wake_s:
            self._wake_s = when_s
            yield WakeAt(when_s)

    def woken(self, hops: Sequence[Hop], now: float) -> None:
        overslept_s = now - self._wake_s if self._wake_s else 0.0
        self._wake_s = 0.0
        if overslept_s > self.patience.probe_s / 4:
            self._forgive(hops, overslept_s, now)

    def _forgive(self, hops: Sequence[Hop], overslept_s: float, now: float) -> None:
        """This process stood still (a suspended or a very busy machine, Ctrl-Z): the time is nobody's fault, and probes
        start anew, as their answers may lie here unread."""
        self.deadline_s += overslept_s
        for hop in hops:
            if hop.unanswered_since_s is not None:
                hop.unanswered_since_s = now

    def lost(self, hops: Sequence[Hop], positions: int, now: float) -> tuple[Hop, str] | None:
        """A hop that is given up, and why. positions: that all of them should have computed"""
        for hop in hops:
            since_s = hop.unanswered_since_s
            if since_s is not None and now - since_s >= self.patience.probe_s - _TICK_SLACK_S:
                return hop, f"no answer to a probe for {now - since_s:.1f} s"
        if now < self.deadline_s:
            return None
        # the first hop that lacks positions its upstream has
        stuck = next((hop for hop in hops if hop.held < positions), hops[-1])
        return stuck, "answers probes but computes nothing"

    def probe(self, hops: Sequence[Hop], now: float) -> Iterator[Effect]:
        """Where it has been silent for long, and look again later."""
        silent_at_s = self.waiting_since_s + self._silence_s
        if now < silent_at_s:  # as the wake-up was asked for, to the last bit
            yield from self.wake(silent_at_s)
            return
        for hop in hops:
            if hop.unanswered_since_s is None:
                hop.unanswered_since_s = now
                yield SendProbe(hop.key)
        yield from self.wake(now + self.patience.probe_s)

    @property
    def _silence_s(self) -> float:
        return max(self.patience.probe_after_s, 4 * self._usual_step_s)
