"""Which peers carry a session: the cheapest chain over (unit boundary, peer).

Cost of a hop: its share of the measured step time, longer while sessions queue there. Cost between hops: half a round
trip, measured by either side (the larger counts when both measured: a peer cannot make itself near), else a guess.
All pure: the same records give the same chain on every machine.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from shoal.swarm.errors import ModelNotServable, OutOfMemory
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.records import Hosted, NodeRecord
from shoal.swarm.units import Span, has_embed, has_head, layer_range, missing

from . import chain_search
from .cheapest_path import Candidate, Network

DEFAULT_RTT_MS = 40.0  # between peers that nobody has measured
QUEUE_FACTOR = 0.1  # a batch of n sessions is this much slower per further session
DEFAULT_MAX_HOPS = 8
_NOBODY: frozenset[PeerId] = frozenset()


@dataclass(frozen=True, slots=True)
class Hop:
    peer: PeerId
    span: Span
    step_ms: float  # expected compute of one step over this span, queue included


@dataclass(frozen=True, slots=True)
class Chain:
    """hops: in order, covering the span that was asked for without gap or overlap, no peer twice."""

    model: ModelId
    layers: int
    dtype: str
    hops: tuple[Hop, ...]
    cost_ms: float  # expected, for one step

    @property
    def span(self) -> Span:
        return Span(self.hops[0].span.start, self.hops[-1].span.stop)


def plan_chain(
    records: Iterable[NodeRecord],
    model: ModelId,
    *,
    span: Span,
    dtype: str | None = None,
    me: PeerId | None = None,
    me_rtt_ms: Mapping[PeerId, float] | None = None,
    exclude: Collection[PeerId] = _NOBODY,
    trust: Collection[PeerId] = _NOBODY,
    max_hops: int = DEFAULT_MAX_HOPS,
    penalties_ms: Mapping[PeerId, float] | None = None,
    need_tokens: int = 0,
    first_from: PeerId | None = None,
    last_to: PeerId | None = None,
) -> Chain:
    """The cheapest chain that covers `span`.

    dtype: None takes the dtype with the cheapest chain; a chain never mixes dtypes
    me: the driver's own PeerID, when it is a node too: no link to itself
    me_rtt_ms: the driver's measured round trips, for the first and the last leg
    trust: when not empty, only these peers are used
    penalties_ms: extra cost of a peer, for example after a failure, or by its standing
    need_tokens: KV room that each hop must have
    first_from, last_to: the peers before and after the span, when these are not the driver

    raises: ModelNotServable naming the missing layers, or that `max_hops` is too few; OutOfMemory when all
    holders are full
    """
    listed = sorted(records, key=lambda record: record.peer)
    allowed = [r for r in listed if r.peer not in exclude and (not trust or r.peer in trust)]
    hosted = [(r, h) for r in allowed for h in r.hosted if h.model == model and h.span.intersects(span)]
    with_room = [(r, h) for r, h in hosted if h.free_tokens >= need_tokens]
    own_rtt_ms = {**(me_rtt_ms or {}), **({me: 0.0} if me is not None else {})}
    network = Network({r.peer: r.rtt_ms for r in listed}, own_rtt_ms, DEFAULT_RTT_MS, first_from, last_to)
    best: Chain | None = None
    too_long: int | None = None
    for choice in sorted({h.dtype for _, h in with_room}) if dtype is None else [dtype]:
        fitting = [(r, h) for r, h in with_room if h.dtype == choice]
        candidates = [_candidate(r.peer, h, span, penalties_ms or {}) for r, h in fitting]
        least = chain_search.fewest_hops(candidates, span)
        if least is None:
            continue
        found = chain_search.cheapest_chain(candidates, span, network, max_hops) if least <= max_hops else None
        if found is None:
            too_long = least if too_long is None else min(least, too_long)
        elif best is None or found.cost_ms < best.cost_ms:
            layers = fitting[0][1].layers
            hops = tuple(Hop(candidates[i].peer, part, candidates[i].unit_ms * len(part)) for i, part in found.parts)
            best = Chain(model, layers, choice, hops, found.cost_ms)
    if best is not None:
        return best
    if too_long is not None:
        if too_long > max_hops:
            raise ModelNotServable(f"a chain needs at least {too_long} hops, but max_hops is {max_hops}")
        raise ModelNotServable(f"no chain of at most {max_hops} hops without using one peer twice")
    raise _why_not(model, span, dtype, hosted, with_room, listed, need_tokens)


def name_missing(gaps: Iterable[Span], layers: int) -> str:
    """`embed`, `layers 4:8, head`: for "no peer holds ..."."""
    names = []
    for gap in gaps:
        inside = layer_range(gap, layers)
        names += ["embed"] if has_embed(gap) else []
        names += [f"layers {inside.start}:{inside.stop}"] if inside else []
        names += ["head"] if has_head(gap, layers) else []
    return ", ".join(names)


def _candidate(peer: PeerId, hosted: Hosted, need: Span, penalties_ms: Mapping[PeerId, float]) -> Candidate:
    unit_ms = hosted.step_ms / len(hosted.span) * (1 + QUEUE_FACTOR * hosted.queue)
    start, stop = max(hosted.span.start, need.start), min(hosted.span.stop, need.stop)
    return Candidate(peer, start, stop, unit_ms, max(0.0, penalties_ms.get(peer, 0.0)))


def _why_not(
    model: ModelId,
    span: Span,
    dtype: str | None,
    hosted: Sequence[tuple[NodeRecord, Hosted]],
    with_room: Sequence[tuple[NodeRecord, Hosted]],
    listed: Sequence[NodeRecord],
    need_tokens: int,
) -> ModelNotServable | OutOfMemory:
    """The error that says what is missing: in the dtype that lacks least, among the peers that may be used."""
    everywhere = [h for r in listed for h in r.hosted if h.model == model]
    if not everywhere:
        return ModelNotServable(f"no peer of this swarm holds any part of model {model[:12]}")
    name, layers = everywhere[0].name, everywhere[0].layers
    gaps, kind = _smallest_gap(span, [h for _, h in hosted], dtype)
    if not gaps:
        room, _ = _smallest_gap(span, [h for _, h in with_room], dtype)
        where = [h for _, h in hosted if any(h.span.intersects(gap) for gap in room)]
        most = max((h.free_tokens for h in where), default=0)
        return OutOfMemory(
            f"every holder of {name_missing(room, layers)} of {name} is full: {need_tokens} tokens of KV cache "
            f"are needed, at most {most} are free; try again later or with a shorter text"
        )
    who = "no peer holds"
    if not missing(span, [h.span for h in everywhere if kind in (None, h.dtype)]):
        who = "no peer that is allowed and not excluded holds"
    in_kind = f" in {kind}" if kind and {h.dtype for h in everywhere} != {kind} else ""
    return ModelNotServable(f"{who} {name_missing(gaps, layers)} of {name}{in_kind}")


def _smallest_gap(span: Span, hosted: Sequence[Hosted], dtype: str | None) -> tuple[list[Span], str | None]:
    """What no holder covers, in the dtype that lacks least. dtype None in the result: there is no holder at all."""
    kinds = sorted({h.dtype for h in hosted}) if dtype is None else [dtype]
    options = [(missing(span, [h.span for h in hosted if h.dtype == kind]), kind) for kind in kinds]
    if not options:
        return [span], dtype
    return min(options, key=lambda option: sum(map(len, option[0])))
