"""The race between computing and fetching a prefix, as pure decisions, and against a model of time."""

from dataclasses import dataclass

import pytest

from shoal.compression.kv_levels import CHUNK_TOKENS, KvLevel
from shoal.swarm.prefixes.chunk_fetch import ChunkFetch
from shoal.swarm.prefixes.fetch_past import Arrival, FetchPast
from shoal.swarm.prefixes.prefill_pace import PrefillPace
from shoal.swarm.prefixes.prefix_race import SMALLEST_PIECE, Compute, PrefixRace, Skip, Wait, frontier_of

CHUNKS = 16
SIZES: dict[KvLevel, int] = {"lossless": 1_000_000, "near-lossless": 240_000, "default": 130_000, "small": 60_000}
Levels = tuple[KvLevel, ...]
FAST: Levels = ("lossless", "near-lossless", "default")
READY: Levels = ("lossless", "default")
TAKING_IN_S: dict[KvLevel, float] = {"lossless": 0.012, "default": 0.006}


def pace_of(chunk_s: float, slope: float = 0.0) -> PrefillPace:
    pace = PrefillPace()
    for start in range(0, 1024, CHUNK_TOKENS):
        pace.note(start, CHUNK_TOKENS, chunk_s * (1 + slope * start / 1024))
    return pace


def test_a_pace_knows_how_prefill_slows_with_the_position() -> None:
    pace = pace_of(0.1, slope=1.0)
    early, late = pace.seconds(0, CHUNK_TOKENS), pace.seconds(960, CHUNK_TOKENS)
    assert early is not None
    assert late is not None
    assert early == pytest.approx(0.1, rel=0.1)
    assert late == pytest.approx(0.19, rel=0.1)
    assert PrefillPace().seconds(0, 64) is None


def test_chunks_are_asked_for_from_the_back_and_never_before_the_frontier() -> None:
    fetch = ChunkFetch(range(CHUNKS), ("lossless",), 0.03, 0.0)
    assert [ask.number for ask in fetch.asks(0, 0.0)] == [15, 14]
    fetch.arrived(15, SIZES["lossless"], 0.5)
    assert [ask.number for ask in fetch.asks(13, 0.5)] == [13]
    fetch.arrived(14, SIZES["lossless"], 0.6)
    assert fetch.asks(14, 0.6) == []
    assert fetch.open == {13}


def test_a_chunk_that_nobody_asked_for_is_no_arrival() -> None:
    fetch = ChunkFetch(range(4), ("lossless",), 0.03, 0.0)
    fetch.asks(0, 0.0)
    assert fetch.arrived(0, 100, 0.1) is None
    assert fetch.arrived(3, 100, 0.1) == "lossless"
    assert fetch.arrived(3, 100, 0.1) is None


@pytest.mark.parametrize(("mbit", "level"), [(1000, "lossless"), (60, "near-lossless"), (5, "default")])
def test_the_level_is_the_best_that_costs_next_to_nothing_at_the_speed_of_the_link(mbit: int, level: KvLevel) -> None:
    """The prompt came 1.9 s ago; 4 % of that may be spent on losing less in the last chunk."""
    fetch = ChunkFetch(range(3), FAST, 0.0, 1.9, 0.0)
    now = 1.9
    for ask in fetch.asks(0, now):
        assert ask.level == "default"  # while nothing is known of the link
        now += SIZES["default"] / (mbit * 125e3)
        fetch.arrived(ask.number, SIZES["default"], now)
    assert [(ask.number, ask.level) for ask in fetch.asks(0, 1.9)] == [(0, level)]


def test_what_everybody_holds_is_skipped_and_the_tail_is_computed() -> None:
    race = PrefixRace(4, pace_of(0.1), 0.0)
    race.expect((), searching=False)
    race.everybody_holds({1, 2, 3}, 0.0, fetched=False)
    assert race.next(0, 300, 0.0) == Compute(CHUNK_TOKENS)
    assert race.next(64, 236, 0.0) == Skip(256)
    assert race.next(256, 44, 0.0) == Compute(44)


