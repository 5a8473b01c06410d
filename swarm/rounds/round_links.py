"""One-way streams to the other peers of a run: what is to be said to a peer waits here for its stream.

Two streams to each peer, since a payload of megabytes must not hold up a vote. A stream that breaks takes along what
waited for it; the machine says again what matters.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
import anyio.abc

from shoal.swarm.errors import MalformedMessage, Refused, ShoalError, StreamBroken
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.handshake import Gate, greet, read_welcome, receive_greeting
from shoal.swarm.transport import Stream, Transport

from . import messages
from .events import Event, Lost, Mismatched, Received
from .exchange import RunSpec
from .messages import BULK, AnyMessage, Data, Enter, Entered, Mismatch, Upload
from .round_traffic import RoundTraffic
from .run_identity import differences, run_key

IDLE_S = 60.0  # after which a stream is closed
DIAL_TIMEOUT_S = 8.0
DIAL_AGAIN_S = 1.0  # after a failure; what is said meanwhile is lost
WAITING_MESSAGES = 1024  # of a control stream; the oldest are dropped
WAITING_PAYLOADS = 4096

Throttle = Callable[[int], Awaitable[None]]


@dataclass(slots=True)
class _Link:
    """waiting: in order; a payload that waits already is not put in twice"""

    waiting: OrderedDict[object, AnyMessage] = field(default_factory=OrderedDict)
    added: anyio.Event = field(default_factory=anyio.Event)
    number: int = 0


class RoundLinks:
    def __init__(
        self,
        transport: Transport,
        gate: Gate,
        spec: RunSpec,
        tasks: anyio.abc.TaskGroup,
        post: Callable[[Event], None],
        traffic: RoundTraffic,
        throttle: Throttle,
    ) -> None:
        self.addresses: dict[PeerId, tuple[str, ...]] = {}
        self.closed = False  # transports keep their handlers for ever; ours then hears nobody any more
        self._transport = transport
        self._gate = gate
        self._spec = spec
        self._tasks = tasks
        self._post = post
        self._traffic = traffic
        self._throttle = throttle
        self._links: dict[tuple[PeerId, bool], _Link] = {}
        self._failed_at: dict[PeerId, float] = {}
        self._protocol = f"{messages.PROTOCOL}/{run_key(spec.name)[:16]}"

    async def serve(self) -> None:
        await self._transport.serve(self._protocol, self._listen)

    def send(self, peer: PeerId, message: AnyMessage) -> None:
        bulk = isinstance(message, BULK)
        link = self._links.get((peer, bulk))
        if link is None:
            if anyio.current_time() - self._failed_at.get(peer, float("-inf")) < DIAL_AGAIN_S:
                return
            link = self._links[peer, bulk] = _Link()
            self._tasks.start_soon(self._carry, peer, bulk, link)
        link.number += 1
        key = _payload_key(message) if bulk else link.number
        if key in link.waiting:
            return
        link.waiting[key] = message
        if len(link.waiting) > (WAITING_PAYLOADS if bulk else WAITING_MESSAGES):
            link.waiting.popitem(last=False)
        link.added.set()

    async def _carry(self, peer: PeerId, bulk: bool, link: _Link) -> None:
        """The life of one stream. Ends when it breaks or has nothing to carry."""
        stream: Stream | None = None
        try:
            stream = await self._dial(peer, bulk)
            while await self._next(link):
                key, message = next(iter(link.waiting.items()))
                frame = messages.encode(message)
                await self._throttle(len(frame))
                await stream.send(frame)
                self._traffic.sent(message, len(frame))
                link.waiting.pop(key, None)
            await stream.close()
        except ShoalError:
            self._failed_at[peer] = anyio.current_time()
            self._post(Lost(peer))
        finally:
            if self._links.get((peer, bulk)) is link:
                del self._links[peer, bulk]
            if stream is not None:
                stream.abort()

    async def _next(self, link: _Link) -> bool:
        """Whether something came within the time that a stream may idle."""
        with anyio.move_on_after(IDLE_S):
            while not link.waiting:
                link.added = anyio.Event()
                await link.added.wait()
        return bool(link.waiting)

    async def _dial(self, peer: PeerId, bulk: bool) -> Stream:
        """raises: Unavailable, Refused, RemoteFault"""
        known = self.addresses.get(peer, ())
        if known:
            await self._transport.connect(peer, known, DIAL_TIMEOUT_S)
        stream = await self._transport.open(peer, self._protocol, DIAL_TIMEOUT_S)
        try:
            with anyio.fail_after(DIAL_TIMEOUT_S):
                await greet(stream, self._gate)
                await stream.send(messages.encode(Enter(self._spec, bulk)))
                await read_welcome(stream, self._gate)
                answer = await _first(stream)
        except BaseException as error:
            stream.abort()
            if isinstance(error, TimeoutError):
                raise StreamBroken(f"{peer} did not answer the greeting") from error
            raise
        match answer:
            case Entered():
                return stream
            case Mismatch(spec):
                self._post(Mismatched(peer, differences(self._spec, spec)))
                stream.abort()
                raise Refused(f"{peer} trains another run of this name")
            case _:
                stream.abort()
                raise MalformedMessage(f"{peer} began a round with {type(answer).__name__}")

    async def _listen(self, stream: Stream) -> None:
        """The other end of somebody's stream."""
        if self.closed:
            return
        peer = stream.peer
        await receive_greeting(stream, self._gate)
        enter = await _first(stream)
        if not isinstance(enter, Enter):
            raise MalformedMessage(f"{peer} began a round with {type(enter).__name__}")
        named = differences(self._spec, enter.spec)
        if named:
            self._post(Mismatched(peer, named))
            await stream.send(messages.encode(Mismatch(self._spec)))
            await stream.close()
            return
        await stream.send(messages.encode(Entered()))
        while (frame := await stream.receive()) is not None:
            message = messages.decode(frame)
            self._traffic.received(message, len(frame))
            self._post(Received(peer, message))
        await stream.close()


async def _first(stream: Stream) -> AnyMessage:
    frame = await stream.receive()
    if frame is None:
        raise StreamBroken(f"{stream.peer} closed the stream before it was answered")
    return messages.decode(frame)


def _payload_key(message: AnyMessage) -> object:
    match message:
        case Upload(round=round_, shard=shard, contributor=contributor):
            return (round_, shard, contributor)
        case Data(payload) | messages.Aggregate(payload=payload):
            return payload
        case _:
            return message
