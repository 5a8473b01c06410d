"""What a driver thinks of peers, as routing reads it: so many milliseconds more for whom it trusts less."""

from typing import Protocol

from .identifiers import PeerId


class Standing(Protocol):
    def cost_ms(self, peer: PeerId) -> float:
        """>= 0, added to what a hop at this peer costs."""


class Neutral:
    """Nobody is known better than anybody else."""

    def cost_ms(self, peer: PeerId) -> float:  # noqa: ARG002  `Standing`
        return 0.0
