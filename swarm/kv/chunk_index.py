"""Which chunks a tier keeps: least recently used go first, pinned ones never, and never more than the budget.

No I/O: what has to go is returned, and the shell frees it.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from shoal.compression.kv_levels import KvLevel
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.prefixes.prefix_chain import Address


@dataclass(frozen=True, slots=True)
class Label:
    """What is known of a chunk without decoding it.

    quality: how exact it is; maker: who computed it; shared: whether its client
    lets others know of it; root: the first chunk of its prefix; number: which of its chunks this is
    """

    model: ModelId
    quality: KvLevel
    maker: PeerId
    shared: bool
    root: Address
    number: int


@dataclass(frozen=True, slots=True)
class Kept:
    label: Label
    size_bytes: int


class ChunkIndex:
    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._kept: OrderedDict[Address, Kept] = OrderedDict()
        self._pins: Counter[Address] = Counter()

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[tuple[Address, Kept]]:
        """The least recently used first."""
        return iter(list(self._kept.items()))

    def find(self, address: Address) -> Kept | None:
        return self._kept.get(address)

    def touch(self, address: Address) -> None:
        """It was used just now."""
        if address in self._kept:
            self._kept.move_to_end(address)

    def add(self, address: Address, kept: Kept) -> tuple[bool, list[tuple[Address, Kept]]]:
        """returns: whether there was room, and what has to go: to make room, or what was kept under this address where
        there is none"""
        before = self._kept.get(address)
        self.remove(address)
        going: list[tuple[Address, Kept]] = []
        room = self.budget_bytes - self.used_bytes
        for old, entry in self._kept.items():
            if room >= kept.size_bytes:
                break
            if not self._pins[old]:
                going.append((old, entry))
                room += entry.size_bytes
        if room < kept.size_bytes:
            return False, [(address, before)] if before is not None else []
        for old, _ in going:
            self.remove(old)
        self._kept[address] = kept
        self.used_bytes += kept.size_bytes
        return True, going

    def remove(self, address: Address) -> None:
        """Unknown ones are ignored."""
        kept = self._kept.pop(address, None)
        if kept is not None:
            self.used_bytes -= kept.size_bytes

    def pin(self, addresses: Iterable[Address]) -> None:
        """They stay until `unpin`, as often as they were pinned."""
        self._pins.update(addresses)

    def unpin(self, addresses: Iterable[Address]) -> None:
        for address in addresses:
            self._pins[address] -= 1
            if self._pins[address] <= 0:
                del self._pins[address]
