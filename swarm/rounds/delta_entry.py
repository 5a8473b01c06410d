"""One round's aggregates as a file: the outcome, the state it starts from and the state it leads to.

An outcome is the same at all peers of a round, so is its entry, byte for byte: its bundle id is its content address,
and blocks of it from any peers fit together.

    "shlDELTA" | u32 length of the listing, little endian | listing | payloads of the shards, back to back
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import MalformedMessage
from shoal.swarm.identifiers import PeerId
from shoal.swarm.transfer.block_transfer_donor import Bundle, FilePart
from shoal.swarm.transfer.block_transfer_listing import (
    MAX_LISTING_BYTES,
    BlockedFile,
    BundleId,
    Listing,
    block_bytes_for,
    bundle_id,
    hash_blocks,
    read_listing,
)

from .exchange import Outcome

KIND = "delta"
PAYLOADS = "payloads"
STATE_BYTES = 32
_MAGIC = b"shlDELTA"
_MAX_SHARDS = 1 << 16
_HEAD_BYTES = len(_MAGIC) + 4


class DeltaAbout(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Everything of an outcome but the payloads."""

    run: str
    round: int
    fragment: int
    before: bytes  # hash of the outer state that the outcome was applied to
    after: bytes
    contributors: tuple[tuple[PeerId, int], ...]
    lengths: tuple[int, ...]  # bytes of each shard's payload


@dataclass(frozen=True, slots=True)
class DeltaEntry:
    """One outcome in the log, without its payloads. total_bytes: of the payloads"""

    bundle: BundleId
    about: DeltaAbout
    total_bytes: int

    @property
    def round(self) -> int:
        return self.about.round


_abouts = Canonical(DeltaAbout, "the header of a delta", MAX_LISTING_BYTES)


def read_about(listing: Listing) -> DeltaAbout:
    """raises: MalformedMessage when the listing is not of an outcome"""
    if listing.kind != KIND or len(listing.files) != 1 or listing.files[0].name != PAYLOADS:
        raise MalformedMessage("not the listing of a delta")
    about = _abouts.decode(listing.about)
    good = (
        about.round >= 0
        and about.fragment >= 0
        and len(about.before) == len(about.after) == STATE_BYTES
        and 0 < len(about.lengths) <= _MAX_SHARDS
        and min(about.lengths) >= 0
        and sum(about.lengths) == listing.files[0].size_bytes
        and list(about.contributors) == sorted(set(about.contributors))
        and all(tokens > 0 for _, tokens in about.contributors)
    )
    if not good:
        raise MalformedMessage("a delta whose header contradicts itself")
    return about


def outcome_of(about: DeltaAbout, payloads: bytes) -> Outcome:
    """raises: MalformedMessage when the payloads have another length"""
    if sum(about.lengths) != len(payloads):
        raise MalformedMessage(f"{len(payloads)} bytes for payloads of {sum(about.lengths)}")
    aggregates, at = [], 0
    for length in about.lengths:
        aggregates.append(payloads[at : at + length])
        at += length
    return Outcome(about.round, about.fragment, tuple(aggregates), about.contributors)


def listing_of(run: str, outcome: Outcome, before: bytes, after: bytes) -> Listing:
    """The same at every peer that took part."""
    payloads = b"".join(outcome.aggregates)
    lengths = tuple(map(len, outcome.aggregates))
    about = DeltaAbout(run, outcome.round, outcome.fragment, before, after, outcome.contributors, lengths)
    block_bytes = block_bytes_for(len(payloads))
    file = BlockedFile(PAYLOADS, len(payloads), hash_blocks(payloads, block_bytes))
    return Listing(KIND, _abouts.encode(about), block_bytes, (file,))


def file_name(round_: int) -> str:
    return f"{round_:010d}.delta"


def head_of(listing: bytes) -> bytes:
    """What stands in a file before the payloads. listing: its canonical bytes"""
    return _MAGIC + len(listing).to_bytes(4, "little") + listing


def bundle_of(path: Path, listing: bytes) -> Bundle:
    """An entry's file as something to give away."""
    size_bytes = read_listing(listing).total_bytes
    return Bundle(listing, {PAYLOADS: FilePart(path, size_bytes, len(head_of(listing)))})


def read_head(path: Path, run: str) -> tuple[DeltaEntry, bytes]:
    """An entry and its listing's bytes; the payloads are not looked at.

    raises: MalformedMessage naming the file when it is truncated, damaged or of another run; OSError
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        length = int.from_bytes(head[len(_MAGIC) :], "little")
        if len(head) != _HEAD_BYTES or not head.startswith(_MAGIC) or length > MAX_LISTING_BYTES:
            raise MalformedMessage(f"{path.name} is not an entry of a delta log, or is truncated")
        data = file.read(length)
    try:
        listing = read_listing(data)
        about = read_about(listing)
    except MalformedMessage as error:
        raise MalformedMessage(f"{path.name} is damaged: {error}") from error
    size = path.stat().st_size
    if size != _HEAD_BYTES + length + listing.total_bytes:
        raise MalformedMessage(f"{path.name} is truncated: {size} bytes")
    if about.run != run or path.name != file_name(about.round):
        raise MalformedMessage(f"{path.name} is of another run or round")
    return DeltaEntry(bundle_id(data), about, listing.total_bytes), data


def read_outcome(path: Path, listing_data: bytes) -> Outcome:
    """The outcome in a file, its payloads checked against their hashes. raises: MalformedMessage naming the file"""
    listing = read_listing(listing_data)
    try:
        with path.open("rb") as file:
            file.seek(len(head_of(listing_data)))
            payloads = file.read(listing.total_bytes + 1)
    except OSError as error:
        raise MalformedMessage(f"{path.name} cannot be read: {error.strerror}") from error
    if hash_blocks(payloads, listing.block_bytes) != listing.files[0].blocks:
        raise MalformedMessage(f"{path.name} is damaged")
    return outcome_of(read_about(listing), payloads)
