"""Optimisers of the parameters that all replicas hold alike, in numpy float32.

Every replica must get the same bits on any machine. Sum, product, quotient and square root of two float32 are rounded
alike by every IEEE 754 machine, as long as nothing is summed up in an order of the machine's choice (no reductions, no
matrix products), nothing is fused and subnormals are kept. So everything here is elementwise, one ufunc after another.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.compression.update_codec import Values
from shoal.swarm.errors import LocalFault

from .schedules import Schedule

State = dict[str, npt.NDArray[Any] | int | float]


class OuterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """schedule: of the learning rate, counted in updates of a fragment."""

    kind: Literal["sgd", "nesterov", "adamw"] = "nesterov"
    learning_rate: float = 0.7
    momentum: float = 0.9  # of nesterov
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    schedule: Schedule = Schedule()

    def check(self) -> None:
        """raises: ValueError that names the key"""
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate is {self.learning_rate}, not above 0")
        for name in ("momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, not in [0, 1)")
        if self.epsilon <= 0 or self.weight_decay < 0:
            raise ValueError(f"epsilon is {self.epsilon}, weight_decay is {self.weight_decay}")
        self.schedule.check()


class OuterOptimizer:
    """bounds: [start, stop) of each fragment in the vector; undecayed: ranges that weight decay leaves alone."""

    def __init__(
        self, settings: OuterSettings, bounds: Sequence[tuple[int, int]], undecayed: Sequence[tuple[int, int]] = ()
    ) -> None:
        settings.check()
        check_arithmetic()
        self.settings = settings
        self.bounds = tuple(bounds)
        self.updates = [0] * len(self.bounds)  # by fragment
        count = self.bounds[-1][1]
        names = {"sgd": (), "nesterov": ("momentum",), "adamw": ("first", "second")}[settings.kind]
        self.moments: dict[str, Values] = {name: np.zeros(count, np.float32) for name in names}
        self._powers = [(1.0, 1.0)] * len(self.bounds)  # beta1 and beta2 to the number of updates
        self._decayed = np.ones(count if settings.weight_decay else 0, np.float32)
        for start, stop in undecayed:
            self._decayed[start:stop] = 0

    def step(self, values: Values, fragment: int, update: Values) -> None:
        """values: (N,) all parameters, changed in place; update: (stop - start,) to be descended along."""
        start, stop = self.bounds[fragment]
        part = values[start:stop]
        rate = self.settings.learning_rate * self.settings.schedule.factor(self.updates[fragment])
        match self.settings.kind:
            case "sgd":
                direction = update
            case "nesterov":
                direction = self._nesterov(start, stop, update)
            case "adamw":
                direction = self._adamw(start, stop, fragment, update)
        if self.settings.weight_decay:
            part *= np.float32(1) - np.float32(rate * self.settings.weight_decay) * self._decayed[start:stop]
        part -= np.float32(rate) * direction
        self.updates[fragment] += 1

    def _nesterov(self, start: int, stop: int, update: Values) -> Values:
        """As torch.optim.SGD: momentum = mu momentum + update; direction = update + mu momentum."""
        share = np.float32(self.settings.momentum)
        momentum = self.moments["momentum"][start:stop]
        momentum *= share
        momentum += update
        return update + share * momentum

    def _adamw(self, start: int, stop: int, fragment: int, update: Values) -> Values:
        """source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, arXiv:1711.05101"""
        beta1, beta2 = self.settings.beta1, self.settings.beta2
        powers = self._powers[fragment][0] * beta1, self._powers[fragment][1] * beta2
        self._powers[fragment] = powers
        first, second = self.moments["first"][start:stop], self.moments["second"][start:stop]
        first *= np.float32(beta1)
        first += np.float32(1 - beta1) * update
        second *= np.float32(beta2)
        second += np.float32(1 - beta2) * (update * update)
        scale = np.sqrt(second / np.float32(1 - powers[1]))
        scale += np.float32(self.settings.epsilon)
        direction: Values = first / np.float32(1 - powers[0]) / scale
        return direction

    def state(self) -> State:
        numbers = {f"updates.{fragment}": updates for fragment, updates in enumerate(self.updates)}
        return {**{name: moment.copy() for name, moment in self.moments.items()}, **numbers}

    def restore(self, state: State) -> None:
        """raises: ValueError for a state of another optimiser or model; nothing is changed then"""
        moments = {name: np.array(state.get(name, ()), np.float32) for name in self.moments}
        updates = [state.get(f"updates.{fragment}") for fragment in range(len(self.bounds))]
        if len(state) != len(moments) + len(updates) or any(
            moments[name].shape != self.moments[name].shape for name in moments
        ):
            raise ValueError(f"the state of another outer optimiser: {', '.join(sorted(state))}")
        counts = [int(count) for count in updates if isinstance(count, int | float | np.ndarray)]
        if len(counts) != len(updates) or min(counts) < 0:
            raise ValueError("the state of an outer optimiser of other fragments")
        self.moments, self.updates = moments, counts
        self._powers = [self._powers_after(count) for count in counts]

    def _powers_after(self, count: int) -> tuple[float, float]:
        """By the same multiplications as step by step: the C library's pow need not round alike everywhere."""
        first = second = 1.0
        for _ in range(count):
            first, second = first * self.settings.beta1, second * self.settings.beta2
        return first, second


def check_arithmetic() -> None:
    """raises: LocalFault when this thread flushes subnormal numbers to zero, as some libraries switch on when loaded"""
    smallest = np.full(1, 2.0**-149, np.float32)
    if (smallest * np.float32(1))[0] == 0 or (np.full(1, 2.0**-126, np.float32) * np.float32(0.5))[0] == 0:
        raise LocalFault(
            "this process rounds subnormal numbers to zero (a library compiled with -ffast-math was loaded, or "
            "torch.set_flush_denormal is on); its replica would drift from the others"
        )
