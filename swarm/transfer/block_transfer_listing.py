"""What a transfer brings: files of known size, cut into blocks of known hash. Its own hash is its name.

Whoever knows the name (64 hex characters) can take the listing, and then every block of it, from strangers.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NewType

import msgspec

from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import MalformedMessage, RemoteFault
from shoal.swarm.manifest import CHUNK_BYTES, Manifest

BundleId = NewType("BundleId", str)  # hex sha256 of a listing's canonical bytes

MIN_BLOCK_BYTES = 64 << 10
MAX_BLOCK_BYTES = 16 << 20
MAX_LISTING_BYTES = 16 << 20
MAX_FILES = 4096
USUAL_BLOCKS = 256
USUAL_BLOCK_BYTES = 4 << 20  # at most: a receiver holds two for each donor
HASH_BYTES = 32
_PLAIN_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}$")
_DOMAIN = b"shoal listing 1\0"


class BlockedFile(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    name: str  # of a file in a flat folder
    size_bytes: int
    blocks: tuple[bytes, ...]  # sha256 of each block; the last one may be shorter


class Listing(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    kind: str  # says how `about` is read
    about: bytes  # what the owner of this kind wants to say; opaque here
    block_bytes: int
    files: tuple[BlockedFile, ...]

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


_listings = Canonical(Listing, "a listing of blocks", MAX_LISTING_BYTES)


def encode_listing(listing: Listing) -> bytes:
    return _listings.encode(listing)


def bundle_id(data: bytes) -> BundleId:
    """data: of `encode_listing`"""
    return BundleId(hashlib.sha256(_DOMAIN + data).hexdigest())


def read_listing(data: bytes, expected: BundleId | None = None) -> Listing:
    """A listing whose sizes and hashes fit one another; what it says may still be more than a reader wants.

    raises: MalformedMessage; RemoteFault when it is not the one expected
    """
    if expected is not None and bundle_id(data) != expected:
        raise RemoteFault(f"a listing with another hash than {expected[:12]}")
    listing = _listings.decode(data)
    problem = _problem(listing)
    if problem:
        raise MalformedMessage(f"a listing with {problem}")
    return listing


def block_bytes_for(total_bytes: int) -> int:
    """How large the blocks of this much should be: a power of two, so that there are neither too many nor too few."""
    size = MIN_BLOCK_BYTES
    while size < USUAL_BLOCK_BYTES and size * USUAL_BLOCKS < total_bytes:
        size *= 2
    return size


def block_size(file: BlockedFile, number: int, block_bytes: int) -> int:
    return min(block_bytes, file.size_bytes - number * block_bytes)


def hash_blocks(data: bytes, block_bytes: int) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256(data[at : at + block_bytes]).digest() for at in range(0, len(data), block_bytes))


def blocked_file(path: Path, block_bytes: int) -> BlockedFile:
    """A file as it is now, read once. raises: OSError"""
    blocks, size_bytes = [], 0
    with path.open("rb") as file:
        while block := file.read(block_bytes):
            blocks.append(hashlib.sha256(block).digest())
            size_bytes += len(block)
    return BlockedFile(path.name, size_bytes, tuple(blocks))


def weights_listing(manifest: Manifest, names: Iterable[str]) -> Listing | None:
    """The weight files of a model as a listing, from the manifest's own chunk hashes; None where it has none.

    The model's id covers each file's sha256 but not the chunks': check the whole file too before it is used.
    """
    files = []
    sizes = {entry.name: entry.size_bytes for entry in manifest.weights}
    for name in sorted(set(names)):
        if name not in manifest.chunks or name not in sizes:
            return None
        try:
            files.append(BlockedFile(name, sizes[name], tuple(map(bytes.fromhex, manifest.chunks[name]))))
        except ValueError:
            return None
    listing = Listing("weights", b"", CHUNK_BYTES, tuple(files))
    return None if _problem(listing) else listing


def _problem(listing: Listing) -> str | None:
    size = listing.block_bytes
    if not 1 << 12 <= size <= MAX_BLOCK_BYTES or size & (size - 1):
        return f"blocks of {size} bytes"
    if not 0 < len(listing.files) <= MAX_FILES or len({file.name for file in listing.files}) != len(listing.files):
        return "no files, too many, or one twice"
    for file in listing.files:
        if not _PLAIN_NAME.match(file.name):
            return f"a file called {file.name[:40]!r}"
        if file.size_bytes < 0 or len(file.blocks) != -(-file.size_bytes // size):
            return f"{len(file.blocks)} blocks for the {file.size_bytes} bytes of {file.name}"
        if any(len(block) != HASH_BYTES for block in file.blocks):
            return "hashes that are not sha256"
    return None
