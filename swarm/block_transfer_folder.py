"""The receiver's side on disk: verified blocks of a listing in sparse files, found again after any cut.

There is no journal: what a file holds is hashed when a transfer goes on, and only blocks whose hash is right count. So
kill -9 and a full disk cost at most the blocks that were on their way.
"""

import errno
import hashlib
import os
import shutil
from pathlib import Path

from .block_transfer import Block
from .block_transfer_listing import Listing, block_size
from .errors import OutOfMemory

SPARE_BYTES = 16 << 20  # disk that a transfer leaves free


class BlockFolder:
    """The files of one listing in a folder of their own."""

    def __init__(self, folder: Path, listing: Listing) -> None:
        self.folder, self.listing = folder, listing

    def prepare(self) -> set[Block]:
        """Make the folder and look at what an earlier attempt left. returns: the verified blocks

        raises: OutOfMemory when the rest does not fit on the disk, or the folder cannot be written
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            have = {block for index in range(len(self.listing.files)) for block in self._verified(index)}
            held = sum(block_size(self.listing.files[b.file], b.number, self.listing.block_bytes) for b in have)
            need, free = self.listing.total_bytes - held, shutil.disk_usage(self.folder).free
            if need + SPARE_BYTES > free:
                raise OutOfMemory(f"{need >> 20} MiB are to come, {self.folder} has {free >> 20} MiB free")
            for file in self.listing.files:
                with (self.folder / file.name).open("ab") as stream:
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
        found = []
        with path.open("rb") as stream:
            for number, expected in enumerate(file.blocks):
                data = stream.read(block_size(file, number, self.listing.block_bytes))
                if hashlib.sha256(data).digest() == expected:
                    found.append(Block(index, number))
        return found


def _no_room(folder: Path, error: OSError) -> OutOfMemory:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfMemory(f"the disk is full: cannot write to {folder}; what has come is kept")
    return OutOfMemory(f"cannot write to {folder}: {error.strerror or error}")
