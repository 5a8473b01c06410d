"""One answer, shown while it comes."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from shoal import Client, ContextTooLong, Piece, Result

from .output import Output
from .route_view import route_lines

Asked = str | Sequence[Mapping[str, str]]


class Answers:
    """max_tokens: None takes `usual_tokens`, or what the model's context has room for when that is less"""

    def __init__(
        self, client: Client, output: Output, options: dict[str, Any], max_tokens: int | None, usual_tokens: int
    ) -> None:
        self._client = client
        self._output = output
        self._options = options
        self._max_tokens = max_tokens
        self._usual_tokens = usual_tokens

    def show(self, asked: Asked) -> Result:
        """Stream the answer to stdout. raises: ShoalError"""
        try:
            result = self._stream(asked, self._max_tokens or self._usual_tokens)
        except ContextTooLong:
            if self._max_tokens is not None:
                raise
            result = self._stream(asked, None)
        if not result.text.endswith("\n"):
            self._output.line()
        self._output.event("result", **result_facts(result))
        return result

    def _stream(self, asked: Asked, max_tokens: int | None) -> Result:
        with self._client.stream(asked, max_tokens=max_tokens, **self._options) as stream:
            for piece in stream:
                self._output.write(piece.text)
                self._output.event("piece", **_piece_facts(piece))
            return stream.result

    def note_route(self, result: Result) -> None:
        for line in route_lines(result):
            self._output.note(line)

    def note_logprobs(self, result: Result) -> None:
        for each in result.logprobs:
            others = "  ".join(f"{other.token!r} {other.logprob:.3f}" for other in each.top)
            self._output.note(f"{each.token!r:16} {each.logprob:8.3f}  {others}".rstrip())


def result_facts(result: Result) -> dict[str, Any]:
    """For --json: all that a result holds."""
    facts: dict[str, Any] = msgspec.to_builtins(result)
    return facts


def _piece_facts(piece: Piece) -> dict[str, Any]:
    facts = {"text": piece.text, "ids": list(piece.ids)}
    if piece.logprobs:
        facts["logprobs"] = msgspec.to_builtins(piece.logprobs)
    return facts
