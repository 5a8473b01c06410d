"""The HTTP answer to a generation: one JSON body, or server-sent events while the tokens come.

The sessions live inside the answer, so a client that goes away takes them with it. The status line waits for the first
piece of text: whatever goes wrong before it is an ordinary error with its own status, later ones are an event.
"""

from collections.abc import Sequence
from typing import Protocol

import anyio
import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from shoal.swarm.text.pieces import Piece
from shoal.swarm.text.text_source import TextSource

from .choices import ChoiceRun, run_choices, total_usage
from .errors import ErrorAnswer, described, error_response
from .gateway_metrics import GatewayMetrics
from .openai_answers import ChoiceRoute, ShoalInfo, TokenCount

_EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class AnswerForm(Protocol):
    """How one endpoint writes its answers."""

    prompt_field: str

    def first(self, run: ChoiceRun) -> list[bytes]:
        """Chunks that go before a choice's first piece."""

    def chunk(self, run: ChoiceRun, piece: Piece) -> bytes: ...

    def last(self, run: ChoiceRun, shoal: ShoalInfo | None) -> bytes:
        """The chunk with the finish reason."""

    def usage(self, usage: TokenCount, shoal: ShoalInfo) -> bytes: ...

    def whole(
        self, runs: Sequence[ChoiceRun], pieces: Sequence[Sequence[Piece]], usage: TokenCount, shoal: ShoalInfo
    ) -> bytes: ...


class GenerationAnswer(Response):
    def __init__(
        self,
        texts: TextSource,
        metrics: GatewayMetrics,
        form: AnswerForm,
        runs: Sequence[ChoiceRun],
        n: int,
        stream: bool,
        include_usage: bool,
    ) -> None:
        super().__init__()
        self._texts, self._metrics, self._form, self._runs, self._n = texts, metrics, form, runs, n
        self._stream, self._include_usage = stream, include_usage
        self._started = False
        self._left = len(runs)  # choices that have not ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_when_gone, receive, group.cancel_scope)
            try:
                await (self._events(send) if self._stream else self._json(scope, receive, send))
            except Exception as error:  # noqa: BLE001 (whatever it is, the client gets an answer)
                await self._failed(error, scope, receive, send)
            group.cancel_scope.cancel()

    async def _json(self, scope: Scope, receive: Receive, send: Send) -> None:
        pieces: list[list[Piece]] = [[] for _ in self._runs]

        async def emit(run: ChoiceRun, piece: Piece) -> None:
            pieces[run.index].append(piece)

        async def ended(run: ChoiceRun) -> None:
            pass

        await run_choices(self._texts, self._metrics, self._runs, emit, ended)
        body = self._form.whole(self._runs, pieces, self._count(), self._info())
        await Response(body, media_type="application/json")(scope, receive, send)

    async def _events(self, send: Send) -> None:
        form = self._form

        async def emit(run: ChoiceRun, piece: Piece) -> None:
            chunk = form.chunk(run, piece)
            if run.begun:
                await self._send(send, b"data: %b\n\n" % chunk)
            else:
                await self._send(send, *_events_of([*self._begin(run), chunk]))

        async def ended(run: ChoiceRun) -> None:
            self._left -= 1
            closing = not self._left
            chunks = [] if run.begun else self._begin(run)
            chunks.append(form.last(run, self._info() if closing and not self._include_usage else None))
            if closing and self._include_usage:
                chunks.append(form.usage(self._count(), self._info()))
            await self._send(send, *_events_of(chunks), *([b"data: [DONE]\n\n"] if closing else []))

        await run_choices(self._texts, self._metrics, self._runs, emit, ended)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _begin(self, run: ChoiceRun) -> list[bytes]:
        run.begun = True
        return self._form.first(run)

    async def _send(self, send: Send, *events: bytes) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": _EVENTS})
        await send({"type": "http.response.body", "body": b"".join(events), "more_body": True})

    async def _failed(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._started:
            await error_response(error, self._form.prompt_field)(scope, receive, send)
            return
        _, body = described(error, self._form.prompt_field)
        event = b"data: %b\n\n" % msgspec.json.encode(ErrorAnswer(body))
        await send({"type": "http.response.body", "body": event, "more_body": False})

    def _count(self) -> TokenCount:
        usage = total_usage(self._runs, self._n)
        return TokenCount(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)

    def _info(self) -> ShoalInfo:
        first = self._runs[0]
        routes = [ChoiceRoute(run.index, run.seed, run.route) for run in self._runs]
        return ShoalInfo(first.prepared.served.id, first.seed, first.route, routes)


def _events_of(chunks: Sequence[bytes]) -> list[bytes]:
    return [b"data: %b\n\n" % chunk for chunk in chunks]


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
