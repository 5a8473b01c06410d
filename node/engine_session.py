"""A session inside an engine, and the works that it has queued."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from shoal.swarm.errors import ShoalError
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Done, Work
from shoal.swarm.sessions.lanes import MEMBER, Claim
from shoal.swarm.units import Span

from .kv_cache import Reservation

Settle = Callable[[Done | None, ShoalError | None], None]


@dataclass(slots=True)
class Job:
    """One work on its way."""

    key: int
    work: Work
    settle: Settle
    x: torch.Tensor  # (count,) ids or (count, hidden)
    queued_s: float  # clock
    turn: int
    done: int = 0  # positions
    begun_s: float | None = None
    compute_s: float = 0.0
    outputs: list[torch.Tensor] = field(default_factory=list)
    residuals: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class KvRead:
    """keys, values: (L, T, H, D) copies on the CPU"""

    span: Span
    keys: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True, slots=True)
class KvRoom:
    """What a session's cache must be made of. heads, width: 0 where the span has no layers"""

    span: Span
    tokens: int  # reserved
    heads: int
    width: int


@dataclass(slots=True)
class Session:
    span: Span
    room: Reservation
    sampling: Sampling
    history: list[int]
    claim: Claim = MEMBER
    stands_by: bool = False  # its room is free for whoever needs it
    jobs: list[Job] = field(default_factory=list)

    @property
    def expected(self) -> int:
        """Where the next work has to start."""
        return self.room.length + sum(job.work.count - job.done for job in self.jobs)
