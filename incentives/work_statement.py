"""What a server signs about the work it did in a session, before anybody knows which chunk of it will be audited.

Each chunk has a leaf: the hash of all that came in up to its end, and of what went out at its positions. A Merkle root
over the leaves, signed, commits to all of them with 64 bytes a statement; a new statement each STATEMENT_CHUNKS
chunks and at the end of a session costs a fifth of a byte a token. So a server cannot deny what it sent, and an
auditor cannot invent it. The statement also carries the client's commitment to a secret, from which the draw of the
audited chunks follows (`audit_draw.py`): neither of the two can choose.
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
from shoal.swarm.units import Span

from .bodies import Count, Hash, Key, Name, Signature
from .entry import peer_of
from .work_chunks import Chunk, Given, Made

DOMAIN = "ledger-work"
STATEMENT_CHUNKS = 16
MAX_STATEMENT_BYTES = 512
_START = bytes(32)
_bytes = msgspec.msgpack.Encoder()


class Served(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The class of a computation: only within one are numbers compared. model: 32 bytes; wire: dtype of what is sent"""

    model: Hash
    dtype: Annotated[str, Meta(max_length=16)]
    wire: Annotated[str, Meta(max_length=16)]
    span: Span


class WorkStatement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All of a session's work at one hop so far: chunks 0 to count - 1."""

    server: Key
    session: Name
    served: Served
    draw: Hash  # the client's commitment, `audit_draw.commitment`
    sampling: Annotated[bytes, Meta(max_length=128)]  # encoded `Sampling` where the span has the head, else b""
    count: Annotated[int, Meta(ge=1, le=2**20)]
    positions: Count
    root: Hash
    signature: Signature


_codec = Canonical(WorkStatement, "a statement of work", MAX_STATEMENT_BYTES)


def encode(statement: WorkStatement) -> bytes:
    return _codec.encode(statement)


def decode(data: bytes) -> WorkStatement:
    """Says nothing about the signature. raises: MalformedMessage, whatever the bytes are"""
    return _codec.decode(data)


class WorkLeaves:
    """The leaves of a session's chunks, in order, and what they are made of: 96 bytes each are all that it keeps."""

    def __init__(self) -> None:
        self.hashes: list[bytes] = []
        self.sent: list[bytes] = []  # `sent_hash` of each chunk
        self.given: list[bytes] = [_START]  # `given_hash` before each chunk, and after the last
        self.positions = 0

    def path(self, index: int) -> tuple[bytes, ...]:
        """From that chunk's leaf to the root of a statement made now."""
        return hash_tree.path(self.hashes, index)

    def add(self, chunk: Chunk) -> None:
        self.given.append(given_hash(self.given[-1], chunk.given))
        self.sent.append(sent_hash(chunk.made))
        self.hashes.append(leaf_of(len(self.hashes), chunk.count, self.given[-1], self.sent[-1]))
        self.positions += chunk.count

    def statement(
        self, server: Identity, session: bytes, served: Served, draw: bytes, sampling: bytes = b""
    ) -> WorkStatement:
        """raises: ValueError before the first chunk"""
        root = hash_tree.root(self.hashes)
        count, positions = len(self.hashes), self.positions
        blank = WorkStatement(server.public_key, session, served, draw, sampling, count, positions, root, bytes(64))
        return msgspec.structs.replace(blank, signature=server.sign(DOMAIN, _message(blank)))


def is_signed(statement: WorkStatement) -> bool:
    """Whether its server signed it; False for weak keys."""
    try:
        return identity.verify(peer_of(statement.server), DOMAIN, _message(statement), statement.signature)
    except MalformedMessage:
        return False


def hash_of(statement: WorkStatement) -> bytes:
    """32 bytes, over everything but the signature."""
    return hashlib.sha256(b"shoal/1/work-statement\0" + _message(statement)).digest()


def given_hash(before: bytes, given: Given) -> bytes:
    """Of all inputs up to and including this chunk's."""
    return hashlib.sha256(b"shoal/1/work-given\0" + before + _bytes.encode(given)).digest()


def inputs_hash(inputs: Sequence[Given]) -> bytes:
    found = _START
    for given in inputs:
        found = given_hash(found, given)
    return found


def sent_hash(made: Made) -> bytes:
    return hashlib.sha256(b"shoal/1/work-made\0" + _bytes.encode(made)).digest()


def leaf_hash(index: int, count: int, given: bytes, made: Made) -> bytes:
    return leaf_of(index, count, given, sent_hash(made))


def leaf_of(index: int, count: int, given: bytes, sent: bytes) -> bytes:
    """given, sent: hashes, as `given_hash` and `sent_hash` give them"""
    place = index.to_bytes(4, "big") + count.to_bytes(4, "big")
    return hash_tree.leaf_hash(place + given + sent)


def _message(statement: WorkStatement) -> bytes:
    return _codec.encode(msgspec.structs.replace(statement, signature=bytes(64)))
