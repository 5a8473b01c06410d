"""The directory on real p2pd daemons: listings, attacks by a peer of the DHT, kill -9, clocks."""

import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import msgspec
import psutil
import pytest
from swarm.people import MODEL, OWNER, certificate, hosted, person, private_swarm, record

from shoal.swarm.errors import SwarmUnreachable, Unavailable, UsageError
from shoal.swarm.identity import Identity
from shoal.swarm.members.membership import Swarm
from shoal.swarm.members.revocation import Revocations, sign_list
from shoal.swarm.node_lock import clash
from shoal.swarm.records import RECORD_TTL_S, Hosted, NodeRecord, RecordReader, sign_record
from shoal.swarm.transports import dht_keys
from shoal.swarm.transports.dht_directory import DhtDirectory
from shoal.swarm.transports.libp2p import Libp2pTransport
from shoal.swarm.transports.p2pd import NetworkOptions
from shoal.swarm.units import Span

pytestmark = pytest.mark.network
SWARM = private_swarm()
VANISHES_WITHIN_S = 30.0


def now() -> float:
    return time.time()  # noqa: TID251  real daemons live in real time


class Node:
    """A daemon with a directory on it, and nothing else."""

    def __init__(
        self, identity: Identity, transport: Libp2pTransport, directory: DhtDirectory, revocations: Revocations
    ) -> None:
        self.identity = identity
        self.revocations = revocations
        self.transport = transport
        self.directory = directory
        self.started_at = now()

    @property
    def address(self) -> str:
        return f"{self.transport.addresses[0]}/p2p/{self.identity.peer_id}"

    def record(self, *spans: Hosted, swarm: Swarm = SWARM, **changes: object) -> NodeRecord:
        shown = certificate(swarm, self.identity, now() - 10)
        return record(
            self.identity,
            swarm,
            *spans,
            certificate=shown,
            addresses=self.transport.addresses,
            started_at=self.started_at,
            **changes,  # type: ignore[arg-type]
        )

    async def names(self) -> set[str]:
        return {found.name for found in await self.directory.nodes()}


@asynccontextmanager
async def node(
    number: int, bootstrap: tuple[str, ...] = (), clock: Callable[[], float] = now, listen: bool = True
) -> AsyncIterator[Node]:
    identity = person(number)
    reader = RecordReader(SWARM, Revocations(SWARM.id, SWARM.owner))
    options = NetworkOptions(host="127.0.0.1", nat=False, listen=listen)
    transport = await Libp2pTransport.start(identity.libp2p_key(), options)
    try:
        directory = await DhtDirectory.start(
            transport.hivemind_p2p, identity, reader, bootstrap, listen=listen, clock=clock
        )
        try:
            yield Node(identity, transport, directory, reader.revocations)
        finally:
            await directory.stop()
    finally:
        with anyio.CancelScope(shield=True):
            await transport.stop()


@asynccontextmanager
async def nodes(count: int) -> AsyncIterator[list[Node]]:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(node(0))
        rest = [await stack.enter_async_context(node(i, (first.address,))) for i in range(1, count)]
        yield [first, *rest]


async def until(condition: Callable[[], Awaitable[bool]], within_s: float) -> None:
    """Wait for a condition, which every look that begins after this time has to find true: how long the look itself
    takes on a busy machine is not what is asked."""
    began = looked = now()
    while not await condition():
        assert looked - began < within_s, "it did not come true in time"
        await anyio.sleep(0.1)
        looked = now()


def test_what_is_stored_at_a_node_is_known_there_at_once() -> None:
    async def scenario() -> None:
        async with nodes(2) as (first, second):
            await second.directory.announce(second.record(hosted(Span(0, 3))))
            assert [known.peer for known in first.directory.book.holders(MODEL, now())] == [second.identity.peer_id]

    anyio.run(scenario)


def test_nodes_find_one_another_and_the_holders_of_a_model() -> None:
    async def scenario() -> None:
        async with nodes(3) as (first, second, third):
            await first.directory.announce(first.record(hosted(Span(0, 4)), name="first"))
            await second.directory.announce(second.record(hosted(Span(4, 8)), name="second"))
            await third.directory.announce(third.record(name="third"))
            for one in (first, second, third):
                assert await one.names() == {"first", "second", "third"}
                holders = await one.directory.holders(MODEL)
                assert [h.name for h in holders] == [h.name for h in sorted(holders, key=lambda r: r.peer)]
                assert {h.name for h in holders} == {"first", "second"}
            assert second.directory.reachable
            async with node(7, (second.address,), listen=False) as client:
                assert await client.names() == {"first", "second", "third"}
                assert len(client.directory.book.page(now())) == 3

    anyio.run(scenario)


