"""What every transport must do, whoever carries the bytes. A test file of an adapter subclasses `TransportContract`
and overrides the fixture `peers`; nothing here looks behind the seam.
"""

import itertools
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import anyio
import pytest

from shoal.swarm import errors
from shoal.swarm.errors import (
    DaemonDied,
    FrameTooLarge,
    NotSpoken,
    PeerUnreachable,
    Refused,
    RemoteFault,
    ShoalError,
    StreamBroken,
    TimedOut,
    Unavailable,
)
from shoal.swarm.identifiers import PeerId
from shoal.swarm.transport import MAX_CALL_BYTES, MAX_FRAME_BYTES, Stream, Transport

PATIENCE_S = 30.0  # nothing here may take longer
_numbers = itertools.count()


class Peers(Protocol):
    """A small network. Names of protocols are never used twice, so an adapter may lend a transport to many tests."""

    async def start(self) -> Transport:
        """A live peer that all peers of this network can reach, and that can reach them."""

    async def kill(self, transport: Transport) -> None:
        """What kill -9 of its daemon does; the other peers notice for themselves."""


PeersFactory = Callable[[], AbstractAsyncContextManager[Peers]]


def fresh(name: str) -> str:
    return f"test/{name}/{next(_numbers)}"


class Inbox:
    """A stream handler that hands its streams to the test and keeps them open until the test is done with them."""

    def __init__(self) -> None:
        self._give, self._take = anyio.create_memory_object_stream[tuple[Stream, anyio.Event]](16)

    async def __call__(self, stream: Stream) -> None:
        done = anyio.Event()
        await self._give.send((stream, done))
        await done.wait()

    async def next(self) -> tuple[Stream, anyio.Event]:
        """The stream, and what to set when the handler shall return."""
        return await self._take.receive()


async def echo(stream: Stream) -> None:
    while (frame := await stream.receive()) is not None:
        await stream.send(frame)
    await stream.close()


async def echo_call(_caller: PeerId, payload: bytes) -> bytes:
    return payload


async def joined(client: Transport, server: Transport) -> tuple[Stream, Stream, anyio.Event]:
    """Both ends of a new stream."""
    protocol, inbox = fresh("inbox"), Inbox()
    await server.serve(protocol, inbox)
    near = await client.open(server.me, protocol)
    await near.send(b"hello")  # some transports tell the server only with the first bytes
    far, done = await inbox.next()
    assert await far.receive() == b"hello"
    return near, far, done


