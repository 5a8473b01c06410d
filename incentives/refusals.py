"""A server that shows no work: an accident, or a habit?

A hop may have died, been started again, or have no memory left, and then all its records of the last minutes are gone
at once. So what is counted is not a session but a window of WINDOW_S, the time for which records are kept: refused when
any session in it was refused, shown when none was. An honest node is taken to lose a window in fifty (one that is
started again every day loses one in 144). Two alternatives are tested against that, as for findings
(`sequential_test.py`): a server that refuses nearly always, and one in five times. Who refuses only what it has
computed falsely, in one window of fifty at most, gets through, with that much false work.

Nobody else can check a refusal, so it moves no credit: it costs standing with whoever was refused.
"""

from dataclasses import dataclass, replace
from math import log

WINDOW_S = 600.0
HONEST = 0.02  # share of windows in which an honest server loses something
HABITS = (0.9, 0.2)
BOUNDARY = 11.4  # nats, three refused windows in a row: an honest start gets there with a chance of 1.2e-5 (Ville)


@dataclass(frozen=True, slots=True)
class Refusals:
    """nats: by habit; began_s: of the window that runs; refused: in it"""

    nats: tuple[float, ...] = (0.0,) * len(HABITS)
    began_s: float | None = None
    refused: bool = False

    def after(self, refused: bool, now: float) -> "Refusals":
        """One more session was asked about. now: seconds, of any clock that goes on"""
        if self.began_s is None or not 0 <= now - self.began_s < WINDOW_S:
            return Refusals(tuple(self._with(self.refused) if self.began_s is not None else self.nats), now, refused)
        return replace(self, refused=self.refused or refused)

    @property
    def is_habit(self) -> bool:
        """The window that runs counts already when something was refused in it."""
        return any(n >= BOUNDARY for n in (self._with(True) if self.refused else self.nats))

    def _with(self, refused: bool) -> tuple[float, ...]:
        return tuple(max(0.0, n + _gain(habit, refused)) for n, habit in zip(self.nats, HABITS, strict=True))


def _gain(habit: float, refused: bool) -> float:
    return log(habit / HONEST) if refused else log((1 - habit) / (1 - HONEST))
