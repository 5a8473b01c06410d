"""Which works run together next: a pure function over the queue.

Iteration-level scheduling: every batch takes one step of each session that generates, and then pieces of prompts
under a token budget, so that a long prompt delays the others by one piece and not by its length. A batch has one span
of units.
source: Yu et al., Orca (OSDI 2022); Agrawal et al., Sarathi-Serve, arXiv:2403.02310
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
    priority: float = 1.0  # waits count this much more; from the ledger


@dataclass(frozen=True, slots=True)
class Take:
    key: int
    count: int  # positions, from the first that is left


@dataclass(frozen=True, slots=True)
class Batch:
    span: Span
    takes: tuple[Take, ...]


def next_batch(waiting: Sequence[Waiting], turn: int, tokens: int = BATCH_TOKENS) -> Batch | None:
    """The next batch, or None when nothing waits.

    turn: number of this batch. What waited longest (times its priority) decides the span; since serving a work starts
    its wait anew, spans and prompts take turns, and nothing starves.
    """
    if not waiting:
        return None

    def urgency(work: Waiting) -> tuple[float, int]:
        return -(turn - work.turn + 1) * work.priority, work.key

    ordered = sorted(waiting, key=urgency) if len(waiting) > 1 else waiting
    span = ordered[0].span
    group = [work for work in ordered if work.span == span][:MOST_SESSIONS]
    takes = [Take(work.key, 1) for work in group if work.left == 1]
    room = max(tokens - len(takes), tokens // LEAST_SHARE, 1)
    for work in group:
        if work.left > 1 and room > 0:
            takes.append(Take(work.key, min(work.left, room)))
            room -= takes[-1].count
    return Batch(span, tuple(takes))
