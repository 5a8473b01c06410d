"""The level of a snapshot's chunks follows the link, and is none but lossless where that is asked for."""

import pytest

from shoal.compression.kv_levels import KvLevel
from shoal.swarm.sessions.snapshot_level import SnapshotPace, allowed_levels, best_level

SIZES: dict[KvLevel, float] = {"lossless": 680e3, "near-lossless": 160e3, "default": 90e3}
FAST = allowed_levels("default")
MBIT = 125e3


def test_what_is_allowed_is_never_worse_than_what_was_asked_for() -> None:
    assert allowed_levels("lossless") == ("lossless",)
    assert FAST == ("lossless", "near-lossless", "default")


@pytest.mark.parametrize(
    ("mbit_s", "fill_s", "waiting", "level"),
    [
        (1000, 3.0, 1, "lossless"),
        (20, 3.0, 1, "lossless"),  # a quarter of it: 1.9 MB in 3 s
        (20, 0.5, 1, "near-lossless"),  # a quick session: 312 kB in that time
        (20, 3.0, 5, "near-lossless"),
        (2, 3.0, 1, "near-lossless"),
        (1, 3.0, 1, "default"),
        (0.01, 3.0, 1, "default"),
    ],
)
def test_the_best_level_that_keeps_up(mbit_s: float, fill_s: float, waiting: int, level: KvLevel) -> None:
    assert best_level(FAST, SIZES, waiting, fill_s, mbit_s * MBIT) == level


def test_a_faster_link_never_gives_a_worse_level_nor_more_to_send_a_better_one() -> None:
    def rank(mbit_s: float, waiting: int) -> int:
        return FAST.index(best_level(FAST, SIZES, waiting, 2.0, mbit_s * MBIT))

    speeds = [2.0**n for n in range(-4, 12)]
    for waiting in (1, 2, 8, 32):
        ranks = [rank(speed, waiting) for speed in speeds]
        assert ranks == sorted(ranks, reverse=True)
        assert all(rank(speed, waiting) <= rank(speed, 2 * waiting) for speed in speeds)


def run(pace: SnapshotPace, mbit_s: float, chunks: int, fill_s: float = 2.0, way_s: float = 0.015) -> list[KvLevel]:
    """A session that fills a chunk each `fill_s`, over a link of so many Mbit/s that is never full."""
    levels: list[KvLevel] = []
    now = 0.0
    for _ in range(chunks):
        now += fill_s
        pace.filled(now)
        level = pace.level(1)
        size = int(SIZES[level])
        pace.sent(level, size, now)
        pace.came(now + size / (mbit_s * MBIT) + 2 * way_s)
        levels.append(level)
    return levels


@pytest.mark.parametrize(
    ("mbit_s", "level"), [(1000, "lossless"), (20, "lossless"), (3, "near-lossless"), (0.5, "default")]
)
def test_a_session_finds_its_level_after_a_few_chunks_and_stays_there(mbit_s: float, level: KvLevel) -> None:
    levels = run(SnapshotPace(FAST), mbit_s, 12)
    assert levels[0] == "default", "nothing is known of the link yet"
    assert set(levels[6:]) == {level}


def test_a_link_that_grows_slow_is_noticed_when_chunks_follow_one_another() -> None:
    pace = SnapshotPace(FAST)
    assert run(pace, 1000, 8)[-1] == "lossless"
    now = 100.0
    for _ in range(6):
        pace.sent("lossless", 680_000, now)
    for n in range(6):
        pace.came(now + 1.5 * (n + 1))  # 3.6 Mbit/s
    assert pace.link_bytes_s == pytest.approx(680e3 / 1.5, rel=0.3)
    assert pace.level(1) != "lossless"


def test_a_link_that_grows_slow_is_noticed_when_each_chunk_goes_alone_too() -> None:
    pace = SnapshotPace(FAST)
    assert run(pace, 1000, 8)[-1] == "lossless"
    assert set(run(pace, 3, 20)[10:]) <= {"near-lossless", "default"}


def test_a_burst_is_not_taken_for_more_than_the_link_carries() -> None:
    pace = SnapshotPace(FAST)
    for n in range(8):
        pace.sent("default", 90_000, n * 1e-4)
    for n in range(8):
        pace.came(0.03 + 0.09 * (n + 1))  # 8 Mbit/s
    assert pace.link_bytes_s == pytest.approx(1e6, rel=0.2)


def test_one_level_is_no_choice_and_an_unasked_word_changes_nothing() -> None:
    pace = SnapshotPace(allowed_levels("lossless"))
    pace.came(1.0)
    assert pace.link_bytes_s is None
    assert pace.level(100) == "lossless"
