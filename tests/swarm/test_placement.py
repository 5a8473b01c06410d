"""Placement: gaps first, then the least held; and no moving about for nothing."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarm.people import MODEL, hosted, plain_record

from shoal.swarm.errors import OutOfMemory
from shoal.swarm.identifiers import PeerId
from shoal.swarm.records import NodeRecord
from shoal.swarm.routing.placement import Budget, Placement, Stay, choose_span, should_move
from shoal.swarm.units import Span, missing, whole

LAYERS = 8
UNITS = LAYERS + 2
ME = PeerId("me")


def holder(peer: str, start: int, stop: int, step_ms: float | None = None) -> NodeRecord:
    step_ms = 2.0 * (stop - start) if step_ms is None else step_ms
    return plain_record(peer, hosted(Span(start, stop), LAYERS, step_ms))


def budget(units: float, **changes: int) -> Budget:
    return Budget(int(units * 100), (100,) * UNITS, **changes)


def choose(records: list[NodeRecord], units: float = 4, seed: int = 0) -> Placement:
    return choose_span(records, MODEL, budget(units), random.Random(seed), ME)


def test_the_first_node_takes_all_that_fits_at_one_end() -> None:
    assert choose([], 10).span == whole(LAYERS)
    ends = {choose([], 4, seed).span for seed in range(20)}
    assert ends == {Span(0, 4), Span(6, 10)}  # never in the middle, which would leave two gaps


def test_a_gap_is_filled_before_anything_else() -> None:
    records = [holder("a", 0, 6, 500.0), holder("b", 9, 10), holder("c", 9, 10)]
    found = choose(records, 3)
    assert found.span == Span(6, 9)
    assert found.reason == "nobody holds layers 5:8"
    assert choose([holder("a", 0, 5), holder("b", 8, 10)], 4).span in (Span(4, 8), Span(5, 9))


def test_without_gaps_the_least_held_units_are_taken() -> None:
    records = [holder("a", 0, 10), holder("b", 0, 6)]
    found = choose(records, 4)
    assert found.span == Span(6, 10)
    assert found.reason == "5:8+head has the fewest holders (1)"


def test_a_slow_holder_counts_for_less_than_a_fast_one() -> None:
    records = [holder("slow", 0, 5, 100.0), holder("fast", 5, 10, 10.0)]
    assert choose(records, 5).span == Span(0, 5)


def test_our_own_old_record_does_not_count() -> None:
    records = [holder("me", 0, 4), holder("a", 4, 10)]
    assert choose(records, 4).span == Span(0, 4)


def test_holders_with_another_dtype_do_not_count_when_ours_is_given() -> None:
    other = plain_record("other", hosted(Span(0, 10), LAYERS, dtype="bfloat16"))
    records = [other, holder("a", 0, 6)]
    found = choose_span(records, MODEL, budget(4), random.Random(0), ME, "float32")
    assert found == Placement(Span(6, 10), "nobody holds layers 5:8, head")
    assert "fewest holders" in choose_span(records, MODEL, budget(4), random.Random(0), ME).reason


def test_the_budget_counts_weights_kv_and_tied_embeddings() -> None:
    uneven = Budget(1000, (400, *[100] * LAYERS, 400), kv_bytes=50)
    assert uneven.cost(Span(0, 3)) == 400 + 2 * 150
    assert all(uneven.cost(span) <= 1000 for span in uneven.longest())
    assert uneven.longest()[0] == Span(0, 5)
    assert Budget(1200, uneven.unit_bytes, 0, 400).longest() == [whole(LAYERS)]
    assert Budget(1199, uneven.unit_bytes, 0, 400).longest() != [whole(LAYERS)]


def test_a_budget_too_small_for_anything_says_what_is_needed() -> None:
    with pytest.raises(OutOfMemory, match=r"5.0 MiB holds no part .* \(0:1\) needs 10.0 MiB") as caught:
        choose_span([], MODEL, Budget(5 << 20, (40 << 20, *[10 << 20] * LAYERS, 40 << 20)), random.Random(0))
    assert caught.value.exit_code == 6


@given(
    st.lists(st.tuples(st.integers(0, UNITS - 1), st.integers(1, UNITS)), max_size=6),
    st.integers(1, UNITS),
    st.integers(0, 3),
)
def test_a_span_always_fits_and_no_other_fills_more_of_the_gaps(
    held: list[tuple[int, int]], units: int, seed: int
) -> None:
    records = [holder(f"p{i}", start, min(start + length, UNITS)) for i, (start, length) in enumerate(held)]
    span = choose(records, units, seed).span
    assert len(span) == units
    gaps = missing(whole(LAYERS), [r.hosted[0].span for r in records])

    def filled(candidate: Span) -> int:
        return sum(any(gap.start <= unit < gap.stop for gap in gaps) for unit in range(candidate.start, candidate.stop))

    assert filled(span) == max(filled(Span(start, start + units)) for start in range(UNITS - units + 1))
    assert choose(records, units, seed).span == span


def test_nodes_that_come_one_by_one_soon_cover_the_model() -> None:
    for seed in range(10):
        records: list[NodeRecord] = []
        for number in range(3):
            span = choose(records, 4, seed * 10 + number).span
            records.append(holder(f"p{number}", span.start, span.stop))
        assert missing(whole(LAYERS), [r.hosted[0].span for r in records]) == []


def move(records: list[NodeRecord], own: Span, units: float = 4, seed: int = 0) -> Placement | Stay:
    return should_move(
        [*records, holder("me", own.start, own.stop)], MODEL, budget(units), own, random.Random(seed), ME
    )


def test_a_node_stays_when_it_alone_holds_something() -> None:
    decision = move([holder("a", 0, 4)], Span(4, 8))  # a gap at 8:10, but leaving would open another
    assert isinstance(decision, Stay)
    assert decision.reason == "only this node holds layers 3:7"


def test_a_spare_node_moves_into_a_gap() -> None:
    decisions = [move([holder("a", 0, 4), holder("b", 4, 8)], Span(0, 4), seed=seed) for seed in range(40)]
    moved = [d for d in decisions if isinstance(d, Placement)]
    assert moved
    assert {d.span for d in moved} <= {Span(6, 10)}
    assert moved[0].reason == "nobody holds layers 7:8, head"
    waiting = [d for d in decisions if isinstance(d, Stay)]
    assert waiting  # "a" could go as well
    assert waiting[0].reason == "2 nodes could move; leaving it to another for now"


def test_the_only_spare_node_moves_into_a_gap_at_once() -> None:
    records = [holder("a", 0, 5), holder("b", 5, 8)]
    for seed in range(20):
        assert isinstance(move(records, Span(1, 5), seed=seed), Placement)


def test_a_node_that_can_hold_its_own_and_the_gap_takes_both() -> None:
    decision = move([holder("a", 0, 4)], Span(4, 8), units=6)
    assert isinstance(decision, Placement)
    assert decision.span == Span(4, 10)


def test_a_small_gain_is_not_worth_moving() -> None:
    balanced = [holder("a", 0, 10), holder("b", 0, 5), holder("c", 5, 10)]
    for seed in range(20):
        assert isinstance(move(balanced, Span(0, 5), units=5, seed=seed), Stay)


def test_a_large_imbalance_is_worth_moving_and_the_reason_says_how_large() -> None:
    crowd = [holder(f"p{i}", 0, 5) for i in range(4)] + [holder("lonely", 5, 10)]
    decisions = [move(crowd, Span(0, 5), units=5, seed=seed) for seed in range(60)]
    moved = [d for d in decisions if isinstance(d, Placement)]
    assert moved
    assert len(moved) < 30  # five could move; one should
    assert all(d.span == Span(5, 10) for d in moved)
    assert "4:8+head has 4.0 times the need of here" in moved[0].reason


def test_a_swarm_comes_to_rest() -> None:
    """Everybody decides at the same time, round after round, from the same stale view."""
    generator = random.Random(5)
    spans = dict.fromkeys([f"p{i:02}" for i in range(12)], Span(0, 4))
    for _ in range(60):
        view = [holder(peer, span.start, span.stop) for peer, span in spans.items()]
        before = dict(spans)
        for peer, own in before.items():
            decision = should_move(view, MODEL, budget(4), own, generator, PeerId(peer))
            if isinstance(decision, Placement):
                spans[peer] = decision.span
    assert missing(whole(LAYERS), list(spans.values())) == []
    assert spans == before
    held = [sum(s.start <= unit < s.stop for s in spans.values()) for unit in range(UNITS)]
    assert min(held) >= 3