def test_with_nothing_to_come_the_prompt_is_computed_in_one_go() -> None:
    race = PrefixRace(CHUNKS, pace_of(0.1), 0.0)
    race.expect((), searching=False)
    assert race.next(0, 256, 0.0) == Compute(256)


@pytest.mark.parametrize(("chunk_s", "piece"), [(0.01, 64), (0.1, 64), (0.2, 32), (2.0, SMALLEST_PIECE)])
def test_while_somebody_is_looked_for_it_computes_in_brief_pieces_but_not_below_a_chunk_for_nothing(
    chunk_s: float, piece: int
) -> None:
    assert PrefixRace(CHUNKS, pace_of(chunk_s), 0.0).next(0, 256, 0.0) == Compute(piece)
    assert PrefixRace(CHUNKS, PrefillPace(), 0.0).next(0, 256, 0.0) == Compute(SMALLEST_PIECE)


def test_pieces_grow_while_nothing_comes() -> None:
    race = PrefixRace(CHUNKS, pace_of(0.1), 0.0)
    pieces = [race.next(0, 1024, now) for now in (0.0, 0.4, 0.7, 9.0)]
    assert pieces == [Compute(64), Compute(128), Compute(256), Compute(256)]
    slow = PrefixRace(CHUNKS, pace_of(1.0), 0.0)
    pieces = [slow.next(0, 1024, now) for now in (0.0, 0.4, 0.7, 1.0, 9.0)]
    assert pieces == [Compute(16), Compute(32), Compute(64), Compute(128), Compute(256)]


def test_it_waits_for_what_came_much_sooner_the_last_time_and_not_for_ever() -> None:
    race = PrefixRace(CHUNKS, pace_of(0.1), 0.0, promise_s=0.3)
    assert race.next(0, 1024, 0.1) == Wait(pytest.approx(0.45))
    assert race.next(0, 1024, 0.46) == Compute(128)
    assert PrefixRace(CHUNKS, pace_of(0.1), 0.0, promise_s=0.9).next(0, 1024, 0.1) == Compute(64)
    lonely = PrefixRace(CHUNKS, pace_of(0.1), 0.0, promise_s=0.3)
    lonely.expect((), searching=False)
    assert lonely.next(0, 1024, 0.1) == Compute(1024)


def test_what_is_late_is_waited_for_no_longer_than_it_takes_to_compute() -> None:
    race = PrefixRace(CHUNKS, pace_of(0.1), 0.0, promise_s=0.5)
    race.expect(range(CHUNKS), searching=False)
    race.everybody_holds(range(1, CHUNKS), 0.2, fetched=True)
    race.expect({0}, searching=False)
    assert race.next(0, 1024, 0.21) == Wait(pytest.approx(0.3))
    assert isinstance(race.next(0, 1024, 0.31), Compute | Wait)
    assert race.next(0, 1024, 0.4) == Compute(64)


def test_it_waits_only_for_what_comes_sooner_than_it_could_be_computed_and_only_once() -> None:
    race = PrefixRace(4, pace_of(1.0), 0.0)
    race.expect({0}, searching=False)
    race.everybody_holds({2, 3}, 0.1, fetched=True)
    race.everybody_holds({1, 2, 3}, 0.15, fetched=True)
    waits = race.next(0, 256, 0.16)
    assert isinstance(waits, Wait)
    assert waits.until_s < 0.5
    assert race.next(0, 256, waits.until_s) == Compute(SMALLEST_PIECE)


def test_an_audited_chunk_is_computed_although_it_is_held() -> None:
    race = PrefixRace(4, pace_of(0.1), 0.0, audited=2)
    race.expect((), searching=False)
    race.everybody_holds(range(4), 0.0, fetched=False)
    assert race.next(0, 256, 0.0) == Skip(128)
    assert race.next(128, 128, 0.0) == Compute(CHUNK_TOKENS)
    assert race.next(192, 64, 0.0) == Skip(256)


@dataclass
class Outcome:
    first_token_s: float
    fetched: int


