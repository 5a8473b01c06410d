"""Chains: exact covers, minimal cost against brute force, clear errors, and speed with a thousand peers."""

import itertools
import math
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarm.people import MODEL, hosted, plain_record

from shoal.swarm.errors import ModelNotServable, OutOfMemory
from shoal.swarm.identifiers import PeerId
from shoal.swarm.records import NodeRecord
from shoal.swarm.routing import chain_choice as routing
from shoal.swarm.routing.chain_choice import DEFAULT_RTT_MS, QUEUE_FACTOR, Chain, name_missing, plan_chain
from shoal.swarm.units import Span

LAYERS = 4
ALL = Span(0, LAYERS + 2)
A, B, C, D = map(PeerId, "abcd")


def holder(peer: str, start: int, stop: int, step_ms: float = 10.0, **changes: object) -> NodeRecord:
    rtt_ms = changes.pop("rtt_ms", {})
    return plain_record(peer, hosted(Span(start, stop), LAYERS, step_ms, **changes), rtt_ms=rtt_ms)


def route(chain: Chain) -> list[tuple[str, int, int]]:
    return [(hop.peer, hop.span.start, hop.span.stop) for hop in chain.hops]


# Brute force: every way to cut the span and to fill the parts, priced by the rules in words of their own.


def price(records: list[NodeRecord], parts: list[tuple[NodeRecord, Span]], me: dict[PeerId, float]) -> float:
    def link(one: NodeRecord, other: NodeRecord) -> float:
        known = [r for r in (one.rtt_ms.get(other.peer), other.rtt_ms.get(one.peer)) if r is not None]
        return max(known, default=DEFAULT_RTT_MS) / 2

    total = me.get(parts[0][0].peer, DEFAULT_RTT_MS) / 2 + me.get(parts[-1][0].peer, DEFAULT_RTT_MS) / 2
    for record, span in parts:
        h = record.hosted[0]
        total += h.step_ms * len(span) / len(h.span) * (1 + QUEUE_FACTOR * h.queue)
    return total + sum(link(one, other) for (one, _), (other, _) in itertools.pairwise(parts))


def cheapest_by_brute_force(
    records: list[NodeRecord], me: dict[PeerId, float], max_hops: int, dtype: str | None
) -> float:
    best = math.inf
    for count in range(1, max_hops + 1):
        for cuts in itertools.combinations(range(1, ALL.stop), count - 1):
            spans = [Span(i, j) for i, j in itertools.pairwise((0, *cuts, ALL.stop))]
            for chosen in itertools.permutations(records, count):
                dtypes = {r.hosted[0].dtype for r in chosen}
                fits = all(r.hosted[0].span.covers(span) for r, span in zip(chosen, spans, strict=True))
                if fits and len(dtypes) == 1 and dtype in (None, *dtypes):
                    best = min(best, price(records, list(zip(chosen, spans, strict=True)), me))
    return best


@st.composite
def small_swarms(draw: st.DrawFn) -> list[NodeRecord]:
    peers = [PeerId(name) for name in "abcde"[: draw(st.integers(1, 5))]]
    times = st.sampled_from([0.0, 1.0, 5.0, 20.0, 60.0])
    records = []
    for peer in peers:
        start = draw(st.integers(0, ALL.stop - 1))
        stop = draw(st.integers(start + 1, ALL.stop))
        if draw(st.booleans()):
            start, stop = 0, ALL.stop
        others = [other for other in peers if other != peer]
        rtt_ms = draw(st.dictionaries(st.sampled_from(others), times)) if others else {}
        dtype, queue = draw(st.sampled_from(["float32", "float32", "bfloat16"])), draw(st.integers(0, 3))
        step_ms = draw(st.sampled_from([1.0, 10.0, 100.0]))
        records.append(holder(peer, start, stop, step_ms, rtt_ms=rtt_ms, dtype=dtype, queue=queue))
    return records


