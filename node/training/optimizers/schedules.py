"""Learning rate over steps: warm-up, then constant, cosine or warm-up-stable-decay.

Where the rate reaches parameters that all replicas hold alike, it must be the same bits everywhere. So only additions,
multiplications and divisions of doubles are used, which every machine rounds alike; the C library's cosine is not.
"""

from typing import Literal

import msgspec

_PI = 3.141592653589793


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A factor for the peak learning rate, by step from 0.

    warmup: steps of linear rise; total: steps after which the factor stays at `final`
    decay: share of `total` that `wsd` spends on its linear fall
    source: Hu et al., MiniCPM (warm-up-stable-decay), arXiv:2404.06395
    """

    kind: Literal["constant", "cosine", "wsd"] = "constant"
    warmup: int = 0
    total: int = 0
    final: float = 0.1
    decay: float = 0.2

    def check(self) -> None:
        """raises: ValueError that names the key"""
        if self.warmup < 0:
            raise ValueError(f"warmup is {self.warmup} steps")
        if self.kind != "constant" and self.total <= self.warmup:
            raise ValueError(f"total is {self.total} steps, which must be more than the {self.warmup} of warmup")
        if not 0 <= self.final <= 1:
            raise ValueError(f"final is {self.final}, not between 0 and 1")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay is {self.decay}, not between 0 and 1")

    def factor(self, step: int) -> float:
        """In (0, 1]; the first step of a warm-up is not lost at zero."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        match self.kind:
            case "constant":
                return 1.0
            case "cosine":
                gone = min(1.0, (step - self.warmup) / (self.total - self.warmup))
                return self.final + (1 - self.final) * 0.5 * (1 + cosine(_PI * gone))
            case "wsd":
                fall = self.decay * self.total
                gone = min(1.0, max(0.0, (step - (self.total - fall)) / fall))
                return 1 - (1 - self.final) * gone


def cosine(angle: float) -> float:
    """cos of 0 to pi, within 1e-12, from additions and multiplications alone."""
    if angle > _PI / 2:
        return -cosine(_PI - angle)
    square, term, total = angle * angle, 1.0, 1.0
    for twice in range(2, 24, 2):
        term *= -square / ((twice - 1) * twice)
        total += term
    return total
