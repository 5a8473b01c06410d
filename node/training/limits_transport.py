"""A transport that keeps to an upload rate, and counts what passes: all that a trainer sends goes through it."""

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.swarm.errors import Refused
from shoal.swarm.identifiers import PeerId
from shoal.swarm.transport import CallHandler, Stream, StreamHandler, Transport

from .limits_rate import Throttle


@dataclass(slots=True)
class Traffic:
    """Payload bytes since the start, without the transport's own overhead."""

    sent_bytes: int = 0
    received_bytes: int = 0

    def so_far(self) -> tuple[int, int]:
        return self.sent_bytes, self.received_bytes


class ThrottledStream:
    """A `transport.Stream`."""

    def __init__(self, stream: Stream, throttle: Throttle, traffic: Traffic) -> None:
        self._stream, self._throttle, self._traffic = stream, throttle, traffic

    @property
    def peer(self) -> PeerId:
        return self._stream.peer

    async def send(self, frame: bytes) -> None:
        await self._throttle.pass_through(len(frame))
        await self._stream.send(frame)
        self._traffic.sent_bytes += len(frame)

    async def receive(self) -> bytes | None:
        frame = await self._stream.receive()
        self._traffic.received_bytes += len(frame or b"")
        return frame

    async def close(self) -> None:
        await self._stream.close()

    def abort(self) -> None:
        self._stream.abort()


class ThrottledTransport:
    """A `transport.Transport`. What is throttled is what we send: frames, requests, and answers to others' calls.

    It outlives a training: the daemon below takes each protocol and method once, and `clear` lets go of who was behind.
    """

    def __init__(self, transport: Transport, throttle: Throttle) -> None:
        self.traffic = Traffic()
        self.throttle = throttle
        self._transport = transport
        self._streams: dict[str, StreamHandler] = {}
        self._calls: dict[str, CallHandler] = {}
        self._known: set[str] = set()  # to the transport below

    def clear(self) -> None:
        """The training is over: nobody answers any more."""
        self._streams.clear()
        self._calls.clear()

    @property
    def me(self) -> PeerId:
        return self._transport.me

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._transport.addresses

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float = 10.0) -> None:
        await self._transport.connect(peer, addresses, timeout_s)

    async def disconnect(self, peer: PeerId) -> None:
        await self._transport.disconnect(peer)

    async def open(self, peer: PeerId, protocol: str, timeout_s: float = 10.0) -> Stream:
        return ThrottledStream(await self._transport.open(peer, protocol, timeout_s), self.throttle, self.traffic)

    async def call(self, peer: PeerId, method: str, payload: bytes, timeout_s: float = 5.0) -> bytes:
        await self.throttle.pass_through(len(payload))
        self.traffic.sent_bytes += len(payload)
        answer = await self._transport.call(peer, method, payload, timeout_s)
        self.traffic.received_bytes += len(answer)
        return answer

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        async def throttled(stream: Stream) -> None:
            behind = self._streams.get(protocol)
            if behind is None:
                stream.abort()
                return
            await behind(ThrottledStream(stream, self.throttle, self.traffic))

        self._streams[protocol] = handler
        if protocol not in self._known:
            self._known.add(protocol)
            await self._transport.serve(protocol, throttled)

    async def answer(self, method: str, handler: CallHandler) -> None:
        async def throttled(peer: PeerId, payload: bytes) -> bytes:
            behind = self._calls.get(method)
            if behind is None:
                raise Refused("no training runs here")
            self.traffic.received_bytes += len(payload)
            answer = await behind(peer, payload)
            await self.throttle.pass_through(len(answer))
            self.traffic.sent_bytes += len(answer)
            return answer

        self._calls[method] = handler
        if method not in self._known:
            self._known.add(method)
            await self._transport.answer(method, throttled)

    async def died(self) -> None:
        await self._transport.died()
