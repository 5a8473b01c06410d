"""What the Python client returns."""

from dataclasses import dataclass

from shoal.swarm.sessions.generation import FinishReason, Route
from shoal.swarm.text.pieces import Piece, TokenLogprob, Usage

from .backend import Ending


@dataclass(frozen=True, slots=True)
class Result:
    """A finished generation; `str(result)` is its text."""

    text: str
    ids: tuple[int, ...]  # the tokens that the text begins in
    finish_reason: FinishReason
    usage: Usage
    route: Route  # peers, layers, milliseconds per hop, failovers
    logprobs: tuple[TokenLogprob, ...]  # one per id when they were asked for
    model: str
    seed: int  # repeats the text

    def __str__(self) -> str:
        return self.text


def result_of(pieces: list[Piece], ending: Ending) -> Result:
    return Result(
        "".join(piece.text for piece in pieces),
        tuple(token for piece in pieces for token in piece.ids),
        ending.finish_reason,
        ending.usage,
        ending.route,
        tuple(token for piece in pieces for token in piece.logprobs),
        ending.model,
        ending.seed,
    )