@pytest.mark.anyio
class TransportContract:
    @pytest.fixture
    def peers(self) -> PeersFactory:
        raise NotImplementedError("the adapter's test file says how to start peers")

    async def test_frames_come_whole_and_in_order_both_ways(self, peers: PeersFactory) -> None:
        frames = [b"", b"a", bytes(range(256)) * 300, b"", b"\x00" * (1 << 20), b"last"]
        with anyio.fail_after(PATIENCE_S):
            async with peers() as network:
                client, server = await network.start(), await network.start()
                protocol = fresh("echo")
                await server.serve(protocol, echo)
                stream = await client.open(server.me, protocol)
                for frame in frames:
                    await stream.send(frame)
                assert [await stream.receive() for _ in frames] == frames
                await stream.close()

    async def test_both_ends_know_who_the_other_is(self, peers: PeersFactory) -> None:
        with anyio.fail_after(PATIENCE_S):
            async with peers() as network:
                client, server = await network.start(), await network.start()
                near, far, done = await joined(client, server)
                assert (near.peer, far.peer) == (server.me, client.me)
                done.set()

    async def test_every_frame_sent_before_close_arrives_and_then_the_end(self, peers: PeersFactory) -> None:
        with anyio.fail_after(PATIENCE_S):
            async with peers() as network, anyio.create_task_group() as tasks:
                client, server = await network.start(), await network.start()
                near, far, done = await joined(client, server)

                async def send_all() -> None:
                    for number in range(500):
                        await near.send(b"%d" % number)
                    await near.close()

                tasks.start_soon(send_all)
                assert [await far.receive() for _ in range(500)] == [b"%d" % n for n in range(500)]
                assert await far.receive() is None
                assert await far.receive() is None, "the end stays the end"
                done.set()

    async def test_nothing_can_be_sent_on_a_stream_that_we_closed(self, peers: PeersFactory) -> None:
        with anyio.fail_after(PATIENCE_S):
            async with peers() as network, anyio.create_task_group() as tasks:
                client, server = await network.start(), await network.start()
                near, far, done = await joined(client, server)
                tasks.start_soon(far.receive)
                await near.close()
                with pytest.raises(StreamBroken):
                    await near.send(b"too late")
                done.set()

    async def test_closing_from_both_ends_at_once_ends_within_a_bound(self, peers: PeersFactory) -> None:
        with anyio.fail_after(PATIENCE_S):
            async with peers() as network:
                client, server = await network.start(), await network.start()
                near, far, done = await joined(client, server)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(near.close)
                    tasks.start_soon(far.close)
                done.set()

    async def test_closing_twice_or_after_an_abort_is_harmless(self, peers: PeersFactory) -> None:
        with anyio.fail_after(PATIENCE_S):
            async with peers() as network:
                client, server = await network.start(), await network.start()
                near, far, done = await joined(client, server)
                near.abort()
                near.abort()
                await near.close()
                with pytest.raises(StreamBroken):
                    await far.receive()
                await far.close()
                done.set()

    async def test_an_aborted_stream_is_broken_at_the_other_end(self, peers: PeersFactory) -> None:
        with anyio.fail_after(PATIENCE_S):
            async with peers() as network:
                client, server = await network.start(), await network.start()
                near, far, done = await joined(client, server)
                far.abort()
                with pytest.raises(StreamBroken):
                    await near.receive()
                done.set()

    async def test_a_handler_that_returns_without_closing_breaks_its_stream(self, peers: PeersFactory) -> None:
        with anyio.fail_after(PATIENCE_S):
            async with peers() as network:
                client, server = await network.start(), await network.start()
                near, _far, done = await joined(client, server)
                done.set()
                with pytest.raises(StreamBroken):
                    await near.receive()

    async def test_a_handler_that_fails_costs_its_own_stream_only(self, peers: PeersFactory) -> None:
        async def refuse(stream: Stream) -> None:
            raise Refused("not you")

        with anyio.fail_after(PATIENCE_S):
            async with peers() as network:
                client, server = await network.start(), await network.start()
                bad, good = fresh("refuse"), fresh("echo")
                await server.serve(bad, refuse)
                await server.serve(good, echo)
                refused, served = await client.open(server.me, bad), await client.open(server.me, good)
                with pytest.raises(StreamBroken):
                    await refused.receive()
                await served.send(b"still here")
                assert await served.receive() == b"still here"
                await served.close()

    async def test_a_receive_that_was_cancelled_loses_no_frame(self, peers: PeersFactory) -> None:
        with anyio.fail_after(PATIENCE_S):
            async with peers() as network:
                client, server = await network.start(), await network.start()
                near, far, done = await joined(client, server)
                with anyio.move_on_after(0.2) as waiting:
                    await far.receive()
                assert waiting.cancelled_caught
                await near.send(b"first")
                await near.send(b"second")
                assert [await far.receive(), await far.receive()] == [b"first", b"second"]
                done.set()

    async def test_a_slow_reader_gets_every_frame(self, peers: PeersFactory) -> None:
        frames = [bytes([n]) * (256 << 10) for n in range(24)]
        with anyio.fail_after(PATIENCE_S):
            async with peers() as network, anyio.create_task_group() as tasks:
                client, server = await network.start(), await network.start()
                near, far, done = await joined(client, server)

                async def send_all() -> None:
                    for frame in frames:
                        await near.send(frame)
                    await near.close()

                tasks.start_soon(send_all)
                for frame in frames:
                    await anyio.sleep(0.01)
                    assert await far.receive() == frame
                assert await far.receive() is None
                done.set()

    async def test_a_frame_over_the_limit_is_refused_before_it_is_sent(self, peers: PeersFactory) -> None:
        with anyio.fail_after(PATIENCE_S):
            async with peers() as network:
                client, server = await network.start(), await network.start()
                near, far, done = await joined(client, server)
                with pytest.raises(FrameTooLarge):
                    await near.send(bytes(MAX_FRAME_BYTES + 1))
                await near.send(b"the stream lives")
                assert await far.receive() == b"the stream lives"
                done.set()

    async def test_a_killed_peer_breaks_its_streams_and_cannot_be_reached(self, peers: PeersFactory) -> None:
        with anyio.fail_after(PATIENCE_S):
            async with peers() as network:
                client, server = await network.start(), await network.start()
                protocol, method = fresh("echo"), fresh("call")
                await server.serve(protocol, echo)
                await server.answer(method, echo_call)
                stream = await client.open(server.me, protocol)
                await network.kill(server)
                with pytest.raises(StreamBroken):
                    await stream.receive()
                with pytest.raises(StreamBroken):
                    await stream.send(b"anyone?")
                with pytest.raises(PeerUnreachable):
                    await client.open(server.me, protocol, timeout_s=3.0)
                with pytest.raises(Unavailable):
                    await client.call(server.me, method, b"", timeout_s=3.0)

    async def test_when_our_own_daemon_dies_everything_says_so(self, peers: PeersFactory) -> None:
        with anyio.fail_after(PATIENCE_S):
            async with peers() as network:
                client, server = await network.start(), await network.start()
                near, _far, done = await joined(client, server)
                await network.kill(client)
                await client.died()
                with pytest.raises(DaemonDied):
                    await near.receive()
                with pytest.raises(DaemonDied):
                    await client.open(server.me, fresh("nothing"))
                with pytest.raises(DaemonDied):
                    await client.call(server.me, fresh("nothing"), b"")
                done.set()

    async def test_an_unknown_protocol_or_method_is_told_from_a_peer_that_is_gone(self, peers: PeersFactory) -> None:
        with anyio.fail_after(PATIENCE_S):
            async with peers() as network:
                client, server = await network.start(), await network.start()
                with pytest.raises(NotSpoken):
                    await client.open(server.me, fresh("nothing"))
                with pytest.raises(NotSpoken):
                    await client.call(server.me, fresh("nothing"), b"")

    async def test_a_call_carries_its_caller_and_both_payloads(self, peers: PeersFactory) -> None:
        async def who(caller: PeerId, payload: bytes) -> bytes:
            return caller.encode() + b" said " + payload

        with anyio.fail_after(PATIENCE_S):
            async with peers() as network:
                client, server = await network.start(), await network.start()
                method = fresh("who")
                await server.answer(method, who)
                said = await client.call(server.me, method, b"good day")
                assert said == client.me.encode() + b" said good day"

    async def test_the_largest_call_passes_and_one_byte_more_does_not(self, peers: PeersFactory) -> None:
        async def shorten(_caller: PeerId, payload: bytes) -> bytes:
            return payload + (b"!" if payload[:1] == b"+" else b"")

        with anyio.fail_after(PATIENCE_S):
            async with peers() as network:
                client, server = await network.start(), await network.start()
                method = fresh("largest")
                await server.answer(method, shorten)
                largest = b"x" * MAX_CALL_BYTES
                assert await client.call(server.me, method, largest) == largest
                with pytest.raises(FrameTooLarge):
                    await client.call(server.me, method, largest + b"x")
                with pytest.raises(RemoteFault):  # the answer is one byte too long
                    await client.call(server.me, method, b"+" + largest[1:])
                assert await client.call(server.me, method, b"small") == b"small"

    async def test_what_a_handler_raises_reaches_the_caller_with_class_and_text(self, peers: PeersFactory) -> None:
        kinds = [
            kind
            for kind in vars(errors).values()
            if isinstance(kind, type) and issubclass(kind, ShoalError) and kind is not DaemonDied
        ]

        async def fail(_caller: PeerId, payload: bytes) -> bytes:
            raise getattr(errors, payload.decode())(f"because of {payload.decode()}: 12 % of ä is left")

        with anyio.fail_after(PATIENCE_S):
            async with peers() as network:
                client, server = await network.start(), await network.start()
                method = fresh("fail")
                await server.answer(method, fail)
                for kind in kinds:
                    with pytest.raises(ShoalError) as caught:
                        await client.call(server.me, method, kind.__name__.encode())
                    assert type(caught.value) is kind
                    assert str(caught.value) == f"because of {kind.__name__}: 12 % of ä is left"

    async def test_a_call_without_an_answer_ends_at_its_deadline(self, peers: PeersFactory) -> None:
        async def never(_caller: PeerId, payload: bytes) -> bytes:
            await anyio.sleep(PATIENCE_S * 2)
            return payload

        with anyio.fail_after(PATIENCE_S):
            async with peers() as network:
                client, server = await network.start(), await network.start()
                method = fresh("never")
                await server.answer(method, never)
                began = anyio.current_time()
                with pytest.raises(TimedOut):
                    await client.call(server.me, method, b"", timeout_s=0.5)
                assert 0.45 <= anyio.current_time() - began < 3.0

    async def test_many_streams_and_calls_at_once_do_not_mix(self, peers: PeersFactory) -> None:
        with anyio.fail_after(PATIENCE_S):
            async with peers() as network:
                client, server = await network.start(), await network.start()
                protocol, method = fresh("echo"), fresh("call")
                await server.serve(protocol, echo)
                await server.answer(method, echo_call)

                async def talk(number: int) -> None:
                    stream = await client.open(server.me, protocol)
                    for turn in range(20):
                        said = b"%d %d" % (number, turn)
                        await stream.send(said)
                        assert await stream.receive() == said
                        if turn % 5 == 0:
                            assert await client.call(server.me, method, said) == said
                    await stream.close()

                async with anyio.create_task_group() as tasks:
                    for number in range(12):
                        tasks.start_soon(talk, number)

    async def test_a_peer_can_disconnect_and_be_reached_again(self, peers: PeersFactory) -> None:
        with anyio.fail_after(PATIENCE_S):
            async with peers() as network:
                client, server = await network.start(), await network.start()
                method = fresh("call")
                await server.answer(method, echo_call)
                await client.disconnect(server.me)
                await client.connect(server.me, server.addresses)
                assert await client.call(server.me, method, b"back") == b"back"
