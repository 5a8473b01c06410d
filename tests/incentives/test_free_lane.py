"""The free lane's proof of work, and who is paid for free work."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.incentives.free_work import assigned, is_drawn, minted
from shoal.swarm.errors import MalformedMessage, Refused
from shoal.swarm.identifiers import SwarmId
from shoal.swarm.stamp import EPOCH_S, Stamp, StampGate, beacon, epoch_of, is_good, make_stamp, stamps

SWARM, KEY, OTHER = SwarmId("swarm"), b"k" * 32, b"o" * 32
NOW, BITS = 1_800_000_000.0, 8
ROOT = b"r" * 32


def stamp_for(key: bytes = KEY, now: float = NOW, root: bytes = ROOT, start: int = 0) -> bytes:
    return stamps.encode(make_stamp(beacon(SWARM, epoch_of(now), root), key, epoch_of(now), BITS, start))


def test_a_stamp_opens_one_session_and_a_second_one_needs_another() -> None:
    gate = StampGate(SWARM, BITS)
    first = stamp_for()
    gate.admit(first, KEY, NOW, [ROOT])
    with pytest.raises(Refused, match="used"):
        gate.admit(first, KEY, NOW, [ROOT])
    again = stamp_for(start=stamps.decode(first).nonce + 1)
    gate.admit(again, KEY, NOW, [ROOT])


@pytest.mark.parametrize(
    ("data", "key", "now", "roots"),
    [
        (b"", KEY, NOW, [ROOT]),
        (stamp_for(OTHER), KEY, NOW, [ROOT]),
        (stamp_for(), KEY, NOW + 2 * EPOCH_S, [ROOT]),
        (stamp_for(now=NOW + EPOCH_S), KEY, NOW, [ROOT]),
        (stamp_for(root=b"old"), KEY, NOW, [ROOT]),
        (stamp_for(), KEY, NOW, []),
    ],
    ids=["none", "another's", "too old", "from the future", "of a checkpoint that is over", "without the checkpoint"],
)
def test_a_stamp_that_proves_nothing_is_refused(data: bytes, key: bytes, now: float, roots: list[bytes]) -> None:
    with pytest.raises(Refused):
        StampGate(SWARM, BITS).admit(data, key, now, roots)


def test_the_hour_before_and_the_checkpoint_before_still_count() -> None:
    gate = StampGate(SWARM, BITS)
    gate.admit(stamp_for(), KEY, NOW + EPOCH_S, [b"newer", ROOT])


@given(st.binary(max_size=64))
def test_any_bytes_are_a_stamp_or_refused(data: bytes) -> None:
    with pytest.raises((Refused, MalformedMessage)):
        StampGate(SWARM, 40).admit(data, KEY, NOW, [ROOT])


def test_one_nonce_in_so_many_is_good() -> None:
    known = beacon(SWARM, 5, b"")
    good = sum(is_good(Stamp(5, nonce), known, KEY, 6) for nonce in range(20_000))
    assert 230 < good < 400  # 312 expected
    assert not is_good(Stamp(5, 1 << 64), known, KEY, 0)


def test_newcomers_are_spread_evenly_and_a_server_that_leaves_moves_only_its_own() -> None:
    servers = [bytes([number]) * 32 for number in range(20)]
    clients = [number.to_bytes(32, "big") for number in range(3000)]
    before = {client: assigned(b"hour", client, servers) for client in clients}
    load = Counter(server for chosen in before.values() for server in chosen)
    assert max(load.values()) < 1.3 * min(load.values())
    for client, chosen in before.items():
        after = assigned(b"hour", client, servers[1:])
        assert servers[0] in chosen or after == chosen
    assert any(assigned(b"next hour", client, servers) != chosen for client, chosen in before.items())


def test_free_work_mints_its_worth_in_the_mean_and_nothing_where_it_was_not_drawn() -> None:
    drawn = sum(is_drawn(b"beacon", number.to_bytes(32, "big"), 0.05) for number in range(20_000))
    assert 900 < drawn < 1100
    assert minted(512, 7, 5) == 20 * 512 * 7
