"""One chunk with all that a stranger needs to compute it again, tied to the server's signature.

Every byte counts: the inputs lead to the leaf's first half, the outputs to its second, the path to the signed root.
Whoever changes, leaves out or invents any of it has no evidence.
"""

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import MalformedMessage, RemoteFault
from shoal.swarm.rounds import hash_tree

from . import work_statement
from .bodies import Count, Hash
from .work_chunks import CHUNK_POSITIONS, Chunk, Given, Made
from .work_statement import MAX_STATEMENT_BYTES, WorkLeaves, WorkStatement, hash_of

MAX_EVIDENCE_BYTES = 30 << 20  # one frame; `work_chunks.AUDITED_BYTES` of inputs and a chunk of outputs


class Unproven(RemoteFault):
    """Evidence that does not hold: nobody is judged by it."""


class ChunkEvidence(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """inputs: of chunks 0 to `index`, as a later position depends on all before it; made: of chunk `index` alone"""

    statement: Annotated[bytes, Meta(max_length=MAX_STATEMENT_BYTES)]
    index: Count
    count: Count  # positions of the chunk
    inputs: tuple[Given, ...]
    made: Made
    path: Annotated[tuple[Hash, ...], Meta(max_length=32)]


_codec = Canonical(ChunkEvidence, "evidence of a chunk", MAX_EVIDENCE_BYTES)


def encode(evidence: ChunkEvidence) -> bytes:
    return _codec.encode(evidence)


def decode(data: bytes) -> ChunkEvidence:
    """Says nothing about what it proves. raises: MalformedMessage, whatever the bytes are"""
    return _codec.decode(data)


def of_chunk(statement: WorkStatement, leaves: WorkLeaves, chunks: list[Chunk], index: int) -> ChunkEvidence:
    """chunks: those of the session, from the first. leaves: exactly those of the statement"""
    chunk = chunks[index]
    inputs = tuple(c.given for c in chunks[: index + 1])
    return ChunkEvidence(work_statement.encode(statement), index, chunk.count, inputs, chunk.made, leaves.path(index))


def positions_of(evidence: ChunkEvidence) -> int:
    """All that have to be computed to see the chunk."""
    return CHUNK_POSITIONS * evidence.index + evidence.count


def proven(evidence: ChunkEvidence) -> WorkStatement:
    """The statement that stands behind the evidence. raises: Unproven"""
    try:
        statement = work_statement.decode(evidence.statement)
    except MalformedMessage as error:
        raise Unproven(str(error)) from error
    if not work_statement.is_signed(statement):
        raise Unproven("the server did not sign this statement")
    if len(evidence.inputs) != evidence.index + 1:
        raise Unproven(f"inputs of {len(evidence.inputs)} chunks for chunk {evidence.index}")
    given = work_statement.inputs_hash(evidence.inputs)
    leaf = work_statement.leaf_hash(evidence.index, evidence.count, given, evidence.made)
    if not hash_tree.shows(statement.root, statement.count, evidence.index, leaf, evidence.path):
        raise Unproven("this is not the chunk that the server signed for")
    return statement


def audited_hash(statement: WorkStatement, index: int) -> bytes:
    """32 bytes that name the chunk in a VERDICT."""
    return hashlib.sha256(b"shoal/1/audited-chunk\0" + hash_of(statement) + index.to_bytes(4, "big")).digest()
