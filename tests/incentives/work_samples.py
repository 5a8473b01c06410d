"""Sessions of a server in small numbers: chunks, leaves, statements, evidence."""

import random

import numpy as np

from shoal.compression import activations
from shoal.incentives import audit_draw
from shoal.incentives.audit_evidence import ChunkEvidence, of_chunk
from shoal.incentives.work_chunks import Chunk, ChunkCutter
from shoal.incentives.work_statement import Served, WorkLeaves, WorkStatement
from shoal.swarm.identity import Identity
from shoal.swarm.units import Span

SERVER, CLIENT, STRANGER = (Identity(bytes([n]) * 32) for n in (11, 12, 13))
SECRET = bytes([7]) * 32
MIDDLE = Served(bytes([1]) * 32, "float32", "float32", Span(2, 4))
WIDTH = 4


def hidden(count: int, seed: int) -> bytes:
    values = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype("<f4")
    return activations.pack("float32", count, WIDTH, values.tobytes())


def session(positions: int, feeds: int = 0, seed: int = 1) -> list[Chunk]:
    """One session's chunks. feeds: seed of how it was cut into feeds, 0 for one feed of everything"""
    given, made = hidden(positions, seed), hidden(positions, seed + 1)
    cutter, chunks, at = ChunkCutter(), [], 0
    draw = random.Random(feeds)
    while at < positions:
        stop = min(positions, at + (draw.randint(1, 50) if feeds else positions))
        part = (activations.cut(data, positions, at, stop) for data in (given, made))
        chunks += cutter.add(stop - at, (), *part)
        at = stop
    last = cutter.finish()
    return [*chunks, last] if last else chunks


def signed(chunks: list[Chunk], secret: bytes = SECRET, name: bytes = b"session") -> tuple[WorkStatement, WorkLeaves]:
    leaves = WorkLeaves()
    for chunk in chunks:
        leaves.add(chunk)
    return leaves.statement(SERVER, name, MIDDLE, audit_draw.commitment(secret)), leaves


def evidence(positions: int = 100, index: int = 2) -> ChunkEvidence:
    chunks = session(positions)
    statement, leaves = signed(chunks)
    return of_chunk(statement, leaves, chunks, index)
