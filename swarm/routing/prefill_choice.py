"""Whether a prompt is better computed by other peers than the chain that will decode, and by which.

A chain is chosen for the time of one step, in which a round trip counts for much; a long prompt wants arithmetic. A
peer that computes prompts much faster may do so for the chain, if the KV comes over the link in less time than is
saved. Records say how long a position of a prompt takes at a peer and how many bytes its KV has; how fast links are is
what peers have seen of theirs. All pure: the same records give the same choice on every machine.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from shoal.compression.kv_levels import CHUNK_TOKENS
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.records import Hosted, NodeRecord
from shoal.swarm.units import Span, layer_range

from .chain_choice import DEFAULT_RTT_MS, QUEUE_FACTOR

LEAST_SAVED_S = 0.3
WORTH = 0.7  # of what the chain would take by itself: estimates are not that good
DEFAULT_LINK_BYTE_S = 12.5e6  # where neither end has seen its link at work
CODED_BYTE_S = {"lossless": 200e6, "default": 80e6}  # of KV in memory, to a chunk or back, on one core
SHARES = {"lossless": {2: 0.68, 4: 0.84}, "default": {2: 0.09, 4: 0.045}}  # of the KV in memory, by bytes a number
OWN_FEED, APART_FEED = 256, 128  # positions that a hop computes at once of a prompt
TRUSTED_MS = 100.0  # who costs more than this by its standing, or for a failure, does not prefill
MOST_SPLIT = 6  # hops of a chain up to which every way to cut it is looked at


@dataclass(frozen=True, slots=True)
class PrefillHop:
    peer: PeerId
    span: Span


@dataclass(frozen=True, slots=True)
class PrefillChoice:
    """hops: over embed and all layers. Expected, in seconds, each 0 where a record does not say how fast a peer is:
    apart_s and own_s until the prompt is computed, with them and without; the others as in `chain_plan.PrefillPlan`
    """

    hops: tuple[PrefillHop, ...]
    apart_s: float
    own_s: float
    first_s: float
    chunk_s: float
    own_chunk_s: float
    exact: bool  # nothing is lost on the way

    @property
    def is_worth_it(self) -> bool:
        known = self.apart_s > 0 and self.own_s > 0
        return known and self.apart_s < WORTH * self.own_s and self.own_s - self.apart_s > LEAST_SAVED_S


def choose_prefill(
    records: Iterable[NodeRecord],
    model: ModelId,
    dtype: str,
    chain: Sequence[tuple[PeerId, Span]],
    positions: int,
    *,
    exact: bool = True,
    named: PeerId | None = None,
    me_rtt_ms: Mapping[PeerId, float] | None = None,
    exclude: Collection[PeerId] = frozenset(),
    trust: Collection[PeerId] = frozenset(),
    penalties_ms: Mapping[PeerId, float] | None = None,
    slice_tokens: int | None = None,
) -> PrefillChoice | None:
    """The fastest second chain for the first `positions` of a prompt; None when nobody but the chain itself could.

    chain: that will decode, in order. exact: nothing may be lost; else what is sooner there. named: this peer has to be
    in it, beside hops of the chain for what it lacks; whether it is worth it is not asked. slice_tokens: of a prompt
    that is paid piece by piece
    """
    by_peer = {record.peer: record for record in records}
    allowed = {
        peer
        for peer in by_peer
        if peer not in exclude
        and (not trust or peer in trust)
        and (peer == named or (penalties_ms or {}).get(peer, 0.0) <= TRUSTED_MS)
    }
    if named is not None:
        allowed &= {named, *(peer for peer, _ in chain)}
    layers = chain[-1][1].stop - 2
    hosted = {
        peer: item
        for peer in sorted(allowed)
        if (item := _hosting(by_peer[peer], model, layers, dtype, positions)) is not None
    }
    if not hosted:
        return None
    own = _without_head(chain, layers)
    choices = []
    for lossless in sorted({True, exact}):
        world = _World(by_peer, hosted, me_rtt_ms or {}, positions, lossless, slice_tokens)
        ways = [hops for hops in _ways(own, hosted, world, named) if hops != own]
        choices += [world.choice(hops, own) for hops in ways if named is None or named in {peer for peer, _ in hops}]

    def rank(choice: PrefillChoice) -> tuple[int, float]:
        """Who is named does all that it can; a loss has to save as much as another peer has to."""
        seconds = choice.apart_s if choice.exact else choice.apart_s / WORTH
        return -sum(len(hop.span) for hop in choice.hops if hop.peer == named), seconds

    known = [choice for choice in choices if choice.apart_s]
    return min(known or choices, key=rank, default=None)


Parts = list[tuple[PeerId, Span]]


def _hosting(record: NodeRecord, model: ModelId, layers: int, dtype: str, positions: int) -> Hosted | None:
    """layers: of the whole model; a record that says otherwise is false"""
    of_model = [h for h in record.hosted if (h.model, h.layers, h.dtype) == (model, layers, dtype)]
    fitting = [h for h in of_model if h.free_tokens >= positions]
    return max(fitting, key=lambda hosted: len(hosted.span), default=None)


def _without_head(chain: Iterable[tuple[PeerId, Span]], layers: int) -> Parts:
    """Its hops without the head, which a prompt needs for its last position only."""
    cut = [(peer, span.start, min(span.stop, layers + 1)) for peer, span in chain]
    return [(peer, Span(start, stop)) for peer, start, stop in cut if start < stop]


def _ways(own: Parts, hosted: Mapping[PeerId, Hosted], world: "_World", named: PeerId | None) -> Iterator[Parts]:
    """Chains whose hops each take all layers of some hops of the decoding chain, the best peer for each."""
    count = len(own)
    for cuts in range(1 << max(0, count - 1)) if count <= MOST_SPLIT else (0, (1 << (count - 1)) - 1):
        edges = [0, *(at + 1 for at in range(count - 1) if cuts >> at & 1), count]
        hops: Parts = []
        for first, stop in pairwise(edges):
            span = Span(own[first][1].start, own[stop - 1][1].stop)
            used = {peer for peer, _ in hops}  # a peer does one thing at a time
            able = [peer for peer, item in sorted(hosted.items()) if item.span.covers(span) and peer not in used]
            if named in able:
                able = [named]
            elif named is not None:  # who of the chain is there anyway
                able = [peer for peer in able if stop - first == 1 and peer == own[first][0]]
            if not able:
                break
            receivers = own[first:stop]
            hops.append((min(able, key=lambda peer: world.alone_s(peer, span, receivers)), span))
        else:
            yield hops


@dataclass(frozen=True, slots=True)
class _World:
    """What records say of pace and distance. Times of a position are 0 where a record is silent."""

    records: Mapping[PeerId, NodeRecord]
    hosted: Mapping[PeerId, Hosted]
    me_rtt_ms: Mapping[PeerId, float]
    positions: int
    exact: bool
    slice_tokens: int | None

    def compute_s(self, peer: PeerId, span: Span) -> float:
        """Of one position."""
        item = self._item(peer)
        if item is None:
            return 0.0
        return item.prefill_ms / 1e3 * len(span) / len(item.span) * (1 + QUEUE_FACTOR * item.queue)

    def _item(self, peer: PeerId) -> Hosted | None:
        """A decoding hop may have no room left for a second session, and has a pace all the same."""
        if peer in self.hosted:
            return self.hosted[peer]
        model = next(iter(self.hosted.values())).model
        record = self.records.get(peer)
        return next((item for item in record.hosted if item.model == model), None) if record is not None else None

    def rtt_s(self, one: PeerId, other: PeerId) -> float:
        if one == other:
            return 0.0
        measured = [
            self.records[a].rtt_ms[b]
            for a, b in ((one, other), (other, one))
            if a in self.records and b in self.records[a].rtt_ms
        ]
        return max(measured, default=DEFAULT_RTT_MS) / 1e3

    def mine_s(self, peer: PeerId) -> float:
        """Driver and back."""
        return self.me_rtt_ms.get(peer, DEFAULT_RTT_MS) / 1e3

    def line_byte_s(self, *peers: PeerId) -> float:
        """Of a link between peers: the slowest that any of them has seen of its own."""
        seen = [self.records[peer].link_byte_s for peer in peers if peer in self.records]
        return min((speed for speed in seen if speed), default=DEFAULT_LINK_BYTE_S)

    def kv_bytes(self, sender: PeerId, span: Span) -> float:
        """Of a position, in memory."""
        item = self.hosted[sender]
        held = len(layer_range(item.span, item.layers))
        return item.kv_bytes * len(layer_range(span, item.layers)) / held if held else 0.0

    @property
    def level(self) -> Literal["lossless", "default"]:
        return "lossless" if self.exact else "default"

    def share(self, sender: PeerId) -> float:
        return SHARES[self.level][4 if self.hosted[sender].dtype == "float32" else 2]

    def stream_s(self, sender: PeerId, receivers: Parts) -> tuple[float, float]:
        """Of a position's KV: coding at the sender, and the slowest of what comes after it."""
        raw = [(peer, self.kv_bytes(sender, span)) for peer, span in receivers]
        away = sum(size for peer, size in raw if peer != sender) * self.share(sender)
        after = [away / max((self.line_byte_s(sender, peer) for peer, _ in raw), default=1.0)]
        for peer, size in raw:
            sent = size * self.share(sender) if peer != sender else 0.0
            after += [size / CODED_BYTE_S[self.level], sent / self.line_byte_s(sender, peer)]
        return sum(size for _, size in raw) / CODED_BYTE_S[self.level], max(after)

    def steady_s(self, sender: PeerId, span: Span, receivers: Parts) -> float:
        """Of a position, when all goes on at once; a CPU that codes computes less meanwhile."""
        coding_s, after_s = self.stream_s(sender, receivers)
        compute_s = self.compute_s(sender, span)
        busy_s = compute_s + coding_s if self.hosted[sender].device == "cpu" else max(compute_s, coding_s)
        return max(busy_s, after_s)

    def alone_s(self, peer: PeerId, span: Span, receivers: Parts) -> float:
        """To find the best peer of a part; one of unknown pace is the last choice."""
        unknown_s = 0.0 if self.compute_s(peer, span) else 1e6
        return self.positions * self.steady_s(peer, span, receivers) + self.mine_s(peer) + unknown_s

    def pipeline_s(self, paces: Sequence[float], feed: int, turn_s: float) -> float:
        """Until all positions are through hops of these paces, in pieces that follow each other."""
        if self.slice_tokens:  # each piece waits for the one before
            slices = -(-self.positions // self.slice_tokens)
            return self.positions * sum(paces) + slices * turn_s
        first = min(self.positions, feed)
        return first * sum(paces) + (self.positions - first) * max(paces)

    def _way_s(self, hops: Parts) -> float:
        """Driver, all hops, driver."""
        between = sum(self.rtt_s(a, b) for (a, _), (b, _) in pairwise(hops))
        return (self.mine_s(hops[0][0]) + between + self.mine_s(hops[-1][0])) / 2

    def choice(self, hops: Parts, own: Parts) -> PrefillChoice:
        own_paces = [self.compute_s(peer, span) for peer, span in own]
        own_s = self.pipeline_s(own_paces, OWN_FEED, self._way_s(own)) + self._way_s(own)
        paces = [self.compute_s(peer, span) for peer, span in hops]
        streams, steady, links = [0.0], [], [0.0]
        for peer, span in hops:
            receivers = [part for part in own if span.covers(part[1])]
            streams.append(sum(self.stream_s(peer, receivers)))
            steady.append(self.steady_s(peer, span, receivers))
            links.append(max(self.rtt_s(peer, other) for other, _ in receivers))
        chunk, way_s = min(self.positions, CHUNK_TOKENS), self._way_s(hops)
        # Both chains open at once; then the cache streams do, and each chunk is told of to the driver and back.
        setup_s = 1.5 * max(links) + max(self.mine_s(peer) for peer, _ in own) + way_s
        first_s = setup_s + min(self.positions, APART_FEED) * sum(paces) + chunk * max(streams)
        computed_s = self.pipeline_s(paces, APART_FEED, way_s) + chunk * max(streams)
        apart_s = setup_s + max(computed_s, self.positions * max(steady)) + sum(own_paces) + self._way_s(own)
        known = all(paces) and all(own_paces) and all(self.hosted[peer].kv_bytes for peer, _ in hops)
        return PrefillChoice(
            hops=tuple(PrefillHop(peer, span) for peer, span in hops),
            apart_s=apart_s if known else 0.0,
            own_s=own_s if known else 0.0,
            first_s=first_s if known else 0.0,
            chunk_s=chunk * max(max(steady), computed_s / self.positions) if known else 0.0,
            own_chunk_s=chunk * max(own_paces),
            exact=self.exact,
        )