def run(
    chunk_s: float,
    bytes_s: float,
    levels: Levels,
    *,
    fetches: bool = True,
    rtt_s: float = 0.03,
    piece_s: float = 0.0,
    past: FetchPast | None = None,
) -> Outcome:
    """One hop and one donor in a model of time: a link that carries one answer after the other.

    piece_s: what a piece costs beside its positions; past: of earlier runs, which this one adds to; with it a chunk
    also costs TAKING_IN_S
    """
    pace = pace_of(chunk_s + piece_s / 4)
    computing_s = pace.seconds(0, CHUNKS * CHUNK_TOKENS)
    if past is not None and not past.is_worth_a_look(CHUNKS, levels[-1], computing_s, 0.0):
        fetches = False
    promise_s = past.predicted_s(CHUNKS, levels[-1], 0.0) if past is not None and fetches else None
    known = (past.taking_in_s, past.next_chunk_s(levels[-1], 0.0)) if past is not None else ()
    fetch = ChunkFetch(range(CHUNKS) if fetches else (), levels, rtt_s, 0.1, 0.0, *known)
    race = PrefixRace(CHUNKS, pace, 0.0, promise_s=promise_s)
    held: set[int] = set()
    came: dict[int, KvLevel] = {}
    arrivals: list[Arrival] = []
    link: list[tuple[float, int, KvLevel]] = []  # arrival, number, level
    now, link_free_s, position, working = 0.0, 0.1, 0, 0
    asked = False

    def ask() -> None:
        nonlocal link_free_s
        for each in fetch.asks(frontier_of(working), now):
            link_free_s = max(link_free_s, now + rtt_s) + SIZES[each.level] / bytes_s
            link.append((link_free_s, each.number, each.level))
        race.expect(fetch.open, fetch.chunks_s, searching=False)

    def pass_to(until_s: float, *, wakes: bool = False) -> None:
        nonlocal now, asked
        while True:
            if not asked and until_s >= 0.1:
                now, asked = max(now, 0.1), True
                ask()
            due = min((entry for entry in link if entry[0] <= until_s), default=None)
            if due is None:
                now = until_s
                return
            link.remove(due)
            now, number, level = due
            fetch.arrived(number, SIZES[level], now)
            arrivals.append(Arrival(level, now))
            held.add(number)
            came[number] = level
            race.everybody_holds(held, now, fetched=True)
            ask()
            if wakes:
                return

    if not fetches:
        race.expect((), searching=False)
        asked = True
    skipped = 0
    while position < CHUNKS * CHUNK_TOKENS + 32:
        step = race.next(position, CHUNKS * CHUNK_TOKENS + 32 - position, now)
        if isinstance(step, Wait):
            pass_to(step.until_s, wakes=True)
        elif isinstance(step, Skip):
            skipped += step.stop - position
            taken = [came[number] for number in range(position // CHUNK_TOKENS, step.stop // CHUNK_TOKENS)]
            working = position = step.stop
            for level in taken if past is not None else ():
                past.note_taken_in(level, TAKING_IN_S[level])
                pass_to(now + TAKING_IN_S[level])
        else:
            count = min(step.count, 256)  # a batch
            working = position + count
            pass_to(now + piece_s + chunk_s * count / CHUNK_TOKENS)
            position = working
    if past is not None:
        past.note(0.0, arrivals, Arrival(levels[-1], now) if fetch.is_waiting else None)
        past.noted_s = 0.0
    return Outcome(now, skipped)


@pytest.mark.parametrize("chunk_s", [0.002, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("mbit", [5, 20, 100, 1000])
@pytest.mark.parametrize("levels", [("lossless",), FAST])
def test_it_is_never_slower_than_the_better_of_the_two(chunk_s: float, mbit: float, levels: Levels) -> None:
    """The better: computing all, or a fetch of all at the smallest level that is allowed. Beside 5 %, a piece that was
    begun before the fetch could be known to be faster, and the tail, cost what they cost."""
    computing_s = run(chunk_s, mbit * 125e3, levels, fetches=False).first_token_s
    fetching_s = 0.13 + CHUNKS * SIZES[levels[-1]] / (mbit * 125e3) + chunk_s / 2
    adaptive = run(chunk_s, mbit * 125e3, levels)
    assert adaptive.first_token_s <= 1.05 * min(computing_s, fetching_s) + chunk_s


def test_both_ends_together_are_faster_than_either_alone() -> None:
    """80 Mbit/s bring a chunk in .1 s, as long as it takes to compute one."""
    alone = run(0.1, 10e6, ("lossless",), fetches=False)
    both = run(0.1, 10e6, ("lossless",))
    assert both.first_token_s < 0.65 * alone.first_token_s
    assert 0 < both.fetched < CHUNKS * CHUNK_TOKENS


@pytest.mark.parametrize("chunk_s", [0.02, 0.066, 0.3])
@pytest.mark.parametrize("mbit", [5, 20, 50, 100, 300, 1000])
@pytest.mark.parametrize("levels", [("lossless",), READY])
def test_who_has_fetched_before_pays_neither_for_looking_nor_for_small_pieces(
    chunk_s: float, mbit: float, levels: Levels
) -> None:
    """A piece costs two thirds of a chunk beside its positions, as measured on a processor; what has come has to be
    taken in. The better of the two pays for these as well, in pieces of 256 and at the least level."""
    piece_s = 0.66 * chunk_s
    computing_s = run(chunk_s, mbit * 125e3, levels, fetches=False, piece_s=piece_s).first_token_s
    level = levels[-1]
    fetching_s = 0.13 + CHUNKS * (SIZES[level] / (mbit * 125e3) + TAKING_IN_S[level]) + piece_s + chunk_s / 2
    past = FetchPast()
    taken = [run(chunk_s, mbit * 125e3, levels, piece_s=piece_s, past=past).first_token_s for _ in range(4)]
    assert taken[-1] <= 1.05 * min(computing_s, fetching_s) + 0.01


def test_a_link_that_was_slow_is_tried_again_after_a_while() -> None:
    past = FetchPast()
    assert past.is_worth_a_look(CHUNKS, "lossless", 1.0, 0.0)
    past.note(0.0, [Arrival("lossless", 0.2), Arrival("lossless", 1.2)])
    assert not past.is_worth_a_look(CHUNKS, "lossless", 1.0, 5.0)
    assert past.is_worth_a_look(CHUNKS, "lossless", 100.0, 5.0)
    assert past.is_worth_a_look(CHUNKS, "lossless", 1.0, 700.0)
    assert past.predicted_s(CHUNKS, "lossless", 700.0) is None


def test_a_level_that_never_came_is_foretold_from_another_by_its_size() -> None:
    past = FetchPast()
    past.note(0.0, [Arrival("default", 0.1 + 0.01 * number) for number in range(8)])
    past.note_taken_in("default", 0.005)
    assert past.predicted_s(10, "default", 1.0) == pytest.approx(0.1 + 0.15)
    assert past.predicted_s(10, "lossless", 1.0) == pytest.approx(0.1 + 0.1 * 0.68 / 0.09)
    assert past.predicted_s(10, "lossless", 1.0, "float32") == pytest.approx(0.1 + 0.1 * 1.67 / 0.09)


def test_a_level_that_costs_more_to_take_in_than_it_gains_is_not_asked_for() -> None:
    """A fast link, and a decoder that is slower than it for what has lost nothing."""
    for dear, level in (({"lossless": 0.05, "default": 0.005}, "default"), ({}, "lossless")):
        fetch = ChunkFetch(range(8), READY, 0.0, 0.1, 0.0, dear)
        now = 0.1
        for ask in fetch.asks(0, now):
            now += SIZES[ask.level] / 125e6
            fetch.arrived(ask.number, SIZES[ask.level], now)
        assert {ask.level for ask in fetch.asks(0, now + 2.0)} == {level}


def test_chunks_that_come_all_at_once_make_no_link_seem_fast() -> None:
    """Eight small ones lay in a buffer: the link has brought their bytes in .1 s, not in less than a millisecond, and
    lossless ones would take ten times as long."""
    fetch = ChunkFetch(range(24), READY, 0.03, 0.0, 0.0, {}, 0.001)
    assert len(fetch.asks(0, 0.0)) == 16
    for number in range(23, 15, -1):
        fetch.arrived(number, SIZES["default"], 0.13 + (23 - number) * 1e-4)
    asks = fetch.asks(0, 0.131)
    assert asks
    assert {ask.level for ask in asks} == {"default"}