@given(small_swarms(), st.dictionaries(st.sampled_from("abcde"), st.floats(0, 100)), st.integers(1, 4))
def test_no_chain_is_cheaper_than_the_one_found(
    records: list[NodeRecord], me: dict[PeerId, float], max_hops: int
) -> None:
    least_ms = cheapest_by_brute_force(records, me, max_hops, None)
    try:
        chain = plan_chain(records, MODEL, span=ALL, me_rtt_ms=me, max_hops=max_hops)
    except ModelNotServable:
        assert least_ms == math.inf
        return
    assert chain.cost_ms == pytest.approx(least_ms)
    by_peer = {r.peer: r for r in records}
    parts = [(by_peer[hop.peer], hop.span) for hop in chain.hops]
    assert price(records, parts, me) == pytest.approx(chain.cost_ms)
    assert len(parts) <= max_hops


@given(small_swarms(), st.sets(st.sampled_from("abcde")), st.sets(st.sampled_from("abcde")), st.randoms())
def test_a_chain_covers_exactly_by_allowed_peers_once_each_in_one_dtype(
    records: list[NodeRecord], exclude: set[PeerId], trust: set[PeerId], generator: random.Random
) -> None:
    start = generator.randint(0, ALL.stop - 1)
    need = Span(start, generator.randint(start + 1, ALL.stop))
    try:
        chain = plan_chain(records, MODEL, span=need, exclude=exclude, trust=trust)
    except ModelNotServable:
        return
    assert chain.span == need
    for one, other in itertools.pairwise(chain.hops):
        assert one.span.stop == other.span.start
    peers = [hop.peer for hop in chain.hops]
    assert len(set(peers)) == len(peers)
    assert not set(peers) & exclude
    assert not trust or set(peers) <= trust
    by_peer = {r.peer: r.hosted[0] for r in records}
    for hop in chain.hops:
        assert by_peer[hop.peer].span.covers(hop.span)
        assert by_peer[hop.peer].dtype == chain.dtype


@given(small_swarms(), st.randoms())
def test_the_order_of_the_records_does_not_matter(records: list[NodeRecord], generator: random.Random) -> None:
    def plan(listed: list[NodeRecord]) -> Chain | str:
        try:
            return plan_chain(listed, MODEL, span=ALL)
        except ModelNotServable as error:
            return str(error)

    shuffled = list(records)
    generator.shuffle(shuffled)
    assert plan(shuffled) == plan(records)


def test_a_peer_that_is_fast_at_the_ends_and_slow_in_the_middle_is_used_once() -> None:
    """The plain shortest path would go a, b, a."""
    records = [
        holder("a", 0, 6, 600.0, rtt_ms={B: 1.0}),
        holder("b", 2, 4, 2.0, rtt_ms={A: 1.0}),
        holder("c", 4, 6, 250.0),
    ]
    me = {A: 1.0, B: 1.0, C: 1.0}
    chain = plan_chain(records, MODEL, span=ALL, me_rtt_ms=me)
    assert route(chain) == [("a", 0, 2), ("b", 2, 4), ("c", 4, 6)]
    assert chain.cost_ms == pytest.approx(cheapest_by_brute_force(records, me, 4, None))


def test_a_busy_or_far_or_failing_peer_is_avoided() -> None:
    quiet, busy = holder("a", 0, 6), holder("b", 0, 6, 8.0, queue=9)
    assert route(plan_chain([quiet, busy], MODEL, span=ALL)) == [("a", 0, 6)]
    assert route(plan_chain([quiet, busy], MODEL, span=ALL, me_rtt_ms={A: 90.0, B: 1.0})) == [("b", 0, 6)]
    assert route(plan_chain([quiet, busy], MODEL, span=ALL, penalties_ms={A: 50.0})) == [("b", 0, 6)]
    assert route(plan_chain([quiet, busy], MODEL, span=ALL, me=B, me_rtt_ms={A: 5.0})) == [("a", 0, 6)]
    assert route(plan_chain([quiet, busy], MODEL, span=ALL, me=B)) == [("b", 0, 6)]


