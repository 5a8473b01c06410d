"""Taking chunks from one donor: the shell around `chunk_fetch.ChunkFetch`, one stream with questions and answers."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import anyio

from shoal.compression.kv_levels import CHUNK_TOKENS, KvLevel
from shoal.swarm.errors import BadChunk, MalformedMessage, Refused, StreamBroken, Unavailable
from shoal.swarm.identifiers import PeerId
from shoal.swarm.kv.kv_chunks import KvFormat, due_chunks
from shoal.swarm.members.handshake import Gate, greet, read_welcome
from shoal.swarm.transport import Stream, Transport

from . import chunk_wire
from .chunk_fetch import ChunkFetch
from .chunk_wire import PROTOCOL, Declined, Given, Missing
from .fetch_past import Arrival, FetchPast
from .prefix_chain import Address

MOST_REASON = 200  # characters of a donor's words
STALL_S = 8.0  # a donor that sends nothing for so long is left
EXACT: tuple[KvLevel, ...] = ("lossless",)
FAST: tuple[KvLevel, ...] = ("lossless", "default")  # what lies ready at a donor: making another takes it long


@dataclass(frozen=True, slots=True)
class Donor:
    peer: PeerId
    addresses: tuple[str, ...]
    round_trip_s: float
    numbers: frozenset[int]  # chunks of the prefix that it says it has


class Taker:
    """addresses: of the chunks of the prefix, by number. kind: what the chunks have to be of; levels: the best first;
    began_s: when whoever waits for them began to"""

    def __init__(
        self,
        transport: Transport,
        gate: Gate,
        clock: Callable[[], float],
        addresses: Sequence[Address],
        kind: KvFormat,
        began_s: float,
        levels: tuple[KvLevel, ...],
        past: FetchPast,
    ) -> None:
        self._transport = transport
        self._gate = gate
        self._clock = clock
        self._addresses = addresses
        self._kind = kind
        self._began_s = began_s
        self._levels = levels if kind.profile else EXACT
        self._past = past

    async def take(
        self,
        donor: Donor,
        numbers: Iterable[int],
        frontier: Callable[[], int],
        came: Callable[[int, KvLevel, bytes], Awaitable[None]],
        expect: Callable[[frozenset[int], float | None], None],
    ) -> None:
        """Until all have come, or the frontier has passed those that have not.

        frontier: the first chunk that is worth asking for; came: is given each; expect: hears of those still to come,
        and how many a second the link brings

        raises: ShoalError; RemoteFault where the donor sent what no honest one sends
        """
        arrivals: list[Arrival] = []
        missed: Arrival | None = None
        if donor.addresses:
            await self._transport.connect(donor.peer, donor.addresses)
        stream = await self._transport.open(donor.peer, PROTOCOL)
        try:
            asked_s = self._clock()
            chunk_s = self._past.next_chunk_s(self._levels[-1], asked_s, self._kind.dtype)
            known = donor.round_trip_s, asked_s, self._began_s, self._past.taking_in_s, chunk_s, self._kind.dtype
            fetch = ChunkFetch(numbers, self._levels, *known)
            await greet(stream, self._gate)
            await self._ask(stream, fetch, frontier, expect)  # behind the greeting: a round trip less
            await read_welcome(stream, self._gate)
            fetch.round_trip_s = self._clock() - asked_s
            try:
                await self._take_all(stream, fetch, frontier, came, expect, arrivals)
            except anyio.get_cancelled_exc_class():
                missed = Arrival(self._levels[-1], self._clock()) if fetch.is_waiting else None
                raise
        finally:
            stream.abort()
            self._past.note(self._began_s, arrivals, missed)

    async def _take_all(
        self,
        stream: Stream,
        fetch: ChunkFetch,
        frontier: Callable[[], int],
        came: Callable[[int, KvLevel, bytes], Awaitable[None]],
        expect: Callable[[frozenset[int], float | None], None],
        arrivals: list[Arrival],
    ) -> None:
        numbers = {address: number for number, address in enumerate(self._addresses)}
        while fetch.open:
            answer = chunk_wire.read_answer(await self._next(stream))
            if isinstance(answer, Declined):
                raise Refused(answer.reason[:MOST_REASON])
            number = numbers.get(Address(answer.address), -1)
            match answer:
                case Missing():
                    if not fetch.gone(number):
                        raise MalformedMessage("an answer about a chunk that was not asked for")
                case Given(_, level, data):
                    if not data:
                        raise BadChunk("a chunk without a byte")
                    asked = fetch.arrived(number, len(data), self._clock())
                    if asked is None or asked != level:
                        raise MalformedMessage("a chunk, or a level, that was not asked for")
                    arrivals.append(Arrival(asked, self._clock()))
                    self._check(number, asked, data)
                    await came(number, asked, data)
            await self._ask(stream, fetch, frontier, expect)

    async def _ask(
        self,
        stream: Stream,
        fetch: ChunkFetch,
        frontier: Callable[[], int],
        expect: Callable[[frozenset[int], float | None], None],
    ) -> None:
        for ask in fetch.asks(frontier(), self._clock()):
            await stream.send(chunk_wire.encode(chunk_wire.Want(self._addresses[ask.number], ask.level)))
        expect(fetch.open, fetch.chunks_s)

    async def _next(self, stream: Stream) -> bytes:
        with anyio.move_on_after(STALL_S):
            frame = await stream.receive()
            if frame is None:
                raise StreamBroken("it ended the stream")
            return frame
        raise Unavailable(f"it sent nothing for {STALL_S:.0f} s")

    def _check(self, number: int, level: KvLevel, data: bytes) -> None:
        """raises: BadChunk unless it is of this place and these caches; its numbers are read when it is taken in"""
        (chunk,) = due_chunks([data], self._kind, number * CHUNK_TOKENS)
        if chunk.count != CHUNK_TOKENS or (level == "lossless") != (not chunk.format.profile):
            raise BadChunk(f"a chunk of {chunk.count} positions, or of another level than {level}")
