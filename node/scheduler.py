"""Which works run together next: a pure function over the queue.

Iteration-level scheduling: every batch takes one step of each session that generates, and then pieces of prompts
under a token budget, so that a long prompt delays the others by one piece and not by its length. A batch has one span
of units. While members wait, the free lane has its share of each batch and no more.
source: Yu et al., Orca (OSDI 2022); Agrawal et al., Sarathi-Serve, arXiv:2403.02310
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.incentives.lane_shares import free_positions
from shoal.swarm.sessions.lanes import Lane
from shoal.swarm.units import Span

BATCH_TOKENS = 256  # positions of one batch, decode steps included
LEAST_SHARE = 8  # one in so many of a batch's positions is for prompts even when decode steps would fill it
MOST_SESSIONS = 256  # of one batch


@dataclass(frozen=True, slots=True)
class Waiting:
    """The part of one work that is still to be computed; of each session only its first work is shown."""

    key: int  # order of arrival
    span: Span
    left: int  # positions
    turn: int  # number of the batch that served it last, or that ran when it came
    rank: float = 0.0  # of its account in the fair queue, least first
    lane: Lane = Lane.EARNED


@dataclass(frozen=True, slots=True)
class Take:
    key: int
    count: int  # positions, from the first that is left


@dataclass(frozen=True, slots=True)
class Batch:
    span: Span
    takes: tuple[Take, ...]


def next_batch(waiting: Sequence[Waiting], tokens: int = BATCH_TOKENS) -> Batch | None:
    """The next batch, or None when nothing waits.

    The account that is next in the fair queue comes first, and its work that waited longest decides the span; being
    served moves an account back and starts the wait of its work anew, so spans and prompts take turns, and nothing
    starves.
    """
    if not waiting:
        return None

    def urgency(work: Waiting) -> tuple[float, int, int]:
        return work.rank, work.turn, work.key

    ordered = sorted(waiting, key=urgency) if len(waiting) > 1 else waiting
    span = ordered[0].span
    group = [work for work in ordered if work.span == span]
    if not any(work.lane is Lane.FREE for work in group) or all(work.lane is Lane.FREE for work in waiting):
        return Batch(span, tuple(_filled(group[:MOST_SESSIONS], tokens)))
    granted = _granted([work for work in group if work.lane is Lane.FREE], free_positions(tokens))
    members = [work for work in group if work.lane is not Lane.FREE][: MOST_SESSIONS - len(granted)]
    return Batch(span, tuple(_filled(members, tokens - sum(take.count for take in granted)) + granted))


def _filled(group: Sequence[Waiting], tokens: int) -> list[Take]:
    """One step for whoever generates, and the room that is left for prompts."""
    takes = [Take(work.key, 1) for work in group if work.left == 1]
    room = max(tokens - len(takes), tokens // LEAST_SHARE, 1)
    for work in group:
        if work.left > 1 and room > 0:
            takes.append(Take(work.key, min(work.left, room)))
            room -= takes[-1].count
    return takes


def _granted(group: Sequence[Waiting], tokens: int) -> list[Take]:
    """Steps and pieces of prompts alike, in their order, as far as they go."""
    takes: list[Take] = []
    for work in group:
        if tokens <= 0:
            break
        takes.append(Take(work.key, min(work.left, tokens)))
        tokens -= takes[-1].count
    return takes
