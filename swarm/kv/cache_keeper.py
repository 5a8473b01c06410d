"""Snapshots of other hops' caches, kept as bytes: what a standby has until it must take a hop's place.

Nothing is decoded here. A chunk must say that it is of the expected model, dtype, layers and profile, and continue what
is held. Memory is bounded for all of them together; what no longer fits is refused, and what is held stays useful.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from shoal.swarm.errors import OutOfMemory, Refused
from shoal.swarm.identifiers import PeerId, SessionId

from .kv_chunks import KvFormat, due_chunks, parse_chunk

BUDGET_BYTES = 256 << 20
MAX_HOLDS = 1024


@dataclass(slots=True)
class Kept:
    """Of one hop. owner: the driver of its session; sender: the hop"""

    owner: PeerId
    sender: PeerId
    kind: KvFormat
    any_profile: bool = False  # who keeps it does not know the model
    grew: Callable[[], None] = lambda: None  # called with each chunk that has come
    held: int = 0  # positions
    chunks: list[tuple[int, bytes]] = field(default_factory=list)  # with the position behind each

    @property
    def size_bytes(self) -> int:
        return sum(len(data) for _, data in self.chunks)


class CacheKeeper:
    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self.budget_bytes = budget_bytes
        self.size_bytes = 0
        self._kept: dict[SessionId, Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def begin(self, name: SessionId, kept: Kept) -> None:
        """raises: Refused, OutOfMemory"""
        if name in self._kept:
            raise Refused("a cache of this name is kept already")
        if len(self._kept) >= MAX_HOLDS or self.size_bytes >= self.budget_bytes:
            raise OutOfMemory("no more caches can be kept here")
        self._kept[name] = kept

    def knows(self, name: SessionId) -> bool:
        return name in self._kept

    def names(self) -> tuple[SessionId, ...]:
        return tuple(self._kept)

    def held(self, name: SessionId) -> int:
        """Positions; 0 for an unknown name."""
        kept = self._kept.get(name)
        return kept.held if kept is not None else 0

    def check_sender(self, name: SessionId, sender: PeerId) -> None:
        """raises: Refused"""
        kept = self._kept.get(name)
        if kept is None or kept.sender != sender:
            raise Refused("no cache of this name is kept for this peer")

    def add(self, name: SessionId, data: bytes) -> int:
        """The next chunk. returns: positions held. raises: BadChunk, OutOfMemory, Refused"""
        kept = self._kept.get(name)
        if kept is None:
            raise Refused("no cache of this name is kept")
        kind = kept.kind
        if kept.any_profile:
            kind = replace(kind, profile=parse_chunk(data).format.profile)
        for chunk in due_chunks([data], kind, kept.held):
            if self.size_bytes + len(data) > self.budget_bytes:
                raise OutOfMemory(f"this node keeps {self.budget_bytes >> 20} MiB of others' caches, and no more")
            kept.held += chunk.count
            kept.chunks.append((kept.held, data))
            self.size_bytes += len(data)
            kept.grew()
        return kept.held

    def chunks(self, name: SessionId, owner: PeerId, below: int, start: int = 0) -> list[bytes]:
        """Those of positions from `start` on and below `below` only. raises: Refused"""
        kept = self._kept.get(name)
        if kept is None or kept.owner != owner:
            raise Refused("no cache of this name is kept for this peer")
        return [data for stop, data in kept.chunks if start < stop <= below]

    def end(self, name: SessionId) -> None:
        """Forget it; unknown names are ignored."""
        kept = self._kept.pop(name, None)
        if kept is not None:
            self.size_bytes -= kept.size_bytes
