"""Placement: gaps first, then the least held."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarm.people import MODEL, hosted, plain_record

from shoal.swarm.errors import OutOfMemory
from shoal.swarm.identifiers import PeerId
from shoal.swarm.records import Coming, NodeRecord
from shoal.swarm.routing.placement import Budget, Placement, choose_span
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


def test_who_is_on_the_way_counts_where_it_goes() -> None:
    coming = (Coming(MODEL, "novels-6m", LAYERS, Span(4, 8), "float32", settled=True),)
    moving = plain_record("b", hosted(Span(0, 4), LAYERS), coming=coming)
    found = choose([holder("a", 0, 4), moving], 4)
    assert found.span == Span(6, 10)
    assert found.reason == "nobody holds layers 7:8, head"
    loading = plain_record("b", coming=coming)
    assert choose([holder("a", 0, 4), loading], 4).span == Span(6, 10)
