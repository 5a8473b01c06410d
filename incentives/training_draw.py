"""Which claims of trainers a judge looks at, and where; and what a claim that was found sound is worth.

The draw is the judge's signature over the claim: only the judge can make it, only one is right, and whoever sees it can
check it. So it is a beacon that nobody knows before the claim is written, without a server and without anybody else.
(ed25519 fixes the signature for a signer that follows it; a judge that draws again until it likes the outcome could as
well write the verdict that it likes.)

Most claims are not looked at and mint nothing; one that is mints for those that were not. Work that was not done is
worth nothing in either case, and what is claimed is worth, in the mean, what was done.
"""

from dataclasses import dataclass
from hashlib import sha256
from math import isfinite

from shoal.swarm import identity
from shoal.swarm.identifiers import PeerId
from shoal.swarm.identity import Identity

LEAST_PERCENT = 5
DOMAIN = "ledger-train-draw"


@dataclass(frozen=True, slots=True)
class Draw:
    """proof: the judge's signature"""

    proof: bytes
    looked_at: bool
    interval: int


def percent_looked_at(others: int) -> int:
    """Of the claims of a round: one in the mean, so that judging costs one interval of work, whatever the group's size.

    others: contributors but the judge
    """
    return max(LEAST_PERCENT, 100 // max(1, others))


def drawn(judge: Identity, claim: bytes, percent: int, intervals: int) -> Draw:
    """claim: 32 bytes, hash of the TRAIN"""
    return _read(judge.sign(DOMAIN, claim), percent, intervals)


def shown(judge: PeerId, claim: bytes, proof: bytes, percent: int, intervals: int) -> Draw | None:
    """What this judge's draw was; None when it was not his."""
    return _read(proof, percent, intervals) if identity.verify(judge, DOMAIN, claim, proof) else None


def _read(proof: bytes, percent: int, intervals: int) -> Draw:
    digest = sha256(proof).digest()
    whether, where = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")
    return Draw(proof, whether * 100 < percent << 64, where % intervals)


def quality_percent(own: float, mean: float) -> int:
    """What an update was worth on held-out text against the mean update of its round, in [0, 100].

    own, mean: s = -<gradient of the held-out loss, update>, nats
    A round whose mean does not lower the loss, to first order, says nothing about who is good: then all are.
    """
    if not isfinite(own):
        return 0
    if not isfinite(mean) or mean <= 0:
        return 100
    return max(0, min(100, round(100 * own / mean)))


def worth(tokens: int, quality: int, percent: int) -> int:
    """Credits. tokens: verified; quality: of 100; percent: of claims that are looked at"""
    return tokens * quality // percent