def test_a_peer_cannot_make_itself_near_by_claiming_so() -> None:
    first, liar = holder("a", 0, 3, rtt_ms={B: 80.0, C: 30.0}), holder("b", 3, 6, rtt_ms={A: 0.01})
    honest = holder("c", 3, 6, rtt_ms={A: 30.0})
    assert route(plan_chain([first, liar, honest], MODEL, span=ALL))[1] == ("c", 3, 6)


def test_dtypes_are_not_mixed_and_the_cheaper_one_is_chosen() -> None:
    records = [
        holder("a", 0, 6, 20.0, dtype="float32"),
        holder("b", 0, 3, 5.0, dtype="bfloat16"),
        holder("c", 3, 6, 5.0, dtype="bfloat16"),
    ]
    chain = plan_chain(records, MODEL, span=ALL)
    assert (chain.dtype, len(chain.hops)) == ("float32", 1)
    nearer = plan_chain(records, MODEL, span=ALL, me_rtt_ms={B: 0.0, C: 0.0})
    assert (nearer.dtype, len(nearer.hops)) == ("bfloat16", 2)
    assert plan_chain(records, MODEL, span=ALL, dtype="bfloat16").dtype == "bfloat16"
    with pytest.raises(ModelNotServable, match=r"no peer holds layers 2:4, head of novels-6m in bfloat16"):
        plan_chain(records[:2], MODEL, span=ALL, dtype="bfloat16")


@pytest.mark.parametrize(
    ("spans", "text"),
    [
        ([(0, 3)], "no peer holds layers 2:4, head of novels-6m"),
        ([(0, 3), (4, 6)], "no peer holds layers 2:3 of novels-6m"),
        ([(1, 6)], "no peer holds embed of novels-6m"),
        ([(2, 5)], "no peer holds embed, layers 0:1, head of novels-6m"),
    ],
)
def test_what_is_missing_is_named(spans: list[tuple[int, int]], text: str) -> None:
    records = [holder(f"p{i}", *span) for i, span in enumerate(spans)]
    with pytest.raises(ModelNotServable) as caught:
        plan_chain(records, MODEL, span=ALL)
    assert str(caught.value) == text
    assert caught.value.exit_code == 5


def test_a_model_that_nobody_holds_says_so() -> None:
    with pytest.raises(ModelNotServable, match=f"holds any part of model {MODEL[:12]}"):
        plan_chain([], MODEL, span=ALL)


def test_a_gap_made_by_the_client_itself_is_told_apart() -> None:
    records = [holder("a", 0, 6)]
    for limits in ({"exclude": {A}}, {"trust": {B}}):
        with pytest.raises(ModelNotServable, match="no peer that is allowed and not excluded holds embed, layers 0:4"):
            plan_chain(records, MODEL, span=ALL, **limits)  # type: ignore[arg-type]


def test_too_few_hops_are_named() -> None:
    records = [holder("a", 0, 2), holder("b", 2, 4), holder("c", 4, 6)]
    with pytest.raises(ModelNotServable, match="needs at least 3 hops, but max_hops is 2"):
        plan_chain(records, MODEL, span=ALL, max_hops=2)
    assert len(plan_chain(records, MODEL, span=ALL, max_hops=3).hops) == 3


def test_a_cover_that_needs_one_peer_twice_is_refused_in_words() -> None:
    both = plain_record("a", hosted(Span(0, 2), LAYERS), hosted(Span(4, 6), LAYERS))
    with pytest.raises(ModelNotServable, match="without using one peer twice"):
        plan_chain([both, holder("b", 2, 4)], MODEL, span=ALL)


