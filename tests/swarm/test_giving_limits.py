"""What other peers may take of a node's uplink: streams at a time and bytes over time, for each and for all."""

import pytest

from shoal.swarm.errors import Refused
from shoal.swarm.identifiers import PeerId
from shoal.swarm.prefixes.giving_limits import BURST_S, MOST_OF_A_PEER, MOST_REMEMBERED, MOST_STREAMS, GivingLimits

ANA, BEN, CLEO = PeerId("ana"), PeerId("ben"), PeerId("cleo")
RATE = 1000.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limits(clock: Clock) -> GivingLimits:
    return GivingLimits(RATE, clock)


def test_one_peer_never_has_so_many_streams_that_none_is_left(limits: GivingLimits) -> None:
    for _ in range(MOST_OF_A_PEER):
        limits.enter(ANA)
    with pytest.raises(Refused, match=r"to one peer"):
        limits.enter(ANA)
    limits.enter(BEN)
    limits.leave(ANA)
    limits.enter(ANA)


def test_all_peers_together_have_a_bound_of_streams(limits: GivingLimits) -> None:
    for number in range(MOST_STREAMS):
        limits.enter(PeerId(f"peer {number}"))
    with pytest.raises(Refused, match=r"no more at a time"):
        limits.enter(ANA)
    limits.leave(PeerId("peer 0"))
    limits.enter(ANA)


def test_a_prefix_goes_at_once_and_a_peer_that_takes_on_has_to_wait(limits: GivingLimits, clock: Clock) -> None:
    half = int(RATE * BURST_S / 2)
    for _ in range(4):
        limits.check(ANA)
        limits.spend(ANA, half // 4)
    with pytest.raises(Refused, match=r"given to you .*: ask in 1 s"):
        limits.check(ANA)
    limits.check(BEN)
    clock.now += 10
    limits.check(ANA)
    limits.spend(ANA, int(10 * RATE))
    with pytest.raises(Refused, match=r"ask in 11 s"):
        limits.check(ANA)


def test_what_all_take_together_is_bounded_over_time(limits: GivingLimits, clock: Clock) -> None:
    given = 0
    for second in range(600):
        clock.now = float(second)
        for peer in (ANA, BEN, CLEO):
            try:
                limits.check(peer)
            except Refused:
                continue
            limits.spend(peer, 500)
            given += 500
    assert given <= RATE * (600 + BURST_S) + 500 * 3
    assert given >= RATE * 600
    limits.spend(PeerId("dan"), 2000)
    with pytest.raises(Refused, match=r"given to all peers"):
        limits.check(CLEO)


def test_a_rate_of_nothing_gives_nothing(clock: Clock) -> None:
    with pytest.raises(Refused, match="gives no chunks away"):
        GivingLimits(0.0, clock).enter(ANA)


def test_peers_that_took_nothing_for_a_while_are_forgotten_and_debtors_are_not(
    limits: GivingLimits, clock: Clock
) -> None:
    limits.spend(ANA, int(RATE * BURST_S / 2))
    for number in range(MOST_REMEMBERED):
        limits.check(PeerId(f"peer {number}"))
    assert len(limits._peers) < MOST_REMEMBERED  # noqa: SLF001
    with pytest.raises(Refused, match=r"to you"):
        limits.check(ANA)
