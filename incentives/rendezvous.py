"""Who watches whom: every peer computes the same few witnesses of a chain, without asking anybody.

Each member gets a pseudo-random weight for the chain, the heaviest are its witnesses. When a member comes or goes, only
the chains change a witness that it was, or becomes, one of.
source: Thaler and Ravishankar, Using name-based mappings to increase hit rates, 1998 (rendezvous hashing)
"""

import heapq
from collections.abc import Iterable
from hashlib import sha256

from shoal.swarm.identifiers import PeerId

from .entry import peer_of

WITNESSES = 7
LIARS = 2  # of them, who sign whatever they are asked to
_HEAD = b"shoal/1/witness\0"


def witnesses(
    author: bytes, members: Iterable[PeerId], beacon: bytes = b"", count: int = WITNESSES
) -> tuple[PeerId, ...]:
    """The heaviest first; never the author; fewer than `count` when there are not so many.

    author: key
    members: of the swarm, known to live; each that two peers disagree on changes at most one witness
    beacon: drawn after the author's key was made, so that nobody makes keys until the witnesses suit him
    raises: MalformedMessage for a weak key
    """
    me = peer_of(author)
    seed = _HEAD + author + beacon
    others = {member for member in members if member != me}
    return tuple(heapq.nlargest(count, others, key=lambda peer: sha256(seed + peer.encode()).digest()))


def quorum(appointed: int) -> int:
    """Signatures that a head wants: any two such sets share more than LIARS, so one who signs only one of two heads.

    With all seven that is five, and two may be away; of three, all.
    """
    return min(appointed, (appointed + LIARS) // 2 + 1)
