"""Tokens to pieces of text: the core of a text stream, with no I/O.

Detokeniser and stop strings both hold text back; a token is handed out with the text that it begins in.
"""

from collections import deque
from collections.abc import Sequence

from shoal.swarm.sessions.compute import Choice

from .pieces import Alternative, Piece, TokenLogprob
from .stop_strings import StopStrings
from .tokenizer import TextModel


class TextAssembly:
    """Feed choices with `take`, then call `finish` once; `stopped` says that a stop string was found."""

    def __init__(
        self, model: TextModel, prompt: Sequence[int], stops: Sequence[str] = (), logprobs: bool = False
    ) -> None:
        self._model = model
        self._detokenizer = model.detokenizer(prompt)
        self._stops = StopStrings(stops)
        self._logprobs = logprobs
        self._waiting: deque[tuple[int, Choice]] = deque()  # (first character, token), not handed out yet
        self._produced = 0  # characters out of the detokeniser
        self._released = 0  # characters handed out
        self.tokens = 0

    @property
    def stopped(self) -> bool:
        return self._stops.matched is not None

    def take(self, choice: Choice) -> Piece | None:
        """The next piece, or None while its text is not certain."""
        self.tokens += 1
        self._waiting.append((self._produced, choice))
        text = self._detokenizer.feed(choice.id)
        self._produced += len(text)
        text = self._stops.feed(text)
        return self._piece(text) if text else None

    def finish(self) -> Piece | None:
        """What was held back, and the tokens that have no text; nothing that lies behind a stop string."""
        if self.stopped:
            return None
        text = self._stops.feed(self._detokenizer.finish()) + self._stops.flush()
        piece = self._piece(text, rest=not self.stopped)
        return piece if piece.text or piece.ids else None

    def _piece(self, text: str, rest: bool = False) -> Piece:
        self._released += len(text)
        out: list[tuple[int, Choice]] = []
        while self._waiting and (rest or self._waiting[0][0] < self._released):
            out.append(self._waiting.popleft())
        ids = tuple(choice.id for _, choice in out)
        if not self._logprobs:
            return Piece(text, ids)
        return Piece(text, ids, tuple(self._logprob(offset, choice) for offset, choice in out))

    def _logprob(self, offset: int, choice: Choice) -> TokenLogprob:
        top = tuple(self._alternative(token, logprob) for token, logprob in choice.top)
        own = self._alternative(choice.id, choice.logprob)
        return TokenLogprob(own.id, own.token, own.bytes, own.logprob, top, offset)

    def _alternative(self, token: int, logprob: float) -> Alternative:
        data = self._model.token_bytes(token)
        return Alternative(token, data.decode("utf-8", "replace"), data, logprob)
