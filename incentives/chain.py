"""One peer's chain as a machine: an entry in, accepted, refused with the reason, or the proof of a fork out.

No store and no clock: what is known of the chain and the time are arguments.
"""

from dataclasses import dataclass, replace
from typing import Literal

from . import entry as entries
from .bodies import ForkProof, Rotate
from .entry import NO_HASH, Entry

ROTATION_FINAL_S = 7 * 86_400  # a thief of an old key can convict its account for so long, and never spend
MAX_AHEAD_S = 90_000  # of the receiver's clock: an author whose clock is a day off is heard all the same

Reason = Literal[
    "unsigned",  # the signature (or the new key's, of a ROTATE) is not that of the author, or the key is weak
    "known",  # stored already
    "gap",  # entries before it are missing
    "wrong_prev",  # does not follow the entry before
    "earlier",  # its time lies before that of the entry before
    "future",  # its time lies too far ahead of the receiver's
    "rotated",  # the author handed over to another key
    "forked",  # the author has two chains; nothing of it counts any more
    "not_successor",  # a first entry that names a predecessor which did not hand over to it
]


@dataclass(frozen=True, slots=True)
class Chain:
    """What one knows of an author."""

    author: bytes
    length: int = 0  # entries held; the next has this sequence number
    head: bytes = NO_HASH  # hash of the last
    time: int = 0  # of the last
    signature: bytes = b""  # of the last
    received: int = 0  # when the last one came here
    successor: bytes = b""  # key that took over
    forked: bool = False


@dataclass(frozen=True, slots=True)
class Accepted:
    chain: Chain


@dataclass(frozen=True, slots=True)
class Refused:
    reason: Reason


@dataclass(frozen=True, slots=True)
class Forked:
    """The author signed two entries for one place."""

    chain: Chain
    proof: ForkProof


def judge(
    entry: Entry, chain: Chain, known: Entry | None, predecessor: Chain | None, now: int
) -> Accepted | Refused | Forked:
    """
    chain: of `entry.author`
    known: the entry that is held with the same author and sequence number
    predecessor: the chain whose head (a ROTATE) has the hash `entry.prev`, for a first entry with one
    """
    if chain.forked:
        return Refused("forked")
    if chain.successor and now - chain.received >= ROTATION_FINAL_S:
        return Refused("rotated")
    if known is not None:
        if entries.hash_of(known) == entries.hash_of(entry):
            return Refused("known")
        if not entries.is_signed(entry):
            return Refused("unsigned")
        return Forked(replace(chain, forked=True), fork_proof(known, entry))
    refusal = _misplaced(entry, chain, predecessor, now)
    if refusal is not None:
        return Refused(refusal)
    if not entries.is_signed(entry):
        return Refused("unsigned")
    successor = entry.body.new_key if isinstance(entry.body, Rotate) else b""
    digest = entries.hash_of(entry)
    return Accepted(
        replace(
            chain,
            length=chain.length + 1,
            head=digest,
            time=entry.time,
            signature=entry.signature,
            successor=successor,
            received=now,
        )
    )


def _misplaced(entry: Entry, chain: Chain, predecessor: Chain | None, now: int) -> Reason | None:
    """The cheap checks, before any signature."""
    if chain.successor:
        return "rotated"
    if entry.seq > chain.length:
        return "gap"
    if chain.length == 0 and entry.prev != NO_HASH:
        if predecessor is None or predecessor.successor != entry.author or predecessor.head != entry.prev:
            return "not_successor"
    elif entry.prev != chain.head:
        return "wrong_prev"
    if entry.time < chain.time:
        return "earlier"
    if entry.time > now + MAX_AHEAD_S:
        return "future"
    return None


def fork_proof(one: Entry, other: Entry) -> ForkProof:
    """The same proof whatever the order in which the two were seen."""
    first, second = sorted((one, other), key=entries.hash_of)
    return ForkProof(one.author, one.seq, entries.branch_of(first), entries.branch_of(second))


def forger(proof: ForkProof) -> bytes | None:
    """The key that a proof convicts; None when it proves nothing, whatever stands in it."""
    author, seq = proof.author, proof.seq
    hashes = [entries.hash_of_branch(author, seq, branch) for branch in (proof.first, proof.second)]
    if hashes[0] >= hashes[1]:
        return None
    signed = all(entries.is_signed_branch(author, seq, branch) for branch in (proof.first, proof.second))
    return author if signed else None
