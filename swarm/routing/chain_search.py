"""The cheapest chain under the rules that a plain shortest path does not know: a limit of hops, and no peer twice."""

from collections.abc import Iterable, Mapping, Sequence

from shoal.swarm.identifiers import PeerId
from shoal.swarm.units import Span

from .cheapest_path import Candidate, Network, Part, Path, Pool, cheapest_path

_MAX_BRANCHES = 64
PER_UNIT = 24  # holders of a unit up to which the search is exact


def fewest_hops(candidates: Iterable[Candidate], need: Span) -> int | None:
    """The least number of hops that cover `need`, None when there is a gap: always go as far as anybody reaches."""
    reach: dict[int, int] = {}
    for candidate in candidates:
        reach[candidate.start] = max(reach.get(candidate.start, 0), candidate.stop)
    at, hops, farthest = need.start, 0, need.start
    starts = sorted(reach)
    index = 0
    while at < need.stop:
        while index < len(starts) and starts[index] <= at:
            farthest = max(farthest, reach[starts[index]])
            index += 1
        if farthest <= at:
            return None
        at, hops = farthest, hops + 1
    return hops


def cheapest_chain(candidates: Sequence[Candidate], need: Span, network: Network, max_hops: int) -> Path | None:
    """The cheapest chain of at most `max_hops` hops that uses no peer twice; None when there is none.

    Exact while no unit has more than `PER_UNIT` holders; beyond that only the most promising are looked at.
    """
    pool = _promising(candidates, need, network)
    found = _without_repeats(pool, need, network, max_hops)
    if found is None and len(pool) < len(candidates):  # the hop limit may need those that reach far
        found = _without_repeats(tuple(enumerate(candidates)), need, network, max_hops)
    return found


def _promising(candidates: Sequence[Candidate], need: Span, network: Network) -> Pool:
    """For every unit at least the `PER_UNIT` candidates that look cheapest; all, while there are not more."""

    def promise(item: tuple[int, Candidate]) -> float:
        c = item[1]
        ends_ms = network.end_ms(network.first_from, c.peer) + network.end_ms(network.last_to, c.peer)
        return c.unit_ms + (ends_ms + c.penalty_ms) / (c.stop - c.start)

    held = [0] * need.stop
    chosen = []
    for index, candidate in sorted(enumerate(candidates), key=promise):
        units = range(candidate.start, candidate.stop)
        if min(held[candidate.start : candidate.stop]) < PER_UNIT:
            chosen.append((index, candidate))
            for unit in units:
                held[unit] += 1
    return sorted(chosen)


def _without_repeats(pool: Pool, need: Span, network: Network, max_hops: int) -> Path | None:
    """Peers repeat seldom in a cheapest path; when one does, branch over where that peer may be used."""
    best: Path | None = None
    peers = {index: candidate.peer for index, candidate in pool}
    waiting = [pool]
    for _ in range(_MAX_BRANCHES):
        if not waiting:
            break
        pool = waiting.pop()
        found = cheapest_path(pool, need, network, None)
        if found is not None and len(found.parts) > max_hops:
            found = cheapest_path(pool, need, network, max_hops)
        if found is None or (best is not None and found.cost_ms >= best.cost_ms):
            continue
        repeat = _first_repeat(peers, found.parts)
        if repeat is None:
            best = found
        else:
            waiting += _branches(pool, *repeat)
    return best


def _first_repeat(peers: Mapping[int, PeerId], parts: Sequence[Part]) -> tuple[PeerId, Span] | None:
    """A peer that occurs twice, and the units between its two parts."""
    ended: dict[PeerId, int] = {}
    for index, part in parts:
        peer = peers[index]
        if peer in ended:
            return peer, Span(ended[peer], part.start)
        ended[peer] = part.stop
    return None


def _branches(pool: Pool, peer: PeerId, between: Span) -> list[Pool]:
    """A single part of `peer` ends before `between` does, or begins after it does, or contains it.

    No branch allows the path that repeated the peer; together they allow every path that does not repeat it.
    """
    end = max(candidate.stop for _, candidate in pool)

    def cut(only: bool, start: int, stop: int) -> list[tuple[int, Candidate]]:
        """The candidates of the peer (or those of all others) cut to [start, stop)."""
        pieces = []
        for index, c in pool:
            first, last = max(c.start, start), min(c.stop, stop)
            if (c.peer == peer) == only and first < last:
                pieces.append((index, Candidate(c.peer, first, last, c.unit_ms, c.penalty_ms)))
        return pieces

    others = cut(False, 0, end)
    around = [(i, c) for i, c in cut(True, 0, end) if c.start <= between.start and between.stop <= c.stop]
    return [
        tuple(others + cut(True, 0, between.stop - 1)),
        tuple(others + cut(True, between.start + 1, end)),
        tuple(around + cut(False, 0, between.start) + cut(False, between.stop, end)),
    ]
