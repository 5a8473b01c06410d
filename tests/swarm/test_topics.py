"""Gossip of small messages: both adapters keep the contract, and an envelope shows who signed what for which topic."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarm.people import person
from swarm.topics_contract import Ear, Gossips, TopicsContract, fresh, listening

from shoal.swarm.errors import DaemonDied, FrameTooLarge, MalformedMessage
from shoal.swarm.identifiers import PeerId
from shoal.swarm.topic_envelope import MAX_BODY_BYTES, open_sealed, seal
from shoal.swarm.topics import MAX_TOPIC_BYTES, Topics
from shoal.swarm.transports.libp2p import Libp2pTransport
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.transports.memory_link import Conditions
from shoal.swarm.transports.memory_topics import MemoryGossip
from shoal.swarm.transports.p2pd import NetworkOptions
from shoal.swarm.transports.p2pd_topics import P2pdTopics

ALICE, BOB = person(1), person(2)


@asynccontextmanager
async def in_memory(peers: int) -> AsyncIterator[dict[PeerId, Topics]]:
    async with MemoryNetwork(conditions=Conditions(latency_s=(0.001, 0.002))) as network:
        gossip = MemoryGossip(network)
        names = [PeerId(f"peer{number}") for number in range(peers)]
        yield {name: gossip.join(network.join(name)) for name in names}


@asynccontextmanager
async def over_p2pd(peers: int) -> AsyncIterator[dict[PeerId, Topics]]:
    transports: list[Libp2pTransport] = []
    topics: dict[PeerId, P2pdTopics] = {}
    try:
        for number in range(peers):
            transport = await Libp2pTransport.start(person(number).libp2p_key(), NetworkOptions(host="127.0.0.1"))
            for other in transports:
                await transport.connect(other.me, other.addresses)
            transports.append(transport)
            topics[transport.me] = P2pdTopics(transport.daemon_control)
        yield dict(topics)
    finally:
        for gossip in topics.values():
            await gossip.stop()
        for transport in transports:
            await transport.stop()


class TestInVirtualTime(TopicsContract):
    @pytest.fixture
    def anyio_backend(self, virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
        return virtual_time

    @pytest.fixture
    def gossips(self) -> Gossips:
        return in_memory


@pytest.mark.network
class TestOverP2pd(TopicsContract):
    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    def gossips(self) -> Gossips:
        return over_p2pd


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.network
@pytest.mark.anyio
async def test_a_daemon_that_died_says_so_and_stopping_still_works() -> None:
    transport = await Libp2pTransport.start(ALICE.libp2p_key(), NetworkOptions(host="127.0.0.1"))
    topics = P2pdTopics(transport.daemon_control)
    try:
        topic, ear = fresh(), Ear()
        await topics.listen(topic, ear)
        await topics.publish(topic, b"alive")
        await ear.count(1)
        next(p for p in psutil.Process(transport.daemon_pid).children() if p.name() == "p2pd").kill()
        await transport.died()
        with anyio.fail_after(10), pytest.raises(DaemonDied):
            await topics.publish(topic, b"into the void")
        with anyio.fail_after(10), pytest.raises(DaemonDied):
            await topics.listen(fresh(), ear)
    finally:
        await topics.stop()
        await transport.stop()


@pytest.mark.anyio
async def test_the_dead_and_the_cut_off_hear_nothing_in_the_simulated_network() -> None:
    async with MemoryNetwork(conditions=Conditions(latency_s=(0.001, 0.002))) as network:
        gossip = MemoryGossip(network)
        names = [PeerId(name) for name in ("a", "b", "c", "d")]
        topics: dict[PeerId, Topics] = {name: gossip.join(network.join(name)) for name in names}
        ears = await listening(topics, "news")
        network.kill(names[1])
        network.partition(names[0], names[2])
        await topics[names[0]].publish("news", b"read all about it")
        await ears[names[3]].count(1)
        assert [len(ears[name].heard) for name in names] == [1, 0, 0, 1]
        with pytest.raises(DaemonDied):
            await topics[names[1]].publish("news", b"from the grave")


def test_an_envelope_gives_back_who_signed_it_and_what() -> None:
    data = seal(ALICE, "news", b"hello")
    assert open_sealed("news", ALICE.peer_id, data) == (ALICE.peer_id, b"hello")
    assert open_sealed("news", None, data) == (ALICE.peer_id, b"hello")
    longest = seal(ALICE, "news", bytes(MAX_BODY_BYTES))
    assert len(longest) <= MAX_TOPIC_BYTES
    with pytest.raises(FrameTooLarge):
        seal(ALICE, "news", bytes(MAX_BODY_BYTES + 1))


def test_an_envelope_is_worth_nothing_under_another_topic_or_name() -> None:
    data = seal(ALICE, "news", b"hello")
    with pytest.raises(MalformedMessage):
        open_sealed("views", None, data)
    with pytest.raises(MalformedMessage):
        open_sealed("news", BOB.peer_id, data)


@given(st.data())
def test_an_envelope_with_one_byte_changed_is_refused(data: st.DataObject) -> None:
    sealed = bytearray(seal(ALICE, "news", b"hello"))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(MalformedMessage):
        open_sealed("news", None, bytes(sealed))


@given(st.binary(max_size=200))
def test_any_bytes_are_opened_or_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        open_sealed("news", None, data)
