"""What a judge takes from a trainer who shows his work in pieces."""

import anyio
import pytest
from swarm.people import person

from shoal.node.training.credit import messages
from shoal.node.training.credit.fetching import Showing
from shoal.node.training.credit.messages import PIECE_BYTES, Piece
from shoal.swarm.errors import MalformedMessage
from shoal.swarm.identifiers import PeerId

WORK = bytes(range(256)) * 2000  # more than two pieces


class Trainer:
    """In place of calls between members."""

    def __init__(self, piece_bytes: int) -> None:
        self.piece_bytes, self.asked = piece_bytes, 0

    async def call(self, _peer: PeerId, _method: str, body: bytes, _timeout_s: float) -> bytes:
        self.asked += 1
        at = messages.piece_wanted.decode(body).offset
        return messages.piece.encode(Piece(len(WORK), WORK[at : at + self.piece_bytes]))


def shown_by(trainer: Trainer) -> bytes:
    showing = Showing(trainer, person(1).peer_id, b"r" * 16, 0, None)  # type: ignore[arg-type]
    return anyio.run(showing._file, "parameters.0", len(WORK))  # noqa: SLF001


def test_work_in_full_pieces_arrives_whole() -> None:
    trainer = Trainer(PIECE_BYTES)
    assert shown_by(trainer) == WORK
    assert trainer.asked == 3


@pytest.mark.parametrize("piece_bytes", [0, 1, PIECE_BYTES - 1])
def test_a_trainer_cannot_hold_the_judge_up_with_little_pieces(piece_bytes: int) -> None:
    trainer = Trainer(piece_bytes)
    with pytest.raises(MalformedMessage, match="smaller pieces"):
        shown_by(trainer)
    assert trainer.asked == 1
