"""What one hop of a session took in and gave out, cut into chunks of 32 positions: the pieces that audits look at.

Feeds come in any sizes (a prompt at once, then a position at a time), and a chunk's bytes must not depend on them. So
positions are gathered and cut at multiples of CHUNK_POSITIONS, and hidden states are packed again.
"""

from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.compression import activations

CHUNK_POSITIONS = 32  # as many as one tick pays
AUDITED_BYTES = 24 << 20  # of a session's hidden states on each side of a hop: evidence has to fit one frame
TokenId = Annotated[int, Meta(ge=0, le=2**32 - 1)]


class Given(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What came in at a chunk's positions: ids, or an activation. Exactly one of the two is there."""

    ids: tuple[TokenId, ...]
    hidden: bytes


class Made(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What went out. hidden: the residual stream behind the span's last layer, before the head where there is one

    tokens: by position, 1 + the id chosen there, 0 where none was asked for; () for a span without the head
    """

    hidden: bytes
    tokens: tuple[TokenId, ...]


class Chunk(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    count: Annotated[int, Meta(ge=1, le=CHUNK_POSITIONS)]  # fewer than CHUNK_POSITIONS only at the end of a session
    given: Given
    made: Made


def most_audited(width: int, wire: str) -> int:
    """Chunks of a session, from its first, that can be looked at: what comes behind is signed for and not kept.

    width: values of a position; wire: dtype of what is sent, one that is not known counts as the widest
    """
    return AUDITED_BYTES // (CHUNK_POSITIONS * width * activations.VALUE_BYTES.get(wire, 4))


class ChunkCutter:
    """Takes feeds of consecutive positions, gives chunks."""

    def __init__(self) -> None:
        self._waiting: list[Chunk] = []  # pieces of the chunk that is not full yet
        self._held = 0

    def add(
        self, count: int, ids: tuple[int, ...], hidden: bytes, made: bytes, tokens: tuple[int, ...] = ()
    ) -> Iterator[Chunk]:
        """ids or hidden, made: of `count` positions. returns: the chunks that are full now; iterate to the end

        raises: MalformedPayload when the bytes are no activation of so many positions, at the latest with the chunk
        """
        if self._held + count < CHUNK_POSITIONS:  # a step: nothing to cut, and nothing is full
            self._waiting.append(Chunk(count, Given(ids, hidden), Made(made, tokens)))
            self._held += count
            return
        at = 0
        while at < count:
            taken = min(count - at, CHUNK_POSITIONS - self._held)
            stop = at + taken
            given = Given(ids[at:stop], b"" if ids else activations.cut(hidden, count, at, stop))
            self._waiting.append(
                Chunk(taken, given, Made(activations.cut(made, count, at, stop), tuple(tokens[at:stop])))
            )
            self._held += taken
            at = stop
            if self._held == CHUNK_POSITIONS:
                yield self._joined()

    def finish(self) -> Chunk | None:
        """The last chunk of a session, which may be short. raises: MalformedPayload"""
        return self._joined() if self._waiting else None

    def _joined(self) -> Chunk:
        pieces, self._waiting, self._held = self._waiting, [], 0
        given = Given(
            tuple(i for p in pieces for i in p.given.ids),
            b"" if pieces[0].given.ids else activations.join([(p.given.hidden, p.count) for p in pieces]),
        )
        made = Made(
            activations.join([(p.made.hidden, p.count) for p in pieces]),
            tuple(t for p in pieces for t in p.made.tokens),
        )
        return Chunk(sum(p.count for p in pieces), given, made)
