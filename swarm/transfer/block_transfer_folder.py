"""The receiver's side on disk: verified blocks of a listing in sparse files, found again after any cut.

There is no journal: what a file holds is hashed when a transfer goes on, and only blocks whose hash is right count. So
kill -9 and a full disk cost at most the blocks that were on their way. Holes are not read.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from shoal.swarm.errors import OutOfMemory

from .block_transfer import Block, all_blocks
from .block_transfer_listing import Listing, block_size

SPARE_BYTES = 16 << 20  # disk that a transfer leaves free


class BlockFolder:
    """The files of one listing in a folder of their own.

    wanted: the blocks that shall be here, None for all; known: of these, blocks that need not be hashed again
    """

    def __init__(
        self,
        folder: Path,
        listing: Listing,
        wanted: Collection[Block] | None = None,
        known: Collection[Block] = (),
    ) -> None:
        self.folder, self.listing = folder, listing
        self.wanted = sorted(all_blocks(listing) if wanted is None else wanted)
        self._known = frozenset(known)

    def prepare(self) -> set[Block]:
        """Make the folder and look at what an earlier attempt left. returns: the verified blocks

        raises: OutOfMemory when the rest does not fit on the disk, or the folder cannot be written
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            have = {block for index in range(len(self.listing.files)) for block in self._verified(index)}
            need = sum(
                block_size(self.listing.files[b.file], b.number, self.listing.block_bytes)
                for b in self.wanted
                if b not in have
            )
            free = shutil.disk_usage(self.folder).free
            if need + SPARE_BYTES > free:
                raise OutOfMemory(f"{need >> 20} MiB are to come, {self.folder} has {free >> 20} MiB free")
            for file in self.listing.files:
                with (self.folder / file.name).open("ab") as stream:
                    if stream.tell() != file.size_bytes:
                        stream.truncate(file.size_bytes)
        except OSError as error:
            raise _no_room(self.folder, error) from error
        return have

    def store(self, file: str, offset: int, data: bytes) -> None:
        """Write a verified block. raises: OutOfMemory; what is here stays"""
        try:
            with (self.folder / file).open("r+b") as stream:
                stream.seek(offset)
                stream.write(data)
        except OSError as error:
            raise _no_room(self.folder, error) from error

    def finish(self) -> None:
        """Bring everything to the disk. raises: OutOfMemory"""
        try:
            for path in [*(self.folder / file.name for file in self.listing.files), self.folder]:
                handle = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
        except OSError as error:
            raise _no_room(self.folder, error) from error

    def _verified(self, index: int) -> list[Block]:
        file = self.listing.files[index]
        path = self.folder / file.name
        if not path.is_file():
            return []
        with path.open("rb") as stream:
            return [
                block
                for block in self.wanted
                if block.file == index and (block in self._known or self._is_right(stream.fileno(), block))
            ]

    def _is_right(self, handle: int, block: Block) -> bool:
        file, start = self.listing.files[block.file], block.number * self.listing.block_bytes
        size = block_size(file, block.number, self.listing.block_bytes)
        try:
            if os.lseek(handle, start, os.SEEK_DATA) >= start + size:
                return False  # a hole: nothing was written here
        except OSError:
            return False  # nor here or behind
        return hashlib.sha256(os.pread(handle, size, start)).digest() == file.blocks[block.number]


def _no_room(folder: Path, error: OSError) -> OutOfMemory:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfMemory(f"the disk is full: cannot write to {folder}; what has come is kept")
    return OutOfMemory(f"cannot write to {folder}: {error.strerror or error}")
