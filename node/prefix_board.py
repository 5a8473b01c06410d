"""Prefixes in a running node: the tiers of its home, the DHT as the board, and whose chunks are taken."""

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from shoal.swarm.identifiers import PeerId
from shoal.swarm.kv.chunk_store import MEMORY_BYTES, ChunkStore
from shoal.swarm.members.membership import Swarm
from shoal.swarm.prefixes.announcement import Announcement
from shoal.swarm.prefixes.prefix_chain import Address
from shoal.swarm.routing.pings import Pinger
from shoal.swarm.routing.standing import KnownStanding

from .memory_size import DISK, parse_size
from .options import NodeOptions

if TYPE_CHECKING:
    from shoal.swarm.transports.dht_directory import DhtDirectory

LEAST_STANDING = 0.25  # half of what the mean of those has that are known


class DhtBoard:
    """`prefixes.PrefixBoard`. certificate: ours, which is renewed now and then; clock: unix seconds"""

    def __init__(
        self,
        directory: "DhtDirectory",
        pinger: Pinger,
        certificate: Callable[[], bytes],
        clock: Callable[[], float],
    ) -> None:
        self._directory = directory
        self._pinger = pinger
        self._certificate = certificate
        self._clock = clock

    async def announce(self, chunks: list[Address]) -> None:
        await self._directory.announce_prefix(chunks, self._certificate())

    async def find(self, root: Address) -> list[Announcement]:
        return await self._directory.prefix_holders(root)

    def way_to(self, peer: PeerId) -> tuple[tuple[str, ...], float]:
        record = self._directory.book.of(peer, self._clock())
        return record.addresses if record is not None else (), self._pinger.book.rtt_ms().get(peer, 100.0) / 1e3


def trusted(standing: Callable[[], KnownStanding], swarm: Swarm) -> Callable[[PeerId], bool]:
    """Whether a peer's chunks may be taken: by its standing; where nothing is known of anybody, only among members."""

    def trusts(peer: PeerId) -> bool:
        shown = standing().shown(peer)
        return not swarm.public if shown is None else shown >= LEAST_STANDING

    return trusts


def chunk_store(options: NodeOptions, warn: Callable[[str], None]) -> ChunkStore:
    """raises: UsageError for a size that cannot be read"""
    disk_bytes = 0
    if options.kv_disk is not None:
        disk_bytes = parse_size(options.kv_disk, shutil.disk_usage(options.home.root).free, DISK)
    memory_bytes = MEMORY_BYTES
    if options.kv_memory is not None:
        memory_bytes = parse_size(options.kv_memory, MEMORY_BYTES)
    return ChunkStore(memory_bytes, options.home.kv, disk_bytes, warn)
