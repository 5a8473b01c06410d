"""A token stream as text: pieces, a finish reason, usage and the route."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from shoal.swarm.errors import LocalFault, Unavailable
from shoal.swarm.sessions.generation import FinishReason, Route, TokenRequest, TokenSource, TokenStream

from .pieces import Piece, Usage
from .text_assembly import TextAssembly
from .tokenizer import TextModel


class TextStream:
    """Iterate once for the pieces; then `finish_reason` and `usage` are set, and `route` is complete."""

    def __init__(self, tokens: TokenStream, assembly: TextAssembly, prompt_tokens: int) -> None:
        self._tokens = tokens
        self._assembly = assembly
        self._prompt_tokens = prompt_tokens
        self.finish_reason: FinishReason | None = None

    @property
    def route(self) -> Route:
        return self._tokens.route

    @property
    def usage(self) -> Usage:
        return Usage(self._prompt_tokens, self._assembly.tokens)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """raises: what the token stream raises; Unavailable when the session was cancelled from elsewhere"""
        async for choice in self._tokens:
            piece = self._assembly.take(choice)
            if piece is not None:
                yield piece
            if self._assembly.stopped:
                break
        last = self._assembly.finish()
        if last is not None:
            yield last
        self.finish_reason = self._reason()

    def _reason(self) -> FinishReason:
        if self._assembly.stopped:
            return "stop"
        reason = self._tokens.finish_reason
        if reason == "cancelled":
            raise Unavailable("the session was cancelled before its end")
        if reason is None:
            raise LocalFault("the token stream ended without a reason")
        return reason


@asynccontextmanager
async def open_text_stream(
    source: TokenSource, model: TextModel, request: TokenRequest, stops: Sequence[str] = ()
) -> AsyncIterator[TextStream]:
    """Leaving the context cancels the session, at a stop string too."""
    assembly = TextAssembly(model, request.ids, stops, logprobs=request.sampling.top_logprobs >= 0)
    async with source.generate(request) as tokens:
        yield TextStream(tokens, assembly, len(request.ids))
