"""Taking chunks from one donor: the shell around `chunk_fetch.ChunkFetch`, one stream with questions and answers."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import anyio

from shoal.compression.kv_levels import CHUNK_TOKENS, LEVELS, KvLevel
from shoal.swarm.errors import BadChunk, MalformedMessage, StreamBroken, Unavailable
from shoal.swarm.identifiers import PeerId
from shoal.swarm.kv.kv_chunks import KvFormat, due_chunks
from shoal.swarm.members.handshake import Gate, greet, read_welcome
from shoal.swarm.transport import Stream, Transport

from . import chunk_wire
from .chunk_fetch import ChunkFetch
from .chunk_wire import PROTOCOL, Given, Missing
from .fetch_past import FetchPast
from .prefix_chain import Address

STALL_S = 8.0  # a donor that sends nothing for so long is left
EXACT: tuple[KvLevel, ...] = ("lossless",)
FAST: tuple[KvLevel, ...] = ("lossless", *LEVELS[:2])


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
        self._arrivals_s: list[float] = []
        if donor.addresses:
            await self._transport.connect(donor.peer, donor.addresses)
        stream = await self._transport.open(donor.peer, PROTOCOL)
        try:
            asked_s = self._clock()
            await greet(stream, self._gate)
            await read_welcome(stream, self._gate)
            now = self._clock()
            fetch = ChunkFetch(numbers, self._levels, now - asked_s, now, self._began_s)
            await self._take_all(stream, fetch, frontier, came, expect)
        finally:
            stream.abort()
            if self._arrivals_s:
                first_s, last_s = self._arrivals_s[0], self._arrivals_s[-1]
                self._past.note(
                    exact=self._levels == EXACT,
                    first_s=first_s - self._began_s,
                    chunks=len(self._arrivals_s),
                    took_s=last_s - first_s,
                )

    async def _take_all(
        self,
        stream: Stream,
        fetch: ChunkFetch,
        frontier: Callable[[], int],
        came: Callable[[int, KvLevel, bytes], Awaitable[None]],
        expect: Callable[[frozenset[int], float | None], None],
    ) -> None:
        numbers = {address: number for number, address in enumerate(self._addresses)}
        while True:
            for ask in fetch.asks(frontier(), self._clock()):
                await stream.send(chunk_wire.encode(chunk_wire.Want(self._addresses[ask.number], ask.level)))
            expect(fetch.open, fetch.chunks_s)
            if not fetch.open:
                return
            answer = chunk_wire.read_answer(await self._next(stream))
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
                    self._arrivals_s.append(self._clock())
                    self._check(number, asked, data)
                    await came(number, asked, data)

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
