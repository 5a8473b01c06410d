"""What a driver thinks of peers, as routing reads it: so many milliseconds more for whom it trusts less."""

from typing import Protocol

from shoal.swarm.identifiers import PeerId


class Standing(Protocol):
    def cost_ms(self, peer: PeerId) -> float:
        """>= 0, added to what a hop at this peer costs."""


class KnownStanding(Standing, Protocol):
    """For whoever shows it, too."""

    def shown(self, peer: PeerId) -> float | None:
        """In [0, 1], None when nothing is known of anybody."""

    def remark(self, peer: PeerId) -> str:
        """In a word or two, what speaks against a peer; an empty string when nothing does."""


class Neutral:
    """Nobody is known better than anybody else."""

    def cost_ms(self, peer: PeerId) -> float:
        return 0.0

    def shown(self, peer: PeerId) -> float | None:
        return None

    def remark(self, peer: PeerId) -> str:
        return ""
