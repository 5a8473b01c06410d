"""KV chunks that outlive their session: in memory, and on disk where the volunteer gives room for them.

A chunk goes to memory first and to disk beside it; what memory has no room for is read from disk and comes back to
memory. When the disk is full or may not be written to, the store says so once and goes on in memory alone.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from shoal.swarm.errors import UsageError
from shoal.swarm.prefixes.prefix_chain import Address

from .chunk_files import ChunkFiles
from .chunk_index import ChunkIndex, Kept, Label

MEMORY_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class StoredChunk:
    label: Label
    payload: bytes


@dataclass(frozen=True, slots=True)
class TierUse:
    chunks: int
    used_bytes: int
    budget_bytes: int


class ChunkStore:
    """Belongs to one event loop; files are read and written on worker threads.

    warn: told once, in one line, when the disk tier cannot be used
    """

    def __init__(
        self,
        memory_bytes: int = MEMORY_BYTES,
        folder: Path | None = None,
        disk_bytes: int = 0,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._memory = ChunkIndex(memory_bytes)
        self._payloads: dict[Address, bytes] = {}
        self._disk = ChunkIndex(disk_bytes if folder is not None else 0)
        self._files = ChunkFiles(folder) if folder is not None and disk_bytes > 0 else None
        self._warn = warn
        self._may_write = True
        self._unwritten: dict[Address, Label] = {}
        self._writing = anyio.Lock()

    @property
    def memory(self) -> TierUse:
        return TierUse(len(self._memory), self._memory.used_bytes, self._memory.budget_bytes)

    @property
    def disk(self) -> TierUse:
        return TierUse(len(self._disk), self._disk.used_bytes, self._disk.budget_bytes)

    async def restore(self) -> None:
        """Find what an earlier run left on disk; beyond the budget the oldest goes."""
        files = self._files
        if files is None:
            return
        try:
            found = await anyio.to_thread.run_sync(lambda: list(files.found()))
        except (OSError, UsageError) as error:
            self._without_disk(error)
            return
        for address, kept in found:
            fits, going = self._disk.add(address, kept)
            for old in [old for old, _ in going] + ([] if fits else [address]):
                await anyio.to_thread.run_sync(files.remove, old)

    def find(self, address: Address) -> Label | None:
        """What is held under this address, in either tier; it is not read."""
        kept = self._memory.find(address) or self._disk.find(address)
        return kept.label if kept is not None else None

    async def get(self, address: Address) -> StoredChunk | None:
        kept = self._memory.find(address)
        if kept is not None:
            self._memory.touch(address)
            self._disk.touch(address)
            return StoredChunk(kept.label, self._payloads[address])
        kept = self._disk.find(address)
        if kept is None or self._files is None:
            return None
        payload = await anyio.to_thread.run_sync(self._files.read, address)
        if self._disk.find(address) is not kept:
            return None  # it was dropped, or made room for another, meanwhile
        if payload is None:
            self._disk.remove(address)
            return None
        self._disk.touch(address)
        self._remember(address, kept.label, payload)
        return StoredChunk(kept.label, payload)

    async def put(self, address: Address, label: Label, payload: bytes) -> None:
        """An exact chunk is not displaced by one that lost something. Never raises for want of room."""
        known = self.find(address)
        if known is not None and known.quality == "lossless" and (known.shared or not label.shared):
            return
        self._remember(address, label, payload)
        self._unwritten[address] = label
        await self._write(address, label, payload)

    def used(self, prefix: Sequence[Address]) -> None:
        """Its chunks in their order: the last ones go first, for without the first the others are worth nothing."""
        for address in reversed(prefix):
            self._memory.touch(address)
            self._disk.touch(address)

    def pin(self, addresses: Iterable[Address]) -> None:
        addresses = list(addresses)
        self._memory.pin(addresses)
        self._disk.pin(addresses)

    def unpin(self, addresses: Iterable[Address]) -> None:
        addresses = list(addresses)
        self._memory.unpin(addresses)
        self._disk.unpin(addresses)

    async def drop(self, wanted: Callable[[Address, Label], bool]) -> int:
        """Forget, in both tiers. returns: how many chunks"""
        going = {
            address for tier in (self._memory, self._disk) for address, kept in tier if wanted(address, kept.label)
        }
        for address in going:
            self._memory.remove(address)
            self._payloads.pop(address, None)
            self._disk.remove(address)
        for address in [address for address, label in self._unwritten.items() if wanted(address, label)]:
            del self._unwritten[address]
        files = self._files
        if files is not None:
            async with self._writing:  # a file that is just being written would appear after its removal
                for address in going:
                    if self._disk.find(address) is None:
                        await anyio.to_thread.run_sync(files.remove, address)
        return len(going)

    def labels(self) -> dict[Address, Label]:
        return {address: kept.label for tier in (self._disk, self._memory) for address, kept in tier}

    def _remember(self, address: Address, label: Label, payload: bytes) -> None:
        fits, going = self._memory.add(address, Kept(label, len(payload)))
        for old, _ in going:
            self._payloads.pop(old, None)
        if fits:
            self._payloads[address] = payload
        else:
            self._payloads.pop(address, None)

    async def _write(self, address: Address, label: Label, payload: bytes) -> None:
        async with self._writing:  # the order on disk is that of the index
            files = self._files
            dropped = self._unwritten.pop(address, None) is not label
            if files is None or not self._may_write or dropped:
                return
            fits, going = self._disk.add(address, Kept(label, len(payload)))
            for old, _ in going:
                await anyio.to_thread.run_sync(files.remove, old)
            if not fits:
                return
            try:
                await anyio.to_thread.run_sync(partial(files.write, address, label, payload))
            except OSError as error:
                self._disk.remove(address)
                self._without_disk(error)

    def _without_disk(self, error: Exception) -> None:
        """Later chunks stay in memory; those that lie on disk already are still read."""
        reason = error.strerror if isinstance(error, OSError) else str(error)
        self._warn(f"KV chunks are kept in memory only: {reason}")
        self._may_write = False
