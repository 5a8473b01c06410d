"""The free lane's proof of work."""

from functools import partial

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarm.bundles import member

from shoal.incentives import entry as entries
from shoal.incentives.bodies import Ack
from shoal.incentives.store import Store
from shoal.swarm.beacon_calls import AskedRoot, serve_root
from shoal.swarm.errors import MalformedMessage, Refused
from shoal.swarm.identifiers import PeerId, SwarmId
from shoal.swarm.identity import Identity
from shoal.swarm.members.stamp import (
    EPOCH_S,
    Stamp,
    StampGate,
    StampMaker,
    beacon,
    epoch_of,
    is_good,
    make_stamp,
    stamps,
)
from shoal.swarm.transports.memory import MemoryNetwork

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


def test_the_root_is_what_the_owner_signed_last_in_an_hour_before() -> None:
    owner = Identity(bytes([81]) * 32)
    store = Store(None, judges=frozenset({owner.public_key}))
    assert store.roots(NOW) == ()
    hour = int(NOW) // 3600 * 3600
    for at in (hour - 7200, hour - 3600, hour - 1800, hour + 60):
        store.append_own(owner, [Ack(bytes(32), 0)], at)
    known = [entries.hash_of(entry) for entry in store.of(owner.public_key)]
    assert store.roots(hour + 120) == (known[2], known[0]), "not what it signed in this very hour"
    assert store.roots(hour + 3600) == (known[3], known[2])
    store.append_own(Identity(bytes([82]) * 32), [Ack(bytes(32), 0)], hour - 100)
    assert store.roots(hour + 120) == (known[2], known[0])


def test_a_thin_client_asks_for_the_root_and_its_stamp_is_taken() -> None:
    async def run() -> None:
        async with MemoryNetwork(0) as network:
            server, client = (Identity(bytes([n]) * 32) for n in (83, 84))
            await serve_root(member(network.join(server.peer_id)), lambda: (ROOT, b"older" * 6 + b"xx"))
            make = partial(StampMaker, SWARM, client.public_key, lambda: NOW, bits=BITS)
            peers = [PeerId(Identity(bytes([85]) * 32).peer_id), server.peer_id]  # the first is not there
            asked = AskedRoot(member(network.join(client.peer_id)), lambda: peers, make, lambda: NOW)
            StampGate(SWARM, BITS).admit(await asked.stamp(), client.public_key, NOW, [ROOT])

    anyio.run(run)
