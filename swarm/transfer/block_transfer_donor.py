"""Giving blocks away: pieces of files on disk, at a rate that leaves the rest of the uplink to the donor's own work.

Nothing is kept in memory and nothing waits: a donor at its limit says when to ask again, and reading a file happens on
a thread, so a running round never stands behind a joiner.
"""

import os
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread

from shoal.swarm.errors import MalformedMessage, Refused
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.member_calls import MemberCalls

from .block_transfer import MAX_PIECE_BYTES
from .block_transfer_listing import BundleId
from .block_transfer_messages import ANSWERS, LISTING, METHOD, REQUESTS, BlockAnswer

DEFAULT_RATE_BYTE_S = 8 << 20
READER_S = 3.0  # who has asked for nothing for so long is served no longer
BURST_S = 0.25  # of the rate may be given at once
Read = Callable[[Path, int, int], bytes]
OnThread = Callable[[Read, Path, int, int], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class FilePart:
    """size_bytes bytes of a file on disk from `start` on."""

    path: Path
    size_bytes: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class Bundle:
    """listing: its canonical bytes, empty where receivers have it from elsewhere; files: by the names in it

    held: the bytes of a file that are here, as ascending [start, stop); a file that is not named is whole
    """

    listing: bytes
    files: Mapping[str, FilePart]
    held: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)

    def has(self, file: str, start: int, stop: int) -> bool:
        ranges = self.held.get(file)
        if ranges is None:
            return True
        index = bisect_right(ranges, start, key=lambda each: each[0]) - 1
        return index >= 0 and stop <= ranges[index][1]


class Shelf(Protocol):
    """Where a donor finds its bundles; asked for each piece, so it may change at any time."""

    def find(self, bundle: BundleId) -> Bundle | None: ...


class RateLimit:
    """A bucket of bytes that fills at a steady rate. It may go into debt, so a piece larger than it is no problem."""

    def __init__(self, byte_s: float) -> None:
        """raises: ValueError"""
        if not byte_s > 0:
            raise ValueError(f"a rate of {byte_s} bytes a second gives nothing")
        self.byte_s = byte_s
        self._held = byte_s * BURST_S
        self._at: float | None = None

    def take(self, count: int, now: float) -> float:
        """returns: 0 when the bytes may go now, else the seconds to wait"""
        elapsed = 0.0 if self._at is None else max(0.0, now - self._at)
        self._at = now
        self._held = min(self.byte_s * BURST_S, self._held + elapsed * self.byte_s)
        if self._held <= 0:
            return -self._held / self.byte_s + 0.001
        self._held -= count
        return 0.0


class Readers:
    """Who is being served; at most so many at once, the others are told to come again."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._asked_at: dict[PeerId, float] = {}

    def admit(self, peer: PeerId, now: float) -> float:
        """returns: 0 when the peer may have something now, else the seconds to wait"""
        self._asked_at = {each: at for each, at in self._asked_at.items() if now - at < READER_S}
        if peer not in self._asked_at and len(self._asked_at) >= self._most:
            return max(0.1, READER_S - (now - min(self._asked_at.values())))
        self._asked_at[peer] = now
        return 0.0


async def on_thread(read: Read, path: Path, start: int, length: int) -> bytes:
    return await anyio.to_thread.run_sync(read, path, start, length)


class BlockDonor:
    """Answers for the bundles of its shelves. `served_bytes` counts what was given."""

    def __init__(
        self,
        shelves: tuple[Shelf, ...],
        rate_byte_s: float = DEFAULT_RATE_BYTE_S,
        clock: Callable[[], float] = anyio.current_time,
        thread: OnThread = on_thread,
        readers: int | None = None,
    ) -> None:
        """readers: how many receivers are served at once; None for any number. raises: ValueError, for no rate"""
        self._shelves = list(shelves)
        self._readers = None if readers is None else Readers(readers)
        self._limit = RateLimit(rate_byte_s)
        self._clock = clock
        self._thread = thread
        self.served_bytes = 0

    def add(self, shelf: Shelf) -> None:
        self._shelves.append(shelf)

    async def serve(self, calls: MemberCalls, method: str = METHOD) -> None:
        """method: another one lets two donors stand behind one transport"""
        await calls.answer(method, self.answer)

    async def answer(self, peer: PeerId, body: bytes) -> bytes:
        """raises: MalformedMessage, Refused (not here, or not any more)"""
        request = REQUESTS.decode(body)
        if not 0 < request.length <= MAX_PIECE_BYTES or request.offset < 0:
            raise MalformedMessage(f"{request.length} bytes from {request.offset} on are no piece of a block")
        bundle = next((found for shelf in self._shelves if (found := shelf.find(request.bundle)) is not None), None)
        if bundle is None:
            raise Refused("this bundle is not here (any more)")
        if request.file != LISTING and request.file not in bundle.files:
            raise Refused("no such file in this bundle")
        part = None if request.file == LISTING else bundle.files[request.file]
        total_bytes = len(bundle.listing) if part is None else part.size_bytes
        if request.offset > total_bytes:
            raise MalformedMessage(f"offset {request.offset} of {total_bytes} bytes")
        length = min(request.length, total_bytes - request.offset)
        if part is not None and not bundle.has(request.file, request.offset, request.offset + length):
            raise Refused("this part of the file is not here")
        now = self._clock()
        busy_s = 0.0 if self._readers is None else self._readers.admit(peer, now)
        wait_s = busy_s or self._limit.take(length, now)
        if wait_s > 0:
            return ANSWERS.encode(BlockAnswer(total_bytes, b"", wait_s))
        if part is None:
            data = bundle.listing[request.offset : request.offset + length]
        else:
            data = await self._thread(read_piece, part.path, part.start + request.offset, length)
            if len(data) != length:
                raise Refused("this bundle is damaged here")
        self.served_bytes += length
        return ANSWERS.encode(BlockAnswer(total_bytes, data, 0.0))


def read_piece(path: Path, start: int, length: int) -> bytes:
    """raises: Refused when the file is gone or cannot be read"""
    try:
        with path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), length, start)
    except OSError as error:
        raise Refused("this bundle is not here any more") from error
