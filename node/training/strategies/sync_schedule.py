"""Which fragment is offered after which inner step, and when its outcome is applied."""

from dataclasses import dataclass

from .settings import StrategySettings


@dataclass(frozen=True, slots=True)
class SyncSchedule:
    """Fragments take turns: round r is of fragment r mod F, so a joiner needs only the round's number.

    Outcomes are applied every H / F steps (in whole steps), each `delay` steps after it was offered. As `delay` is no
    longer than that, at most one round is under way, and the state that round r is offered on is the one after r - 1.
    """

    interval: int
    fragments: int
    delay: int

    @classmethod
    def of(cls, settings: StrategySettings) -> "SyncSchedule":
        return cls(settings.interval, settings.fragments, settings.delay)

    def fragment(self, round_: int) -> int:
        return round_ % self.fragments

    def applied_after(self, round_: int) -> int:
        """The inner step, counted from 1, after which the outcome of this round is applied when none was skipped."""
        late = 1 if self.delay == self.interval // self.fragments else 0  # the first would be offered before step 1
        return self._edge(round_ + late)

    def offered_after(self, round_: int) -> int:
        return self.applied_after(round_) - self.delay

    def steps_to_next(self, round_: int) -> int:
        """Inner steps between the offer of this round and that of the next."""
        return self.offered_after(round_ + 1) - self.offered_after(round_)

    def left(self, clock: int) -> int:
        """Inner steps until an offer is due, when all peers count the same steps. clock: steps done, from 0

        0: now, after the step that made the clock what it is.
        """
        due = {self.offered_after(round_) % self.interval for round_ in range(self.fragments)}
        return next(more for more in range(self.interval) if (clock + more) % self.interval in due)

    def _edge(self, index: int) -> int:
        turn, fragment = divmod(index, self.fragments)
        return turn * self.interval + (fragment + 1) * self.interval // self.fragments
