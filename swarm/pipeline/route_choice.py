"""Which replica of each stage a microbatch goes through: the one with the least to do, then the nearest."""

from collections.abc import Collection, Iterable
from typing import Protocol, TypeVar

from shoal.swarm.identifiers import PeerId


class Candidate(Protocol):
    @property
    def peer(self) -> PeerId: ...

    @property
    def stage(self) -> int: ...

    @property
    def outstanding(self) -> int: ...

    @property
    def rtt_s(self) -> float: ...


Chosen = TypeVar("Chosen", bound=Candidate)


def best_of(candidates: Iterable[Chosen], stage: int, excluded: Collection[PeerId] = ()) -> Chosen | None:
    """None when the stage has no other replica."""
    found = [each for each in candidates if each.stage == stage and each.peer not in excluded]
    return min(found, key=lambda each: (each.outstanding, each.rtt_s, each.peer), default=None)


def lacking(candidates: Iterable[Candidate], stages: Iterable[int]) -> tuple[int, ...]:
    """Stages without any replica."""
    there = {each.stage for each in candidates}
    return tuple(stage for stage in stages if stage not in there)
