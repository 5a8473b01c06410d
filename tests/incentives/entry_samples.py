"""Entries of every kind, drawn by hypothesis or by a seeded generator."""

import random

from hypothesis import strategies as st

from shoal.incentives import bodies, entry
from shoal.incentives.bodies import AnyBody
from shoal.incentives.entry import Entry
from shoal.swarm.identity import Identity

WRITER = Identity(bytes([5]) * 32)


def any_body(draw: random.Random) -> AnyBody:
    def number(bits: int) -> int:
        return draw.getrandbits(draw.randint(1, bits))

    key, digest, word, signature = (draw.randbytes(size) for size in (32, 32, 16, 64))
    kinds: list[AnyBody] = [
        bodies.Open(key, draw.randbytes(14), word, number(32), 32, number(20), draw.randint(1, 86_400), number(1)),
        bodies.Close(digest, number(20), word),
        bodies.Ack(digest, number(8)),
        bodies.Train(draw.randbytes(16), number(32), number(53), digest, key, draw.randbytes(32)),
        bodies.Verdict(key, number(8), digest, number(8), draw.randbytes(32), number(53)),
        bodies.Checkpoint(digest, number(32), key, (bodies.Witness(key, signature),) * draw.randint(0, 5)),
        bodies.Rotate(key, signature),
        bodies.ForkProof(key, number(32), *(bodies.Branch(digest, number(40), key, signature) for _ in range(2))),
    ]
    return draw.choice(kinds)


def any_entry(draw: random.Random) -> Entry:
    seq, time = draw.getrandbits(draw.randint(1, 32)), draw.getrandbits(draw.randint(1, 40))
    return entry.write(WRITER, seq, draw.randbytes(32), time, any_body(draw))


def entries() -> st.SearchStrategy[Entry]:
    return st.integers(0, 2**64 - 1).map(lambda seed: any_entry(random.Random(seed)))
