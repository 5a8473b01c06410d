"""Did what one hop signed as its output come in at the next? Two statements and half a kilobyte say so.

The next hop shows the leaf of a chunk in two hashes: what came in before, and what went out. With the bytes that its
neighbour signed for, the leaf has to come out, and the path has to lead to its own signed root. When it does not, one
of the two lies, and nobody else knows which.
"""

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.swarm.canonical import Canonical
from shoal.swarm.rounds import hash_tree

from . import work_statement
from .bodies import Hash
from .work_chunks import CHUNK_POSITIONS, Given
from .work_statement import WorkLeaves, WorkStatement

DISTRUST = 3  # false links with so many different neighbours, and with most of all, are no accident


class ChunkLink(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """before: hash of all inputs before the chunk; sent: of what went out at it"""

    count: Annotated[int, Meta(ge=1, le=CHUNK_POSITIONS)]
    before: Hash
    sent: Hash
    path: Annotated[tuple[Hash, ...], Meta(max_length=32)]


links = Canonical(ChunkLink, "a link of a chunk", 2048)


def of_chunk(leaves: WorkLeaves, count: int, index: int) -> ChunkLink:
    return ChunkLink(count, leaves.given[index], leaves.sent[index], leaves.path(index))


def took(statement: WorkStatement, link: ChunkLink, index: int, hidden: bytes) -> bool:
    """Whether the statement is of a session in which these hidden states came in as that chunk."""
    given = work_statement.given_hash(link.before, Given((), hidden))
    leaf = work_statement.leaf_of(index, link.count, given, link.sent)
    return hash_tree.shows(statement.root, statement.count, index, leaf, link.path)


def is_distrusted(neighbours: Mapping[bytes, bool]) -> bool:
    """neighbours: of one server, by key; True where a link with it was false.

    A liar has false links with whomever it stands beside, an honest server only with liars; who stands beside whom is
    for routing to choose.
    """
    false = sum(neighbours.values())
    return false >= DISTRUST and 2 * false > len(neighbours)