def test_a_newer_record_takes_the_place_of_the_older_and_withdrawing_that_of_both() -> None:
    async def scenario() -> None:
        async with nodes(3) as (first, second, third):
            for name in ("old", "new"):
                await second.directory.announce(second.record(hosted(Span(0, 4)), name=name))
            assert await first.names() == {"new"}
            await second.directory.announce(second.record(name="moved"))  # hosts nothing any more
            fresh = await third.directory.holders(MODEL)
            assert {r.name for r in fresh} <= {"new"}  # until that record expires, if the list of nodes was not read
            assert await third.names() == {"moved"}
            assert await third.directory.holders(MODEL) == []
            await second.directory.withdraw()
            await second.directory.withdraw()

            async def gone() -> bool:
                return await third.names() == set()

            await until(gone, 5)
            assert await second.names() == set()

    anyio.run(scenario)


def test_a_node_killed_with_kill_9_is_out_of_every_listing_within_30_seconds() -> None:
    async def scenario() -> None:
        async with nodes(3) as (first, second, third):
            announced_at = now()
            for one in (first, second, third):
                await one.directory.announce(one.record(hosted(Span(0, 8)), name=str(one.identity.peer_id)))
            dead = third.identity.peer_id
            assert dead in await first.names()
            for process in psutil.Process(third.transport.daemon_pid).children(recursive=True):
                if process.name() == "p2pd":
                    os.kill(process.pid, signal.SIGKILL)
            with anyio.fail_after(20):
                await third.transport.died()

            async def vanished() -> bool:
                for one in (first, second):
                    await one.directory.announce(one.record(hosted(Span(0, 8)), name=str(one.identity.peer_id)))
                everywhere = [await first.names(), await second.names()]
                everywhere += [{r.name for r in await one.directory.holders(MODEL)} for one in (first, second)]
                assert all(first.identity.peer_id in names for names in everywhere)
                return not any(dead in names for names in everywhere)

            await until(vanished, VANISHES_WITHIN_S)
            assert now() - announced_at > RECORD_TTL_S  # it was the lifetime that ended, not the listing

    anyio.run(scenario)


def dht_of(one: Node) -> Any:  # noqa: ANN401
    """hivemind's node inside, for attacks and for a look at what lies in the tables."""
    return one.directory._node  # noqa: SLF001


async def plant(attacker: Node, key: bytes, value: bytes, subkey: object, expires_at: float) -> None:
    """Push bytes to every other node of the DHT, past our own validator, as a hostile program would."""
    dht = dht_of(attacker)
    packed = dht.protocol.serializer.dumps(value)
    for peer in list(dht.protocol.routing_table.uid_to_peer_id.values()):
        key_id = type(dht.node_id).from_bytes(dht_keys.key_id(key))
        await dht.protocol.call_store(peer, [key_id], [packed], [expires_at], [subkey])


def test_a_hostile_peer_of_the_dht_can_neither_overwrite_nor_wipe_nor_outlive() -> None:
    async def scenario() -> None:
        async with nodes(4) as (first, second, third, mallory):
            await second.directory.announce(second.record(hosted(Span(0, 8)), name="second"))
            older = sign_record(second.identity, second.record(name="older", expires_at=now() + 5))
            victim = second.identity.peer_id
            own_key = dht_keys.node_key(SWARM.id, victim)
            mine = sign_record(mallory.identity, mallory.record(name="mallory", expires_at=now() + 24))
            in_his_name = sign_record_unchecked(mallory.identity, second.record(name="fake", expires_at=now() + 24))
            immortal = sign_record(mallory.identity, mallory.record(name="immortal", expires_at=now() + 1e6))
            stranger = mallory.record(name="stranger", expires_at=now() + 24)
            no_member = sign_record(mallory.identity, msgspec.structs.replace(stranger, certificate=b""))
            mallorys_key = dht_keys.node_key(SWARM.id, mallory.identity.peer_id)
            attacks: list[tuple[bytes, bytes, object, float]] = [
                (own_key, mine, victim, now() + 24),  # overwrite by another
                (own_key, in_his_name, victim, now() + 24),  # with a forged signature
                (own_key, b"", victim, now() + 24),  # wipe one
                (own_key, b"", None, now() + 3600),  # wipe the shard
                (own_key, older, victim, now() + 24),  # replay over the newer
                (own_key, older, victim, now() + 5),
                (own_key, b"x" * 100_000, victim, now() + 24),  # oversize
                (own_key, b"x" * 100_000, "somebody", now() + 24),
                (mallorys_key, immortal, mallory.identity.peer_id, now() + 1e6),  # far future
                (mallorys_key, no_member, mallory.identity.peer_id, now() + 24),  # not a member
                (b"other", b"data", None, now() + 24),  # foreign keys
            ]
            for attack in attacks:
                await plant(mallory, *attack)
            await anyio.sleep(1.1)  # past FRESH_S: no listing comes from memory
            for one in (first, third):
                assert await one.names() == {"second"}
                for storage in (dht_of(one).protocol.storage, dht_of(one).protocol.cache):
                    sizes = [len(value) for _, entry in storage.items() for _, (value, _) in entry.value.items()]
                    assert all(size < 4200 for size in sizes)
                    assert len(sizes) <= 2

    anyio.run(scenario)


