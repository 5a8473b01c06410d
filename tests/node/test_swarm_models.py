"""Which model of a swarm a user means, and which one a node takes when none is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.node.swarm_models import chosen, looks_like_id, most_needed
from shoal.node.weight_shelf import Given
from shoal.swarm.errors import UsageError
from shoal.swarm.identifiers import ModelId, PeerId, SwarmId
from shoal.swarm.records import Hosted, NodeRecord
from shoal.swarm.transfer.weight_holdings import bits_of, chunks_of
from shoal.swarm.units import Span

ONE, TWO = ModelId("a1" * 32), ModelId("b2" * 32)
ME = PeerId("me")


def record(peer: str, *spans: tuple[ModelId, int, int]) -> NodeRecord:
    hosted = tuple(
        Hosted(model, f"model {model[0]}", 6, Span(start, stop), "float32", 1.0, 0, 100, 100)
        for model, start, stop in spans
    )
    return NodeRecord(PeerId(peer), SwarmId("s"), peer, "1", 1, (), hosted, {}, 0.0, 0.0)


@pytest.mark.parametrize(
    ("model", "is_id"), [("a1b2c3d4e5f6", True), ("0" * 64, True), ("novels-6m", False), ("abc", False)]
)
def test_an_id_is_told_from_a_name(model: str, is_id: bool) -> None:
    assert looks_like_id(model) == is_id


def test_a_name_or_the_beginning_of_an_id_names_one_model() -> None:
    given_, records = [Given(ONE, "sparrow", 10, 10)], [record("ana", (TWO, 0, 8))]
    assert chosen("sparrow", given_, records) == ONE
    assert chosen("model b", given_, records) == TWO
    assert chosen(ONE[:12], given_, records) == ONE
    assert chosen("swallow", given_, records) is None
    assert chosen("f" * 12, given_, records) is None


def test_one_name_for_two_models_is_asked_back_with_their_ids() -> None:
    both = [Given(ONE, "sparrow", 10, 10), Given(TWO, "sparrow", 10, 10)]
    with pytest.raises(UsageError, match=f"write the id.*{ONE[:16]}.*{TWO[:16]}"):
        chosen("sparrow", both, [])


def test_the_model_with_a_gap_is_needed_before_one_that_is_whole() -> None:
    records = [record("ana", (ONE, 0, 8)), record("ben", (ONE, 0, 8)), record("cleo", (TWO, 0, 5))]
    assert most_needed(records, ME) == TWO
    assert most_needed([*records, record("dora", (TWO, 5, 8), (TWO, 0, 8), (TWO, 0, 8))], ME) == ONE


def test_among_equals_a_swarm_stays_together() -> None:
    records = [record("ana", (ONE, 0, 4)), record("ben", (ONE, 0, 4)), record("cleo", (TWO, 0, 4))]
    assert most_needed(records, ME) == ONE


def test_what_this_node_said_before_does_not_count() -> None:
    assert most_needed([record("me", (ONE, 0, 8))], ME) is None
    assert most_needed([], ME) is None


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.frozensets(st.integers(0, n - 1)))))
def test_chunks_come_back_from_their_bits(drawn: tuple[int, frozenset[int]]) -> None:
    count, chunks = drawn
    back = chunks_of(bits_of(chunks, count), count)
    assert (frozenset(range(count)) if back is None else back) == chunks


@given(st.binary(max_size=40), st.integers(0, 100))
def test_any_bits_name_chunks_that_exist(bits: bytes, count: int) -> None:
    chunks = chunks_of(bits, count)
    assert chunks is None or all(0 <= n < count for n in chunks)
