"""The simulated network keeps the transport's contract, and its faults do what they say, in virtual time."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from swarm.transport_contract import Peers, PeersFactory, TransportContract, echo, echo_call, joined

from shoal.swarm.errors import DaemonDied, PeerUnreachable, StreamBroken, TimedOut
from shoal.swarm.identifiers import PeerId
from shoal.swarm.transport import Stream, Transport
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.transports.memory_link import Conditions
from shoal.swarm.transports.memory_transport import MemoryTransport

ALICE, BOB, CAROL = PeerId("alice"), PeerId("bob"), PeerId("carol")
FAST = Conditions(latency_s=(0.001, 0.002))


class InMemory:
    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network
        self._started = 0

    async def start(self) -> Transport:
        self._started += 1
        return self._network.join(PeerId(f"peer{self._started}"))

    async def kill(self, transport: Transport) -> None:
        self._network.kill(transport.me)


@asynccontextmanager
async def in_memory() -> AsyncIterator[Peers]:
    async with MemoryNetwork(conditions=FAST) as network:
        yield InMemory(network)


class TestInRealTime(TransportContract):
    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    def peers(self) -> PeersFactory:
        return in_memory


class TestInVirtualTime(TransportContract):
    @pytest.fixture
    def anyio_backend(self, virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
        return virtual_time

    @pytest.fixture
    def peers(self) -> PeersFactory:
        return in_memory


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


@asynccontextmanager
async def two_peers(
    conditions: Conditions, seed: int = 0
) -> AsyncIterator[tuple[MemoryNetwork, MemoryTransport, MemoryTransport]]:
    async with MemoryNetwork(seed, conditions) as network:
        yield network, network.join(ALICE), network.join(BOB)


@pytest.mark.anyio
async def test_a_frame_takes_its_links_latency() -> None:
    async with two_peers(FAST) as (network, alice, bob):
        network.set_latency(ALICE, BOB, 0.25)
        await bob.serve("echo", echo)
        stream = await alice.open(BOB, "echo")
        began = anyio.current_time()
        await stream.send(b"there and back")
        await stream.receive()
        assert anyio.current_time() - began == pytest.approx(0.5)


@pytest.mark.anyio
async def test_a_call_takes_a_round_trip() -> None:
    async with two_peers(FAST) as (network, alice, bob):
        network.set_latency(ALICE, BOB, 0.25)
        await bob.answer("echo", echo_call)
        began = anyio.current_time()
        await alice.call(BOB, "echo", b"")
        assert anyio.current_time() - began == pytest.approx(0.5)


@pytest.mark.anyio
async def test_bandwidth_delays_large_frames() -> None:
    conditions = Conditions(latency_s=(0.0, 0.0), bandwidth_byte_s=1000.0)
    async with two_peers(conditions) as (_, alice, bob):
        near, far, done = await joined(alice, bob)
        began = anyio.current_time()
        await near.send(bytes(500))
        await near.send(bytes(1500))
        await far.receive()
        assert anyio.current_time() - began == pytest.approx(0.5)
        await far.receive()
        assert anyio.current_time() - began == pytest.approx(2.0)
        done.set()


@pytest.mark.anyio
async def test_jitter_never_reorders_a_stream() -> None:
    async with two_peers(Conditions(latency_s=(0.01, 0.02), jitter_s=1.0)) as (_, alice, bob):
        near, far, done = await joined(alice, bob)
        for number in range(200):
            await near.send(b"%d" % number)
        assert [await far.receive() for _ in range(200)] == [b"%d" % n for n in range(200)]
        done.set()


@pytest.mark.anyio
async def test_a_sender_waits_when_the_reader_does_not_read() -> None:
    async with two_peers(Conditions(window_bytes=1000)) as (_, alice, bob):
        near, far, done = await joined(alice, bob)
        await near.send(bytes(600))
        with anyio.move_on_after(3600.0) as waiting:
            await near.send(bytes(600))
        assert waiting.cancelled_caught
        await far.receive()
        await near.send(bytes(600))
        done.set()


@pytest.mark.anyio
async def test_a_hung_peer_takes_streams_and_says_nothing() -> None:
    async with two_peers(FAST) as (network, alice, bob):
        await bob.serve("echo", echo)
        await bob.answer("echo", echo_call)
        network.hang(BOB)
        stream = await alice.open(BOB, "echo")
        await stream.send(b"hello?")
        with anyio.move_on_after(3600.0) as waiting:
            await stream.receive()
        assert waiting.cancelled_caught
        with pytest.raises(TimedOut):
            await alice.call(BOB, "echo", b"", timeout_s=5.0)
        network.resume(BOB)
        assert await stream.receive() == b"hello?"
        assert await alice.call(BOB, "echo", b"late") == b"late"


@pytest.mark.anyio
async def test_closing_towards_a_hung_peer_is_bounded() -> None:
    async with two_peers(FAST) as (network, alice, bob):
        await bob.serve("echo", echo)
        stream = await alice.open(BOB, "echo")
        network.hang(BOB)
        began = anyio.current_time()
        await stream.close()
        assert anyio.current_time() - began == pytest.approx(FAST.ack_timeout_s)


@pytest.mark.anyio
async def test_a_hung_peer_that_is_killed_breaks_its_streams() -> None:
    async with two_peers(FAST) as (network, alice, bob):
        near, far, _ = await joined(alice, bob)
        network.hang(BOB)
        network.kill(BOB)
        with pytest.raises(StreamBroken):
            await near.receive()
        with pytest.raises(DaemonDied):
            await far.receive()


@pytest.mark.anyio
async def test_frames_that_were_under_way_when_their_sender_died_arrive_before_the_break() -> None:
    async with two_peers(FAST) as (network, alice, bob):
        near, far, _ = await joined(alice, bob)
        await near.send(b"last words")
        await anyio.sleep(0.0005)
        network.kill(ALICE)
        assert await far.receive() == b"last words"
        with pytest.raises(StreamBroken):
            await far.receive()


@pytest.mark.anyio
async def test_a_cut_link_loses_what_was_under_way_and_breaks_the_stream_later() -> None:
    async with two_peers(Conditions(latency_s=(0.1, 0.1), cut_detection_s=7.0)) as (network, alice, bob):
        near, far, done = await joined(alice, bob)
        await near.send(b"lost")
        began = anyio.current_time()
        network.partition(ALICE, BOB)
        for end in (far, near):
            with pytest.raises(StreamBroken):
                await end.receive()
        assert anyio.current_time() - began == pytest.approx(7.0)
        with pytest.raises(PeerUnreachable):
            await alice.open(BOB, "anything", timeout_s=3.0)
        assert anyio.current_time() - began == pytest.approx(10.0)
        network.heal(ALICE, BOB)
        await bob.serve("echo", echo)
        await alice.open(BOB, "echo")
        done.set()


@pytest.mark.anyio
async def test_a_cut_link_leaves_other_links_alone() -> None:
    async with two_peers(FAST) as (network, alice, bob):
        carol = network.join(CAROL)
        near, far, done = await joined(alice, carol)
        network.partition(ALICE, BOB)
        await near.send(b"hello")
        assert await far.receive() == b"hello"
        await bob.answer("echo", echo_call)
        assert await carol.call(BOB, "echo", b"x") == b"x"
        done.set()


@pytest.mark.anyio
async def test_a_peer_that_dies_while_it_answers_is_unreachable_at_once() -> None:
    async with two_peers(FAST) as (network, alice, bob):

        async def die(_caller: PeerId, payload: bytes) -> bytes:
            network.kill(BOB)
            await anyio.sleep(3600.0)
            return payload

        await bob.answer("die", die)
        began = anyio.current_time()
        with pytest.raises(PeerUnreachable):
            await alice.call(BOB, "die", b"", timeout_s=60.0)
        assert anyio.current_time() - began < 1.0


@pytest.mark.anyio
async def test_a_killed_peers_own_calls_and_handlers_stop() -> None:
    async with two_peers(FAST) as (network, alice, bob):
        near, far, _ = await joined(alice, bob)
        await alice.answer("slow", echo_call)
        network.set_latency(ALICE, BOB, 10.0)

        async def kill_soon() -> None:
            await anyio.sleep(1.0)
            network.kill(BOB)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill_soon)
            with pytest.raises(DaemonDied):
                await bob.call(ALICE, "slow", b"", timeout_s=60.0)
        with pytest.raises(DaemonDied):
            await far.send(b"from beyond")
        with pytest.raises(StreamBroken):
            await near.receive()
        await network.join(BOB).connect(ALICE, alice.addresses, timeout_s=60.0)  # it may come back


@pytest.mark.anyio
async def test_lost_calls_time_out_as_often_as_asked() -> None:
    async with two_peers(Conditions(call_loss=0.3)) as (_, alice, bob):
        await bob.answer("echo", echo_call)
        lost = 0
        for _ in range(400):
            began = anyio.current_time()
            try:
                await alice.call(BOB, "echo", b"", timeout_s=5.0)
            except TimedOut:
                lost += 1
                assert anyio.current_time() - began == pytest.approx(5.0)
        assert 0.43 < lost / 400 < 0.59  # 1 - .7 * .7 = .51


@pytest.mark.anyio
async def test_streams_break_as_often_as_asked() -> None:
    async with two_peers(Conditions(break_probability=0.1)) as (_, alice, bob):
        await bob.serve("echo", echo)
        sent = 0
        for _ in range(40):
            stream = await alice.open(BOB, "echo")
            try:
                while True:
                    await stream.send(b"x")
                    await stream.receive()
                    sent += 1
            except StreamBroken:
                pass
        assert 2.5 < sent / 40 < 8.5  # an echo survives with .9 * .9: 4.3 before the break on average


@pytest.mark.anyio
async def test_traffic_is_counted_per_direction() -> None:
    async with two_peers(FAST) as (network, alice, bob):
        near, far, done = await joined(alice, bob)  # 5 bytes there
        await near.send(bytes(100))
        await far.receive()
        await far.send(bytes(7))
        await bob.answer("length", echo_call)
        await alice.call(BOB, "length", bytes(10))
        there, back = network.traffic(ALICE, BOB), network.traffic(BOB, ALICE)
        assert (there.frames, there.payload_bytes) == (3, 115)
        assert (back.frames, back.payload_bytes) == (2, 17)
        done.set()


@pytest.mark.anyio
async def test_a_bug_in_a_handler_comes_out_of_the_network() -> None:
    async def buggy(_stream: Stream) -> None:
        raise ZeroDivisionError("a bug")

    async def visit() -> None:
        async with two_peers(FAST) as (_, alice, bob):
            await bob.serve("buggy", buggy)
            await alice.open(BOB, "buggy")
            await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await visit()
    assert caught.group_contains(ZeroDivisionError, match="a bug")


async def story(seed: int) -> list[tuple[float, str]]:
    """Three chatting peers on a bad network: who got what, when."""
    told: list[tuple[float, str]] = []
    bad = Conditions(jitter_s=0.1, call_loss=0.1, break_probability=0.02)
    async with MemoryNetwork(seed, bad) as network:
        peers = {peer: network.join(peer) for peer in (ALICE, BOB, CAROL)}
        for transport in peers.values():
            await transport.serve("echo", echo)
            await transport.answer("echo", echo_call)
        began = anyio.current_time()

        def tell(what: str) -> None:
            told.append((round(anyio.current_time() - began, 9), what))

        async def chat(me: PeerId, other: PeerId) -> None:
            try:
                stream = await peers[me].open(other, "echo")
                for number in range(20):
                    await stream.send(b"%d" % number)
                    tell(f"{me} {other} {await stream.receive()!r}")
                    await peers[me].call(other, "echo", b"")
            except (StreamBroken, TimedOut, PeerUnreachable, DaemonDied) as error:
                tell(f"{me} {other} {error}")

        async with anyio.create_task_group() as tasks:
            for me in peers:
                for other in peers:
                    if me != other:
                        tasks.start_soon(chat, me, other)
            await anyio.sleep(0.5)
            network.kill(CAROL)
    return told


def test_a_run_is_a_function_of_its_seed(repeatable: Callable[[int], list[tuple[float, str]]]) -> None:
    first = repeatable(3)
    assert repeatable(3) == first
    assert repeatable(4) != first
    assert any("gone" in what or "killed" in what for _, what in first)


@pytest.fixture
def repeatable(virtual_time: tuple[str, dict[str, object]]) -> Callable[[int], list[tuple[float, str]]]:
    import trio.testing  # noqa: TID251

    def run(seed: int) -> list[tuple[float, str]]:
        clock = trio.testing.MockClock(autojump_threshold=0)
        return anyio.run(story, seed, backend="trio", backend_options={"clock": clock})

    return run


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_whatever_breaks_every_chat_ends_and_nothing_comes_twice(
    repeatable: Callable[[int], list[tuple[float, str]]], seed: int
) -> None:
    told = repeatable(seed)
    heard = [what for _, what in told]
    assert len(heard) == len(set(heard))
    assert told == sorted(told, key=lambda entry: entry[0])
    assert max(when for when, _ in told) < 200.0