def sign_record_unchecked(signer: Identity, made: NodeRecord) -> bytes:
    body = msgspec.msgpack.encode(made, order="deterministic")
    return msgspec.msgpack.encode([body, signer.sign("record", body)])


def test_one_bad_entry_does_not_hide_the_rest_of_a_shard() -> None:
    """A peer that lost its mind stores rubbish into its own table and serves it."""

    async def scenario() -> None:
        async with nodes(3) as (first, second, third):
            await second.directory.announce(second.record(name="second"))
            protocol = dht_of(third).protocol
            key = dht_keys.node_key(SWARM.id, second.identity.peer_id)
            key_id = type(dht_of(third).node_id).from_bytes(dht_keys.key_id(key))
            entry = protocol.storage.get(key_id)
            assert entry is not None
            for subkey, value in (("rubbish", b"rubbish"), (b"\xff", b""), (person(9).peer_id, b"\xc4\x00")):
                entry.value.store(subkey, value, now() + 1e9)
            protocol.storage.store(key_id, entry.value, now() + 1e9)
            answer = await dht_of(first).protocol.call_find(dht_of(third).peer_id, [key_id])
            (found, _) = answer[key_id]
            assert found is not None
            assert [subkey for subkey, _ in found.value.items()] == [second.identity.peer_id]
            assert await first.names() == {"second"}

    anyio.run(scenario)


def test_a_revoked_peer_is_out_of_every_listing_and_the_list_outlives_its_owner() -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            owner_stack = await stack.enter_async_context(AsyncExitStack())
            owner = await owner_stack.enter_async_context(node(0))
            second, third = [await stack.enter_async_context(node(i, (owner.address,))) for i in (1, 2)]
            for one in (owner, second, third):
                await one.directory.announce(one.record(name=one.identity.peer_id))
            out = third.identity.peer_id
            assert out in await second.names()
            owner.revocations.merge(sign_list(OWNER, SWARM.id, 1, frozenset({out})))
            await owner.directory.announce(owner.record(name="owner"))

            async def learned() -> bool:
                return out not in await second.names()

            await until(learned, 5)
            with contextlib.suppress(Unavailable):  # it does not know yet; nobody else stores it
                await third.directory.announce(third.record(name="third again"))
            await third.directory.nodes()
            await owner_stack.aclose()
            async with node(7, (second.address,)) as newcomer:
                names = await newcomer.names()
                assert "third again" not in names
                assert out not in names
                assert newcomer.revocations.peers == {out}

    anyio.run(scenario)


@pytest.mark.parametrize(("offset_s", "direction"), [(600.0, "ahead of"), (-600.0, "behind")])
def test_a_machine_whose_clock_is_wrong_is_told_so(offset_s: float, direction: str) -> None:
    async def scenario() -> None:
        async with node(0) as first:
            with pytest.raises(UsageError, match=f"clock is 600 s {direction} the swarm's"):
                async with node(1, (first.address,), clock=lambda: now() + offset_s):
                    pass

    anyio.run(scenario)


def test_a_clock_that_is_off_a_little_is_borne() -> None:
    async def scenario() -> None:
        async with node(0) as first, node(1, (first.address,), clock=lambda: now() + 2.0) as ahead:
            await ahead.directory.announce(ahead.record(name="ahead"))
            assert await first.names() == {"ahead"}
            (seen,) = await first.directory.nodes()
            assert seen.expires_at <= now() + RECORD_TTL_S + 2.0

    anyio.run(scenario)


def test_a_swarm_that_nobody_answers_for_is_unreachable_within_seconds() -> None:
    async def scenario() -> None:
        nobody = f"/ip4/127.0.0.1/tcp/9/p2p/{person(5).peer_id}"
        began = now()
        with pytest.raises(SwarmUnreachable, match="none of the 1 known addresses"):
            async with node(1, (nobody, nobody)):
                pass
        assert now() - began < 15

    anyio.run(scenario)


def test_the_same_identity_in_two_places_is_found_before_it_serves() -> None:
    async def scenario() -> None:
        async with node(0) as first, node(1, (first.address,)) as original:
            await original.directory.announce(original.record(name="original"))
            async with node(1, (first.address,)) as copy:
                found = clash(copy.record(name="copy"), await copy.directory.nodes(), now())
                assert found is not None
                assert found.name == "original"
                assert clash(original.record(), await original.directory.nodes(), now()) is None

    anyio.run(scenario)


def test_nodes_whose_first_contact_died_and_came_back_find_one_another_again() -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            first_stack = await stack.enter_async_context(AsyncExitStack())
            first = await first_stack.enter_async_context(node(0))
            second = await stack.enter_async_context(node(1, (first.address,)))
            await second.directory.announce(second.record(name="second"))
            await first_stack.aclose()
            third = await stack.enter_async_context(node(2, (second.address,)))
            await third.directory.announce(third.record(name="third"))

            async def together() -> bool:
                return await second.names() >= {"second", "third"}

            await until(together, 15)

    anyio.run(scenario)
