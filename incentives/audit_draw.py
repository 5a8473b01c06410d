"""Which chunks are audited, how often, and by whom: known to nobody before the work is signed for.

The client draws a secret and gives the server its hash before the session; the server's signed statement carries that
hash and the root over its work. Secret and root together decide. The server does not know the secret when it signs,
the client cannot change it afterwards, and whoever reads a verdict can draw again. A client that wants no audit can
keep silent, which wins nothing: what it pays is its own, and only audited work counts for the server's standing.
"""

import hashlib
from collections.abc import Sequence

from shoal.swarm.identifiers import PeerId

from .work_statement import WorkStatement, hash_of

LEAST_RATE = 0.05
NEWCOMER_CHUNKS = 16  # sound audits after which the rate has fallen to one half
JURORS = 3


def audit_rate(sound: int, suspicion: float) -> float:
    """The share of chunks to audit. sound: of this server's chunks, those that independent auditors found sound

    suspicion: of the sequential tests, in nats; any at all means that everything is looked at
    """
    if suspicion > 0:
        return 1.0
    return max(LEAST_RATE, NEWCOMER_CHUNKS / (NEWCOMER_CHUNKS + sound))


def commitment(secret: bytes) -> bytes:
    """What a client gives the server. secret: 32 random bytes, new for each session"""
    return hashlib.sha256(b"shoal/1/audit-secret\0" + secret).digest()


def is_drawn(statement: WorkStatement, secret: bytes, index: int, rate: float) -> bool:
    """Whether chunk `index` of this statement is to be audited at this rate.

    The same chunk under a later statement of the session is drawn anew: ask only for the chunks that are new in it.
    raises: ValueError when the secret is not the one that the server signed for
    """
    if commitment(secret) != statement.draw:
        raise ValueError("another secret than the one committed to")
    drawn = hashlib.sha256(b"shoal/1/audit-chunk\0" + secret + hash_of(statement) + index.to_bytes(4, "big")).digest()
    return int.from_bytes(drawn[:7], "big") < int(rate * 2**56)


def auditors(statement: WorkStatement, secret: bytes, index: int, holders: Sequence[PeerId]) -> tuple[PeerId, ...]:
    """Who re-executes: an order of the other holders of the class; the first audits, the next JURORS judge a dispute.

    source: Thaler and Ravishankar, rendezvous hashing (1998)
    """
    beacon = hashlib.sha256(b"shoal/1/audit-who\0" + secret + hash_of(statement) + index.to_bytes(4, "big")).digest()
    return tuple(sorted(holders, key=lambda peer: hashlib.sha256(beacon + peer.encode()).digest()))