def test_full_holders_are_not_the_same_as_missing_ones() -> None:
    records = [holder("a", 0, 6, free_tokens=10), holder("b", 0, 3, free_tokens=900)]
    with pytest.raises(OutOfMemory, match=r"every holder of layers 2:4, head .* is full: 100 tokens.*at most 10"):
        plan_chain(records, MODEL, span=ALL, need_tokens=100)
    assert plan_chain(records, MODEL, span=ALL, need_tokens=10).hops


def test_a_lost_hop_is_replaced_between_its_neighbours_by_somebody_new() -> None:
    records = [
        holder("a", 0, 2, rtt_ms={B: 10.0, D: 2.0}),
        holder("c", 4, 6, rtt_ms={D: 2.0}),
        holder("d", 2, 4, 12.0),
        holder("e", 1, 6, 1.0, rtt_ms={A: 300.0, C: 300.0}),
    ]
    (stand_in,) = plan_chain(records, MODEL, span=Span(2, 4), exclude={A, B, C}, first_from=A, last_to=C).hops
    assert (stand_in.peer, stand_in.span) == ("d", Span(2, 4))
    with pytest.raises(ModelNotServable, match="no peer that is allowed and not excluded holds layers 1:3"):
        plan_chain(records, MODEL, span=Span(2, 4), exclude={A, B, C, D, PeerId("e")}, first_from=A, last_to=C)


def test_part_of_a_model_is_planned_for_a_driver_that_keeps_the_rest() -> None:
    chain = plan_chain([holder("a", 1, 4), holder("b", 3, 5)], MODEL, span=Span(1, 5))
    assert chain.span == Span(1, 5)
    assert {hop.peer for hop in chain.hops} == {"a", "b"}


def test_missing_parts_are_listed_in_order() -> None:
    assert name_missing([Span(0, 1), Span(3, 6)], LAYERS) == "embed, layers 2:4, head"
    assert name_missing([], LAYERS) == ""


def thousand(layers: int, generator: random.Random, lengths: tuple[int, int]) -> list[NodeRecord]:
    peers = [PeerId(f"peer{number:04d}") for number in range(1000)]
    records = []
    for peer in peers:
        length = generator.randint(*lengths)
        start = generator.randint(0, layers + 2 - length)
        rtt_ms = {other: generator.uniform(1, 120) for other in generator.sample(peers, 8)}
        span = hosted(Span(start, start + length), layers, generator.uniform(1, 4) * length)
        records.append(plain_record(peer, span, rtt_ms=rtt_ms))
    return records


@pytest.mark.parametrize(("layers", "lengths"), [(32, (4, 12)), (32, (34, 34)), (80, (8, 40))])
def test_a_chain_among_a_thousand_peers_is_found_in_milliseconds(layers: int, lengths: tuple[int, int]) -> None:
    records = thousand(layers, random.Random(layers), lengths)
    me = {r.peer: 10.0 for r in records[:64]}
    took_s = []
    for _ in range(5):
        began = time.thread_time()  # of this thread alone: the machine may be busy
        chain = plan_chain(records, MODEL, span=Span(0, layers + 2), me_rtt_ms=me, max_hops=16)
        took_s.append(time.thread_time() - began)
    assert chain.span == Span(0, layers + 2)
    assert min(took_s) < 0.05


def test_looking_at_the_promising_peers_only_costs_little() -> None:
    """Against the exact search, which looks at everybody."""
    for seed in range(3):
        records = thousand(16, random.Random(seed), (3, 9))[:300]
        quick = plan_chain(records, MODEL, span=Span(0, 18), max_hops=16)
        per_unit, routing.chain_search.PER_UNIT = routing.chain_search.PER_UNIT, 1000
        try:
            exact = plan_chain(records, MODEL, span=Span(0, 18), max_hops=16)
        finally:
            routing.chain_search.PER_UNIT = per_unit
        assert exact.cost_ms <= quick.cost_ms <= 1.15 * exact.cost_ms
