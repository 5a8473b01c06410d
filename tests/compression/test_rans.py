"""The entropy coder: exact, near its bound, the same with and without the compiled loops, safe against any bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.compression.entropy_table import SLOTS, EntropyTable, pack_table, parse_table, table_from_counts
from shoal.compression.errors import MalformedPayload
from shoal.compression.rans import decode_streams, encode_streams, lanes_for


def drawn(
    contexts: int, alphabet: int, streams: int, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray, EntropyTable]:
    random = np.random.default_rng(seed)
    counts = (random.pareto(1.0, (contexts, alphabet)) * 50).astype(np.int64) + 1
    table = table_from_counts(counts, floor=1)
    places = random.integers(0, contexts, count).astype(np.uint16)
    cumulated = np.cumsum(table.frequencies_cs, axis=1)
    thresholds = random.integers(0, SLOTS, (streams, count))
    symbols = (thresholds[..., None] >= cumulated[places]).sum(axis=-1).astype(np.uint8)
    return symbols, places, table


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 256),
    st.integers(1, 3),
    st.integers(0, 400),
    st.sampled_from([1, 2, 32, 64]),
    st.integers(0, 2**32 - 1),
)
def test_streams_come_back_and_both_implementations_write_the_same_bytes(
    contexts: int, alphabet: int, streams: int, count: int, lanes: int, seed: int
) -> None:
    symbols, places, table = drawn(contexts, alphabet, streams, count, seed)
    plain = encode_streams(symbols, places, table, lanes, accelerate=False)
    assert encode_streams(symbols, places, table, lanes, accelerate=True) == plain
    for accelerate in (False, True):
        assert np.array_equal(decode_streams(plain, places, table, lanes, accelerate), symbols)


def test_a_context_of_its_own_for_every_stream_is_honoured() -> None:
    symbols, places, table = drawn(4, 30, 3, 500, 5)
    rows = np.stack([np.roll(places, shift) for shift in range(3)])
    symbols = np.take_along_axis(symbols, np.stack([np.roll(np.arange(500), s) for s in range(3)]), axis=1)
    bodies = encode_streams(symbols, rows, table, 8, accelerate=False)
    assert bodies == encode_streams(symbols, rows, table, 8, accelerate=True)
    assert np.array_equal(decode_streams(bodies, rows, table, 8), symbols)


def test_the_number_of_lanes_is_part_of_the_format() -> None:
    counts = (0, 1, 511, 512, 1023, 1024, 107_000, 10**6, 10**9)
    assert [lanes_for(count) for count in counts] == [1, 1, 1, 1, 1, 2, 128, 1024, 1024]
    assert lanes_for(131_072, 4096) == 32


def test_the_size_is_within_half_a_per_cent_of_the_ideal() -> None:
    symbols, places, table = drawn(8, 60, 1, 100_000, 3)
    counts = np.zeros((8, 60), np.int64)
    np.add.at(counts, (places, symbols[0]), 1)
    (body,) = encode_streams(symbols, places, table, lanes_for(100_000))
    assert len(body) * 8 <= table.cost_bits(counts) * 1.005 + 16 * lanes_for(100_000)


def test_the_size_agrees_with_an_independent_coder() -> None:
    constriction = pytest.importorskip("constriction", reason="the independent coder is not installed")
    symbols, places, table = drawn(1, 40, 1, 50_000, 4)
    (body,) = encode_streams(symbols, places, table, 1)
    model = constriction.stream.model.Categorical(table.frequencies_cs[0] / SLOTS, perfect=True)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(symbols[0].astype(np.int32), model)
    assert len(body) == pytest.approx(4 * len(coder.get_compressed()), rel=0.002)


def test_a_symbol_without_a_slot_is_an_error_of_the_caller() -> None:
    table = table_from_counts(np.array([[1, 0, 1]]))
    for accelerate in (False, True):
        with pytest.raises(ValueError, match="no slot"):
            encode_streams(np.array([[0, 1]], np.uint8), np.zeros(2, np.uint16), table, 1, accelerate)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=600), st.integers(0, 200), st.sampled_from([1, 4, 32]))
def test_any_bytes_decode_alike_or_are_refused_alike(data: bytes, count: int, lanes: int) -> None:
    _, places, table = drawn(3, 20, 1, count, 9)
    outcomes = []
    for accelerate in (False, True):
        try:
            outcomes.append(decode_streams([data], places, table, lanes, accelerate).tobytes())
        except MalformedPayload:
            outcomes.append(b"refused")
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(("count", "lanes"), [(1000, 32), (4096, 64), (70, 32), (5000, 96), (3000, 16)])
def test_streams_side_by_side_are_those_alone_in_numpy_and_compiled(count: int, lanes: int) -> None:
    symbols, places, table = drawn(3, 60, 7, count, 21)
    bodies = encode_streams(symbols, places, table, lanes, accelerate=False)
    assert bodies == encode_streams(symbols, places, table, lanes, accelerate=True)
    for accelerate in (False, True):
        assert np.array_equal(decode_streams(bodies, places, table, lanes, accelerate), symbols)
        alone = [decode_streams([body], places, table, lanes, accelerate)[0] for body in bodies]
        assert np.array_equal(np.stack(alone), symbols)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 6), st.integers(0, 10_000), st.integers(1, 255), st.integers(-40, 40))
def test_one_spoilt_stream_among_others_is_refused_or_read_alike(
    stream: int, place: int, change: int, longer: int
) -> None:
    symbols, places, table = drawn(3, 60, 7, 1000, 22)
    bodies = encode_streams(symbols, places, table, 32)
    wrong = bytearray(bodies[stream])
    wrong[place % len(wrong)] ^= change
    wrong = wrong[: 2 * longer] if longer < 0 else wrong + bytes(2 * longer)
    spoilt = [*bodies[:stream], bytes(wrong), *bodies[stream + 1 :]]
    outcomes = []
    for accelerate in (False, True):
        try:
            outcomes.append(decode_streams(spoilt, places, table, 32, accelerate).tobytes())
        except MalformedPayload:
            outcomes.append(b"refused")
    assert outcomes[0] == outcomes[1]


def test_a_changed_cut_or_longer_stream_is_refused() -> None:
    symbols, places, table = drawn(3, 20, 1, 1000, 11)
    (body,) = encode_streams(symbols, places, table, 4)
    for wrong in (body[:-2], body + b"\0\0", b"", body[:7], body[:-1]):
        with pytest.raises(MalformedPayload):
            decode_streams([wrong], places, table, 4)


@given(st.lists(st.lists(st.integers(0, 2**40), min_size=7, max_size=7), min_size=1, max_size=4))
def test_a_table_from_any_counts_adds_up_keeps_every_symbol_and_survives_packing(rows: list[list[int]]) -> None:
    table = table_from_counts(np.array(rows))
    assert (table.frequencies_cs.sum(axis=1) == SLOTS).all()
    assert (table.frequencies_cs[np.array(rows) > 0] > 0).all()
    packed = pack_table(table)
    parsed, behind = parse_table(packed, 0, len(rows), 7)
    assert behind == len(packed)
    assert np.array_equal(parsed.frequencies_cs, table.frequencies_cs)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_table_that_adds_up_or_are_refused(data: bytes) -> None:
    try:
        table, _ = parse_table(data, 0, 2, 9)
    except MalformedPayload:
        return
    assert (table.frequencies_cs.sum(axis=1) == SLOTS).all()
