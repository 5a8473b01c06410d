"""What a replica knows of its inner step: who drives it, which microbatches it has counted, when it is full.

Sans-io. A microbatch's gradient is counted once for each step, however often it comes: an answer that was lost on its
way back is computed again and not counted again. A driver that has tried somewhere else in the meantime does not name
the microbatch in `Finish`; what was counted here cannot be taken out of a sum, so the whole step is *void* here then:
this replica loses the work of one step, and no gradient counts twice.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from shoal.swarm.identifiers import PeerId

from .messages import Finish

Verdict = Literal["count", "repeat", "late"]


@dataclass(slots=True, eq=False)
class _Driver:
    """counted: microbatches of this step, with their sequences"""

    finished: Finish | None = None
    counted: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepSum:
    """sequences: that were counted, 0 for a void step; first_square: mean of the drivers' squared norms"""

    sequences: int
    first_square: float


class StepBook:
    """closed: the sum is being made up or applied; nothing is counted any more
    void: what is counted in this step will not be used; stale: gradients of a step that is over lie there still
    """

    def __init__(self, step: int = 0) -> None:
        self.step = step
        self.closed = False
        self.void = False
        self.stale = False
        self._drivers: dict[PeerId, _Driver] = {}
        self._gone: dict[PeerId, _Driver] = {}  # left within this step, with what they had counted

    @property
    def drivers(self) -> tuple[PeerId, ...]:
        return tuple(self._drivers)

    @property
    def full(self) -> bool:
        """Every driver has finished; one at least."""
        return bool(self._drivers) and all(driver.finished for driver in self._drivers.values())

    def join(self, peer: PeerId, step: int) -> int:
        """From this step on. returns: where this replica is; the driver takes part when that is the step it named

        A driver that names a later step has gone on without this replica, which follows when nobody needs it here.
        """
        if peer in self._drivers and self.step == step:
            return self.step
        if step > self.step:
            self.leave(peer)
            if not self.closed and not self._drivers:
                self._turn_to(step)
        if self.step == step and not self.closed:
            if self._gone.pop(peer, _Driver()).counted:
                self.void = True  # it has gone on without us meanwhile, with the same microbatches perhaps
            self._drivers[peer] = _Driver()
        return self.step + 1 if self.closed and self.step == step else self.step

    def leave(self, peer: PeerId) -> None:
        """Its stream has ended. What was counted of it stays: it was learned from honest data."""
        driver = self._drivers.pop(peer, None)
        if driver is not None and driver.finished is None:
            self._gone[peer] = driver

    def verdict(self, peer: PeerId, step: int, microbatch: int) -> Verdict:
        """count: its gradient is to be added, and is noted as added; repeat: it was; late: not a step to work for."""
        return "late" if not self.admits(peer, step) else self._repeated(peer, microbatch)

    def admits(self, peer: PeerId, step: int) -> bool:
        driver = self._drivers.get(peer)
        return step == self.step and not self.closed and driver is not None and driver.finished is None

    def _repeated(self, peer: PeerId, microbatch: int) -> Verdict:
        return "repeat" if microbatch in self._drivers[peer].counted else "count"

    def note(self, peer: PeerId, microbatch: int, sequences: int) -> None:
        """After the verdict to count, before anything else happens."""
        self._drivers[peer].counted[microbatch] = sequences

    def finish(self, peer: PeerId, finish: Finish) -> None:
        """Of another step it is not heard."""
        driver = self._drivers.get(peer)
        if driver is None or finish.step != self.step or self.closed or driver.finished is not None:
            return
        driver.finished = finish
        if driver.counted.keys() - set(finish.counted):
            self.void = True

    def close(self) -> StepSum:
        """The step is full: what its sum is made of."""
        self.closed = True
        every = [*self._drivers.values(), *self._gone.values()]
        sequences = 0 if self.void else sum(sum(driver.counted.values()) for driver in every)
        finished = [driver.finished for driver in self._drivers.values() if driver.finished is not None]
        weight = sum(finish.sequences for finish in finished)
        square = math.fsum(f.square * f.sequences for f in finished) / weight if weight else 0.0
        return StepSum(sequences, square)

    def advance(self) -> None:
        """The step is taken. Drivers that are there stay for the next one."""
        peers = tuple(self._drivers)
        self._turn_to(self.step + 1)
        self._drivers = {peer: _Driver() for peer in peers}

    def _turn_to(self, step: int) -> None:
        self.stale = self.stale or (not self.closed and self._has_counted)
        self.step, self.closed, self.void = step, False, False
        self._drivers, self._gone = {}, {}

    @property
    def _has_counted(self) -> bool:
        return any(driver.counted for driver in (*self._drivers.values(), *self._gone.values()))
