"""Giving blocks away: pieces of files on disk, at a rate that leaves the rest of the uplink to the donor's own work.

Nothing is kept in memory and nothing waits: a donor at its limit says when to ask again, and reading a file happens on
a thread, so a running round never stands behind a joiner.
"""

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread

from .block_transfer import MAX_PIECE_BYTES
from .block_transfer_listing import BundleId
from .block_transfer_messages import ANSWERS, LISTING, METHOD, REQUESTS, BlockAnswer
from .errors import MalformedMessage, Refused
from .identifiers import PeerId
from .member_calls import MemberCalls

DEFAULT_RATE_BYTE_S = 8 << 20
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
    """listing: its canonical bytes; files: by the names in it"""

    listing: bytes
    files: Mapping[str, FilePart]


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
    ) -> None:
        self._shelves = list(shelves)
        self._limit = RateLimit(rate_byte_s)
        self._clock = clock
        self._thread = thread
        self.served_bytes = 0

    def add(self, shelf: Shelf) -> None:
        self._shelves.append(shelf)

    async def serve(self, calls: MemberCalls, method: str = METHOD) -> None:
        """method: another one lets two donors stand behind one transport"""
        await calls.answer(method, self.answer)

    async def answer(self, _: PeerId, body: bytes) -> bytes:
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
        wait_s = self._limit.take(length, self._clock())
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
