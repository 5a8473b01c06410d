"""A flood of opens is refused for next to nothing."""

import time

from shoal.incentives.open_limiter import MOST_PEERS, OpenLimiter


def test_a_peer_may_open_its_burst_and_then_so_many_a_second() -> None:
    limiter = OpenLimiter(each_a_second=2.0, each_burst=5.0)
    assert sum(limiter.allow("a", 100.0) for _ in range(20)) == 5
    assert sum(limiter.allow("a", 101.0) for _ in range(20)) == 2
    assert limiter.allow("b", 101.0), "others are not in its way"


def test_all_together_have_a_limit_too() -> None:
    limiter = OpenLimiter(all_a_second=10.0, all_burst=30.0)
    assert sum(limiter.allow(f"peer {n}", 5.0) for n in range(1000)) == 30
    assert sum(limiter.allow(f"peer {n}", 6.0) for n in range(1000)) == 10


def test_a_flood_of_a_hundred_thousand_opens_costs_less_than_a_second_and_little_memory() -> None:
    limiter = OpenLimiter()
    began = time.process_time()
    granted = sum(limiter.allow(f"peer {n % 50_000}", 10.0 + n * 1e-5) for n in range(100_000))
    spent_s = time.process_time() - began
    assert granted <= 2000 + 500 + 1
    assert spent_s < 1.0, "it comes at 10^5 a second"
    assert len(limiter._peers) <= MOST_PEERS  # noqa: SLF001  the memory is what the test is about
