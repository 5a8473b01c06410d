"""Inner steps of another trainer, taken again: from a state that it signed for, on the windows that were its share.

What is compared is what an interval adds to the parameters, as in audits of served chunks: the difference between the
state that was claimed and the one reached here, relative to the way between beginning and end.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shoal.compression.update_codec import Values
from shoal.incentives.step_statement import StepStatement, carried_hash
from shoal.swarm.rounds import hash_tree

from .checkpoints.snapshot import Value
from .data.assignment import Share
from .data.windows import Windows
from .strategies.outer_loop import LiveParameters
from .worker_inner_state import inner_state, restore_inner
from .worker_steps import InnerSteps

MOST_INTERVALS = 4
Mark = tuple[bytes, bytes]  # digests of a state's parameters and moments


@dataclass(frozen=True, slots=True, eq=False)
class StepState:
    """parameters: (N,); moments: of the inner optimiser, as `inner_state` gives them"""

    parameters: Values
    moments: Mapping[str, Value]

    def mark(self) -> Mark:
        return values_digest(self.parameters), moments_digest(self.moments)

    def digest(self) -> bytes:
        """32 bytes over every value, names and shapes included."""
        return state_digest(self.mark())


def values_digest(values: Values) -> bytes:
    found = hashlib.sha256(b"shoal/1/step-values\0")
    found.update(np.ascontiguousarray(values, "<f4").data)
    return found.digest()


def moments_digest(moments: Mapping[str, Value]) -> bytes:
    found = hashlib.sha256(b"shoal/1/step-moments\0")
    for name in sorted(moments):
        value = np.ascontiguousarray(moments[name])
        found.update(f"\0{name} {value.dtype.str} {value.shape}\0".encode())
        found.update(value.tobytes())
    return found.digest()


def state_digest(mark: Mark) -> bytes:
    return hashlib.sha256(b"shoal/1/step-state\0" + mark[0] + mark[1]).digest()


def intervals_of(steps: int) -> int:
    """Into how many equal intervals the steps of a round are cut: as many as go, up to MOST_INTERVALS."""
    return max(count for count in range(1, MOST_INTERVALS + 1) if steps % count == 0)


def state_now(steps: InnerSteps, parameters: LiveParameters) -> StepState:
    return StepState(parameters.read(), inner_state(steps.optimizer))


def _at_once(work: Callable[[], None]) -> None:
    work()


class StepLog:
    """A trainer's side: the digests of a round, one for each interval.

    every: inner steps of an interval; do: has work done in order, now or behind the steps' back
    """

    def __init__(self, start: StepState, every: int, do: Callable[[Callable[[], None]], None] = _at_once) -> None:
        self.every = every
        self.marks: list[Mark] = []
        self.steps = 0
        self._do = do
        do(lambda: self.marks.append(start.mark()))

    @property
    def begin(self) -> bytes:
        return state_digest(self.marks[0])

    @property
    def ends(self) -> list[bytes]:
        return [state_digest(mark) for mark in self.marks[1:]]

    def stepped(self, steps: InnerSteps, parameters: LiveParameters) -> StepState | None:
        """After each inner step. Hashing happens at the end of an interval only. returns: the state there"""
        self.steps += 1
        if self.steps % self.every:
            return None
        state = state_now(steps, parameters)
        self._do(lambda: self.marks.append(state.mark()))
        return state

    def statement(
        self, run: bytes, round_: int, before: bytes, first: int, update: bytes, residuals: tuple[bytes, bytes]
    ) -> StepStatement:
        """Unsigned. residuals: digests of the error feedback, before and after

        raises: ValueError before the end of the first interval
        """
        count, moments = len(self.marks) - 1, (self.marks[0][1], self.marks[-1][1])
        carried, carries = (carried_hash(*pair) for pair in zip(moments, residuals, strict=True))
        return StepStatement(
            trainer=bytes(32),
            run=run,
            round=round_,
            before=before,
            first=first,
            every=self.every,
            intervals=count,
            begin=self.begin,
            root=root_of(self.marks),
            update=update,
            carried=carried,
            carries=carries,
            signature=bytes(64),
        )

    def paths(self, interval: int) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """To the leaves at the beginning and at the end of an interval."""
        leaves = [hash_tree.leaf_hash(end) for end in self.ends]
        return hash_tree.path(leaves, interval - 1) if interval else (), hash_tree.path(leaves, interval)


def root_of(marks: Sequence[Mark]) -> bytes:
    """Over the ends of the intervals. raises: ValueError when there are none"""
    return hash_tree.root([hash_tree.leaf_hash(state_digest(mark)) for mark in marks[1:]])


def taken_again(
    steps: InnerSteps,
    parameters: LiveParameters,
    windows: Windows,
    start: StepState,
    batches: Sequence[Sequence[int]],
    first_step: int,
) -> StepState:
    """The state that these steps lead to here. batches: windows of each step; first_step: its number, for the schedule

    Uses and changes the model and the optimiser that it is given: a spare replica, or one between two rounds.
    raises: ValueError for a state of another model; LossNotFinite, OutOfMemory
    """
    restore_inner(steps.optimizer, start.moments)
    parameters.write(0, start.parameters)
    for number, batch in enumerate(batches):
        steps.run(windows.batch(batch), first_step + number)
    return state_now(steps, parameters)


def batches_of(share: Share, taken: int, steps: int, sequences: int) -> list[list[int]]:
    """The windows of consecutive steps. taken: sequences of the share that earlier steps of the round used"""
    return [share.windows(taken + number * sequences, sequences) for number in range(steps)]


def step_distance(start: Values, claimed: Values, again: Values) -> float:
    """|claimed - again| / |again - start|; inf for a claim of another length or that is not finite."""
    if claimed.shape != again.shape or not np.isfinite(claimed).all():
        return float("inf")
    moved = float(np.linalg.norm((again - start).astype(np.float64)))
    apart = float(np.linalg.norm((claimed - again).astype(np.float64)))
    return apart / max(moved, 1e-30)
