"""The seam under the Python client: two ways to the swarm that give the same pieces.

`http_backend.py` speaks to a node's HTTP API, `source_backend.py` drives sessions in this process.
"""

from types import TracebackType
from typing import Protocol, Self

import msgspec

from shoal.swarm.sessions.generation import FinishReason, Route, ServedModel
from shoal.swarm.text.pieces import Piece, Usage
from shoal.swarm.text.text_request import TextRequest


class Ending(msgspec.Struct, frozen=True):
    """What is known when the last piece has come."""

    model: str  # its name
    finish_reason: FinishReason
    usage: Usage
    route: Route
    seed: int


class PieceStream(Protocol):
    """A running generation. Its methods may be called from different tasks, one at a time."""

    async def next(self) -> Piece | Ending:
        """The next piece, or the ending; nothing is asked after the ending. raises: ShoalError"""

    async def close(self) -> None:
        """Cancel the generation if it still runs; harmless afterwards and when repeated."""


class Backend(Protocol):
    """Everything is free again when the context is left; running streams are cancelled."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...

    async def models(self) -> list[ServedModel]:
        """raises: ShoalError"""

    async def open(self, request: TextRequest) -> PieceStream:
        """Begin a generation. raises: ShoalError, here or at the first `next`"""
