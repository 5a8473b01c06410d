"""What a trainer signs about the inner steps behind an update, so that any of them can be taken again.

The steps of a round are cut into intervals. Each interval's end has a leaf: the hash of parameters and inner moments
there. Which interval is looked at is drawn when the root is signed (`training_draw`). The first interval begins at the
outer parameters, which every replica holds, and the windows of every step follow from the run's record; an old state
or another's data therefore lead elsewhere.
source: Jia et al., Proof-of-Learning: Definitions and Practice, arXiv:2103.05633
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.swarm import identity
from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import MalformedMessage
from shoal.swarm.identity import Identity
from shoal.swarm.rounds import hash_tree

from .bodies import Count, Hash, Key, Large, Name, Signature
from .entry import peer_of

DOMAIN = "ledger-steps"
MAX_BYTES = 512


class StepStatement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A trainer's work in one round: `intervals` stretches of `every` inner steps from step `first` on."""

    trainer: Key
    run: Name
    round: Count
    before: Hash  # state of the outer parameters that the work began at
    first: Large  # inner steps of the trainer before
    every: Annotated[int, Meta(ge=1, le=2**20)]
    intervals: Annotated[int, Meta(ge=1, le=2**20)]
    begin: Hash  # of parameters and moments where the work began
    root: Hash  # over those at the end of each interval
    update: Hash  # root over the payloads that are offered to the round
    carried: Hash  # inner moments and error feedback that the work began with, `carried_hash`
    carries: Hash  # those that it ended with: the next round begins with them
    signature: Signature


_codec = Canonical(StepStatement, "a statement of steps", MAX_BYTES)


def encode(statement: StepStatement) -> bytes:
    return _codec.encode(statement)


def decode(data: bytes) -> StepStatement:
    """Says nothing about the signature. raises: MalformedMessage, whatever the bytes are"""
    return _codec.decode(data)


def signed(trainer: Identity, blank: StepStatement) -> StepStatement:
    named = msgspec.structs.replace(blank, trainer=trainer.public_key)
    return msgspec.structs.replace(named, signature=trainer.sign(DOMAIN, _message(named)))


def is_signed(statement: StepStatement) -> bool:
    try:
        return identity.verify(peer_of(statement.trainer), DOMAIN, _message(statement), statement.signature)
    except MalformedMessage:
        return False


def hash_of(statement: StepStatement) -> bytes:
    """As a TRAIN names it."""
    return hashlib.sha256(b"shoal/1/step-statement\0" + _codec.encode(statement)).digest()


def carried_hash(moments: bytes, residual: bytes) -> bytes:
    """Of two digests: the inner optimiser's moments, and what the encoder has left out so far."""
    return hashlib.sha256(b"shoal/1/steps-carried\0" + moments + residual).digest()


def leads(
    statement: StepStatement, interval: int, start: bytes, end: bytes, paths: tuple[Sequence[bytes], Sequence[bytes]]
) -> bool:
    """Whether these two states stand at the beginning and the end of the interval that was signed for.

    start, end: hashes of states; paths: to the leaf of each; () for the start of the first interval
    """
    if not is_signed(statement) or not 0 <= interval < statement.intervals:
        return False
    count, root = statement.intervals, statement.root
    if not hash_tree.shows(root, count, interval, hash_tree.leaf_hash(end), paths[1]):
        return False
    if interval == 0:
        return start == statement.begin and not paths[0]
    return hash_tree.shows(root, count, interval - 1, hash_tree.leaf_hash(start), paths[0])


def _message(statement: StepStatement) -> bytes:
    return _codec.encode(msgspec.structs.replace(statement, signature=bytes(64)))
