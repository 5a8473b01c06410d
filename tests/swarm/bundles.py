"""Bundles on disk and peers that give them, for tests of transfers; in virtual time nothing may run on a thread."""

from collections.abc import Callable
from pathlib import Path

from shoal.swarm.identifiers import PeerId, SwarmId
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.transfer.block_transfer_donor import BlockDonor, Bundle, FilePart, Read
from shoal.swarm.transfer.block_transfer_fetch import Result, Threads
from shoal.swarm.transfer.block_transfer_listing import BundleId, Listing, blocked_file, bundle_id, encode_listing
from shoal.swarm.transport import Transport

BLOCK = 1 << 16


class AtOnce(Threads):
    async def run(self, work: Callable[[], Result]) -> Result:
        return work()


async def read_at_once(read: Read, path: Path, start: int, length: int) -> bytes:
    return read(path, start, length)


class OpenGate:
    """Admits everybody."""

    swarm = SwarmId("0" * 64)
    certificate = b""

    def admit(self, peer: PeerId, certificate: bytes) -> None:
        return


def member(transport: Transport) -> MemberCalls:
    return MemberCalls(transport, OpenGate())


class OneShelf:
    """A shelf that holds what it is given."""

    def __init__(self) -> None:
        self.bundles: dict[BundleId, Bundle] = {}

    def find(self, bundle: BundleId) -> Bundle | None:
        return self.bundles.get(bundle)

    def put(self, folder: Path, kind: str = "test", about: bytes = b"") -> tuple[BundleId, Listing]:
        """Every file of a folder."""
        paths = sorted(folder.iterdir())
        listing = Listing(kind, about, BLOCK, tuple(blocked_file(path, BLOCK) for path in paths))
        data = encode_listing(listing)
        self.bundles[bundle_id(data)] = Bundle(data, {p.name: FilePart(p, p.stat().st_size) for p in paths})
        return bundle_id(data), listing


def donor_of(*shelves: OneShelf, rate_byte_s: float = 1e9) -> BlockDonor:
    return BlockDonor(shelves, rate_byte_s, thread=read_at_once)
