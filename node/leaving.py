"""What a node that is asked to stop does for the sessions that run on it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Leave:
    """Have them moved to successors. waits: also for those that find none"""

    limit_s: float
    waits: bool = False


AT_ONCE = Leave(0.0)
