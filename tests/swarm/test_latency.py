"""Smoothed round trips."""

import math
from typing import Any

import anyio
import pytest

from shoal.swarm.errors import Unavailable
from shoal.swarm.identifiers import PeerId
from shoal.swarm.records import NodeRecord
from shoal.swarm.routing.latency import UNANSWERED_MS, LatencyBook
from shoal.swarm.routing.pings import Pinger
from shoal.swarm.simulated.peer import SWARM

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def test_one_slow_sample_moves_little_and_a_lasting_change_wins() -> None:
    book = LatencyBook()
    book.measured(A, 10.0, 0.0)
    book.measured(A, 110.0, 1.0)
    assert book.rtt_ms()[A] == 35.0
    for second in range(20):
        book.measured(A, 110.0, 2.0 + second)
    assert 109 < book.rtt_ms()[A] <= 110


@pytest.mark.parametrize("rtt_ms", [-1.0, math.inf, math.nan])
def test_what_is_no_duration_is_refused(rtt_ms: float) -> None:
    with pytest.raises(ValueError, match="round trip"):
        LatencyBook().measured(A, rtt_ms, 0.0)


def test_the_nearest_measured_peers_go_into_the_record() -> None:
    book = LatencyBook()
    for peer, rtt_ms in ((A, 30.0), (B, 10.004), (C, 20.0)):
        book.measured(peer, rtt_ms, 0.0)
    assert book.nearest([A, B, C, PeerId("unknown")], 2) == {B: 10.0, C: 20.0}
    assert book.nearest([A], 2) == {A: 30.0}


def test_the_unmeasured_come_first_then_the_stalest() -> None:
    book = LatencyBook()
    book.measured(A, 1.0, 10.0)
    book.measured(B, 1.0, 5.0)
    assert book.stalest([A, B, C], 2, 20.0) == [C, B]
    assert book.stalest([A, B, C], 3, 20.0, older_than_s=12.0) == [C, B]
    book.measured(B, 1.0, 15.0)
    assert book.stalest([A, B], 1, 20.0) == [A]
    book.forget(A)
    assert A not in book.rtt_ms()


def test_who_did_not_answer_is_a_last_resort_until_an_answer_comes() -> None:
    book = LatencyBook()
    book.measured(A, 5.0, 0.0)
    book.unanswered(A, 1.0)
    assert book.rtt_ms()[A] == UNANSWERED_MS
    assert book.nearest([A]) == {}
    book.measured(A, 7.0, 2.0)
    assert book.rtt_ms()[A] == 7.0


def test_the_book_stays_small() -> None:
    book = LatencyBook()
    for number in range(6000):
        book.measured(PeerId(str(number)), 1.0, float(number))
    assert len(book.rtt_ms()) == 4096
    assert PeerId("5999") in book.rtt_ms()
    assert PeerId("0") not in book.rtt_ms()


def test_all_that_are_to_answer_are_asked_however_many() -> None:
    """A node leaves layers only when somebody else who holds each of them answers."""
    silent = PeerId("peer 5")

    class Calls:
        async def call(self, peer: PeerId, *_: object) -> bytes:
            if peer == silent:
                raise Unavailable("it is gone")
            return b""

        async def connect(self, *_: object) -> None:
            return

        me = PeerId("me")

    calls: Any = Calls()
    pinger = Pinger(calls, calls, LatencyBook(), lambda: 0.0)
    names = [PeerId(f"peer {n}") for n in range(40)]
    records = [NodeRecord(name, SWARM, name, "0", 1, (), (), {}, 0.0, 1e12) for name in names]
    assert anyio.run(pinger.answering, records, 1.0) == {*names} - {silent}
