"""The race between computing and fetching a prefix, as pure decisions, and against a model of time."""

from dataclasses import dataclass

import pytest

from shoal.compression.kv_levels import CHUNK_TOKENS, KvLevel
from shoal.swarm.prefixes.chunk_fetch import ChunkFetch
from shoal.swarm.prefixes.prefill_pace import PrefillPace
from shoal.swarm.prefixes.prefix_race import SMALLEST_PIECE, Compute, PrefixRace, Skip, Wait, frontier_of

CHUNKS = 16
SIZES: dict[KvLevel, int] = {"lossless": 1_000_000, "near-lossless": 240_000, "default": 130_000, "small": 60_000}
Levels = tuple[KvLevel, ...]
FAST: Levels = ("lossless", "near-lossless", "default")


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


def test_while_somebody_is_looked_for_it_computes_in_small_pieces() -> None:
    assert PrefixRace(CHUNKS, pace_of(0.1), 0.0).next(0, 256, 0.0) == Compute(SMALLEST_PIECE)


def test_pieces_grow_while_nothing_comes() -> None:
    race = PrefixRace(CHUNKS, pace_of(0.1), 0.0)
    pieces = [race.next(0, 1024, now) for now in (0.0, 0.4, 0.7, 1.0, 9.0)]
    assert pieces == [Compute(16), Compute(32), Compute(64), Compute(128), Compute(256)]


def test_it_waits_for_what_came_much_sooner_the_last_time_and_not_for_ever() -> None:
    race = PrefixRace(CHUNKS, pace_of(0.1), 0.0, promise_s=0.3)
    assert race.next(0, 1024, 0.1) == Wait(pytest.approx(0.45))
    assert race.next(0, 1024, 0.46) == Compute(32)
    assert PrefixRace(CHUNKS, pace_of(0.1), 0.0, promise_s=0.8).next(0, 1024, 0.1) == Compute(16)
    lonely = PrefixRace(CHUNKS, pace_of(0.1), 0.0, promise_s=0.3)
    lonely.expect((), searching=False)
    assert lonely.next(0, 1024, 0.1) == Compute(1024)


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


def run(chunk_s: float, bytes_s: float, levels: Levels, *, fetches: bool = True, rtt_s: float = 0.03) -> Outcome:
    """One hop and one donor in a model of time: a link that carries one answer after the other."""
    pace = pace_of(chunk_s)
    fetch = ChunkFetch(range(CHUNKS) if fetches else (), levels, rtt_s, 0.1, 0.0)
    race = PrefixRace(CHUNKS, pace, 0.0)
    held: set[int] = set()
    link: list[tuple[float, int, int]] = []  # arrival, number, size
    now, link_free_s, position, working = 0.0, 0.1, 0, 0
    asked = False

    def ask() -> None:
        nonlocal link_free_s
        for each in fetch.asks(frontier_of(working), now):
            link_free_s = max(link_free_s, now + rtt_s) + SIZES[each.level] / bytes_s
            link.append((link_free_s, each.number, SIZES[each.level]))
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
            now = due[0]
            fetch.arrived(due[1], due[2], now)
            held.add(due[1])
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
            working = position = step.stop
        else:
            working = position + step.count
            pass_to(now + chunk_s * step.count / CHUNK_TOKENS)
            position = working
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
