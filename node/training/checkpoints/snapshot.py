"""Everything that a trainer needs to go on as if nothing had happened.

The *shared* part (outer parameters, outer optimiser) has the same bytes at every replica after the same round, so
replicas can give it to a late joiner together. The rest is the peer's own: error feedback, inner optimiser, position
in the data.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shoal.compression.update_codec import Values
from shoal.node.training.parameter_layout import ParameterLayout

from .tensor_file import Array

Value = Array | int | float
SHARED = "outer."  # names of a strategy's state that are the same at all replicas
VALUES = "outer.values"  # the parameters as one vector


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """run: id of the run, the hash of its `RunSpec`
    round: of the last outcome that the outer parameters hold, -1 before the first
    state: 32 bytes, the hash of the outer state
    parameters: float32 by name, in the layout's order
    strategy: `Strategy.state()` without the vector of parameters
    inner: the inner optimiser's state; empty in a checkpoint that came from others, as `position` is
    position: where in the data the trainer stands, JSON values
    """

    run: str
    round: int
    state: bytes
    parameters: Mapping[str, Array]
    strategy: Mapping[str, Value]
    inner: Mapping[str, Value] = field(default_factory=dict)
    position: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        run: str,
        round_: int,
        state: bytes,
        layout: ParameterLayout,
        strategy: Mapping[str, Value],
        inner: Mapping[str, Value] | None = None,
        position: Mapping[str, Any] | None = None,
    ) -> "Snapshot":
        """strategy: what `Strategy.state()` gives. raises: ValueError when the layout is of another model"""
        values = strategy.get(VALUES)
        if not isinstance(values, np.ndarray):
            raise ValueError(  # noqa: TRY004  the mapping is wrong, not its kind
                f"a strategy's state without {VALUES}"
            )
        rest = {name: value for name, value in strategy.items() if name != VALUES}
        return cls(run, round_, state, layout.tensors(values), rest, inner or {}, position or {})

    @property
    def values(self) -> Values:
        """(N,) the outer parameters as one vector, a copy."""
        flat = [np.asarray(array, np.float32).reshape(-1) for array in self.parameters.values()]
        return np.concatenate(flat) if flat else np.zeros(0, np.float32)

    @property
    def strategy_state(self) -> dict[str, Value]:
        """For `Strategy.restore`; without the peer's own part when the checkpoint came from others."""
        return {VALUES: self.values, **self.strategy}

    @property
    def outer_state(self) -> dict[str, Value]:
        """For `OuterParameters.restore`."""
        return {
            name.removeprefix(SHARED): value for name, value in self.strategy_state.items() if name.startswith(SHARED)
        }

    @property
    def is_own(self) -> bool:
        """Whether this peer wrote it; else only the shared part is here."""
        return any(not name.startswith(SHARED) for name in self.strategy)


def arrays_of(values: Mapping[str, Value]) -> dict[str, Array]:
    return {name: value for name, value in sorted(values.items()) if isinstance(value, np.ndarray)}


def numbers_of(values: Mapping[str, Value]) -> dict[str, int | float]:
    """raises: ValueError for what is neither an array nor a number"""
    numbers: dict[str, int | float] = {}
    for name, value in sorted(values.items()):
        number: Any = value
        if isinstance(number, np.ndarray):
            continue
        if isinstance(number, np.generic):
            number = number.item()
        if not isinstance(number, int | float):
            kind = type(number).__name__
            raise ValueError(f"{name} is a {kind}, neither an array nor a number")  # noqa: TRY004  as above
        numbers[name] = number
    return numbers
