"""A Merkle tree over a chain's entry hashes that grows at the right end: one root for all, a short proof for one.

The roots are those of `hash_tree.root` over the same leaves; whoever follows a chain keeps the peaks of the full
subtrees (at most 32 hashes) instead of all leaves.
source: RFC 6962; peaks as in Merkle mountain ranges (Todd, 2012)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shoal.swarm.rounds import hash_tree


@dataclass(frozen=True, slots=True)
class Frontier:
    """peaks: of full subtrees, the largest (leftmost) first; one for each bit of `count`"""

    count: int = 0
    peaks: tuple[bytes, ...] = ()

    def grown(self, entry_hashes: Iterable[bytes]) -> "Frontier":
        peaks, count = list(self.peaks), self.count
        for entry_hash in entry_hashes:
            node = hash_tree.leaf_hash(entry_hash)
            merged = count
            while merged & 1:
                node = hash_tree.inner(peaks.pop(), node)
                merged >>= 1
            peaks.append(node)
            count += 1
        return Frontier(count, tuple(peaks))

    @property
    def root(self) -> bytes:
        """32 bytes. raises: ValueError for a chain without entries"""
        if not self.peaks:
            raise ValueError("a tree without leaves")
        node = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            node = hash_tree.inner(peak, node)
        return hash_tree.bound(node, self.count)


def root_of(entry_hashes: Sequence[bytes]) -> bytes:
    """Over a whole chain. raises: ValueError for a chain without entries"""
    return Frontier().grown(entry_hashes).root


def inclusion_path(entry_hashes: Sequence[bytes], seq: int) -> tuple[bytes, ...]:
    """What shows entry `seq` to somebody who has the root and the count alone: about log2(count) hashes."""
    return hash_tree.path([hash_tree.leaf_hash(entry_hash) for entry_hash in entry_hashes], seq)


def is_included(root: bytes, count: int, seq: int, entry_hash: bytes, path: Sequence[bytes]) -> bool:
    """Whether the entry with this hash is number `seq` of the `count` entries under the root."""
    return hash_tree.shows(root, count, seq, hash_tree.leaf_hash(entry_hash), path)
