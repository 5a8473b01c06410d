"""Token buckets by peer: what one peer may cost us, however much it sends, and all strangers together."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

Owner = TypeVar("Owner")


@dataclass(frozen=True, slots=True)
class Allowance:
    burst: float
    per_s: float


class Quotas(Generic[Owner]):
    """most: owners that are remembered; the one that took longest ago is forgotten, which gives it its burst back"""

    def __init__(self, allowance: Allowance, most: int = 8192) -> None:
        self._allowance = allowance
        self._most = most
        self._left: OrderedDict[Owner, tuple[float, float]] = OrderedDict()  # tokens, and when that was

    def take(self, owner: Owner, now: float, tokens: float = 1.0) -> bool:
        """Whether the owner still had so much; nothing is taken when it had not."""
        allowance = self._allowance
        left, since = self._left.pop(owner, (allowance.burst, now))
        left = min(allowance.burst, left + max(0.0, now - since) * allowance.per_s)
        granted = left >= tokens
        self._left[owner] = (left - tokens if granted else left, now)
        if len(self._left) > self._most:
            self._left.popitem(last=False)
        return granted
