"""What a judge asks of a trainer, and what it gets."""

from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.incentives.bodies import MAX_ENTRY_BYTES, Count, Hash, Name
from shoal.incentives.step_statement import MAX_BYTES
from shoal.node.training.update_audit import MOST_INTERVALS
from shoal.swarm.canonical import Canonical

PIECE_BYTES = 192 << 10
CLAIM, PIECE = "train/claim", "train/piece"


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


class ClaimWanted(_Message, frozen=True):
    """The claim of a round. The answer is empty while there is none."""

    run: Name
    round: Count


class Claim(_Message, frozen=True):
    """marks: digests of parameters and moments, where the work began and at the end of each interval
    residuals: digests of the error feedback, before and after
    """

    entry: Annotated[bytes, Meta(max_length=MAX_ENTRY_BYTES)]  # the TRAIN
    statement: Annotated[bytes, Meta(max_length=MAX_BYTES)]
    marks: Annotated[tuple[tuple[Hash, Hash], ...], Meta(min_length=2, max_length=MOST_INTERVALS + 1)]
    residuals: tuple[Hash, Hash]


class PieceWanted(_Message, frozen=True):
    """Bytes from `offset` on of one file of a round: see `kept_work`."""

    run: Name
    round: Count
    name: Annotated[str, Meta(max_length=32)]
    offset: Annotated[int, Meta(ge=0, le=2**53)]


class Piece(_Message, frozen=True):
    size: Annotated[int, Meta(ge=0, le=2**53)]  # of the file
    data: Annotated[bytes, Meta(max_length=PIECE_BYTES)]


claim_wanted = Canonical(ClaimWanted, "a question for a claim", 128)
claim = Canonical(Claim, "a claim", 16384)
piece_wanted = Canonical(PieceWanted, "a question for a piece", 256)
piece = Canonical(Piece, "a piece of a trainer's work", PIECE_BYTES + 64)
