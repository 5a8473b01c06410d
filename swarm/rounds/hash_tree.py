"""A tree of sha256 over a list of leaves: one root commits to all of them, a short path shows one of them.

Leaves and inner nodes are hashed with different first bytes; the number of leaves is part of the root.
source: Merkle trees as in RFC 6962, with the last node of an odd level carried up unchanged
"""

import hashlib
from collections.abc import Sequence

HASH_BYTES = 32


def leaf_hash(data: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(b"\0")
    digest.update(data)
    return digest.digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """leaves: hashes, as `leaf_hash` gives them; at least one"""
    return bound(_levels(leaves)[-1][0], len(leaves))


def path(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The siblings from leaf to root, as `shows` wants them."""
    siblings = []
    for level in _levels(leaves)[:-1]:
        if index ^ 1 < len(level):
            siblings.append(level[index ^ 1])
        index //= 2
    return tuple(siblings)


def shows(tree_root: bytes, count: int, index: int, leaf: bytes, siblings: Sequence[bytes]) -> bool:
    """Whether `leaf` stands at `index` of the `count` leaves under the root."""
    if not 0 <= index < count:
        return False
    node, width, used = leaf, count, 0
    while width > 1:
        if index ^ 1 < width:
            if used == len(siblings) or len(siblings[used]) != HASH_BYTES:
                return False
            sibling = siblings[used]
            used += 1
            node = inner(sibling, node) if index & 1 else inner(node, sibling)
        index, width = index // 2, -(-width // 2)
    return used == len(siblings) and bound(node, count) == tree_root


def _levels(leaves: Sequence[bytes]) -> list[Sequence[bytes]]:
    if not leaves:
        raise ValueError("a tree without leaves")
    levels = [leaves]
    while len(levels[-1]) > 1:
        below = levels[-1]
        level = [inner(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)]
        if len(below) % 2:
            level.append(below[-1])
        levels.append(level)
    return levels


def inner(left: bytes, right: bytes) -> bytes:
    """The hash of a node over its two children."""
    return hashlib.sha256(b"\1" + left + right).digest()


def bound(node: bytes, count: int) -> bytes:
    """The root of a tree: its topmost node, bound to the number of leaves."""
    return hashlib.sha256(b"\2" + count.to_bytes(8, "little") + node).digest()
