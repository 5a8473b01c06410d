"""The seam between a pipeline's protocol and what computes: tensors are bytes here, as they travel.

Shapes: B sequences of S tokens, D hidden. A tensor is a `compression.activations` of (B * S, D).
"""

from dataclasses import dataclass
from typing import Protocol

from shoal.swarm.identifiers import PeerId


@dataclass(frozen=True, slots=True)
class Microbatch:
    """number: within the step of its driver; targets, positions: (B, S) int32 little endian, positions may be empty"""

    driver: PeerId
    step: int
    number: int
    sequences: int
    learns: bool
    targets: bytes
    positions: bytes


class Counting(Protocol):
    """How a gradient is to be taken up: `adds` to the sum of the step or not; `fresh`: throw away what lies there."""

    @property
    def adds(self) -> bool: ...

    @property
    def fresh(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Count:
    adds: bool
    fresh: bool = False


class StageCompute(Protocol):
    """Nothing of a microbatch is kept between two calls: the forward pass is computed again for the backward pass."""

    def tensor_bytes(self, sequences: int) -> int:
        """Of the tensor that comes in, exactly. raises: BadActivation for more sequences than were agreed on"""

    async def forward(self, work: Microbatch, tensor: bytes) -> bytes:
        """The layers of this stage. raises: BadActivation"""

    async def backward(self, work: Microbatch, tensor: bytes, gradient: bytes, count: Counting) -> bytes:
        """tensor: what came in; gradient: of what went out. returns: of what came in. raises: BadActivation"""

    async def loss(self, work: Microbatch, tensor: bytes, count: Counting) -> tuple[float, bytes]:
        """For the stage with the head. returns: mean loss in nats a token, and the gradient, b"" unless it learns

        raises: BadActivation
        """

    async def square(self, sequences: int) -> float:
        """The sum becomes a mean over its sequences. returns: the square of its norm; not finite for a broken one"""

    async def discard(self) -> None:
        """Throw the sum away."""
