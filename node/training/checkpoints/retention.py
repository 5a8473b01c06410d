"""Which checkpoints are kept: the newest ones, and some of the older for looking back."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retention:
    """last: how many of the newest; every: those of rounds divisible by this are kept for ever, 0: none is.

    raises: ValueError
    """

    last: int = 3
    every: int = 0

    def __post_init__(self) -> None:
        if self.last < 1 or self.every < 0:
            raise ValueError(f"keep the last {self.last} and every {self.every}: at least the last 1 is needed")

    def superfluous(self, rounds: Sequence[int]) -> list[int]:
        """Those that may go, oldest first."""
        newest = set(sorted(set(rounds))[-self.last :])
        return [
            round_
            for round_ in sorted(set(rounds))
            if round_ not in newest and not (self.every and round_ >= 0 and round_ % self.every == 0)
        ]
