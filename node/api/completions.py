"""POST /v1/completions."""

import secrets
from collections.abc import Sequence

from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from shoal.swarm.sessions.generation import ServedModel
from shoal.swarm.text.pieces import Piece
from shoal.swarm.text.text_request import TextRequest
from shoal.swarm.text.text_source import Prepared

from .choices import ChoiceRun, finish_of
from .gateway import Gateway
from .openai_answers import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    ShoalInfo,
    TokenCount,
    completion_logprobs,
    encode,
    joined,
)
from .openai_requests import COMPLETION, CompletionRequest
from .request_body import parsed, read_body
from .request_checks import check_completion, check_shared, completion_requests


class CompletionForm:
    prompt_field = "prompt"

    def __init__(self, asked: CompletionRequest, created: int, served: ServedModel) -> None:
        name = asked.model or served.name
        self._head = (f"cmpl-{secrets.token_hex(12)}", "text_completion", created, name, served.id[:16])
        self._logprobs = asked.logprobs
        self._ids = bool(asked.return_token_ids)
        self._usage: UnsetType | None = None if asked.wants_usage else UNSET

    def first(self, run: ChoiceRun) -> list[bytes]:
        return [self._chunk(CompletionChoice(run.index, run.echo))] if run.echo else []

    def chunk(self, run: ChoiceRun, piece: Piece) -> bytes:
        return self._chunk(self._choice(run.index, piece.text, piece))

    def last(self, run: ChoiceRun, shoal: ShoalInfo | None) -> bytes:
        choice = CompletionChoice(run.index, "", None, finish_of(run))
        return self._chunk(choice, shoal)

    def usage(self, usage: TokenCount, shoal: ShoalInfo) -> bytes:
        return encode(Completion(*self._head, [], usage, shoal))

    def whole(
        self, runs: Sequence[ChoiceRun], pieces: Sequence[Sequence[Piece]], usage: TokenCount, shoal: ShoalInfo
    ) -> bytes:
        choices = []
        for run, parts in zip(runs, pieces, strict=True):
            piece = joined(parts)
            choice = self._choice(run.index, run.echo + piece.text, piece)
            choice.finish_reason = finish_of(run)
            choices.append(choice)
        return encode(Completion(*self._head, choices, usage, shoal))

    def _choice(self, index: int, text: str, piece: Piece) -> CompletionChoice:
        wanted = self._logprobs
        logprobs: CompletionLogprobs | None = None
        if wanted is not None:
            logprobs = completion_logprobs(piece.logprobs, wanted, self._ids)
        return CompletionChoice(index, text, logprobs, None, piece.ids if self._ids else UNSET)

    def _chunk(self, choice: CompletionChoice, shoal: ShoalInfo | None = None) -> bytes:
        return encode(Completion(*self._head, [choice], self._usage, UNSET if shoal is None else shoal))


def prompt_text(prepared: Prepared, asked: TextRequest) -> str:
    return asked.prompt if isinstance(asked.prompt, str) else prepared.model.decode(prepared.tokens.ids)


def completion_routes(gateway: Gateway) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/completions")
    async def completions(request: Request) -> Response:
        asked = parsed(await read_body(request), COMPLETION)
        check_completion(asked)
        wanted = completion_requests(asked)
        check_shared(asked, len(wanted))
        prompts = []
        for each in wanted:
            prepared = await gateway.texts.prepare(each)
            echo = prompt_text(prepared, each) if asked.echo else ""
            prompts.append((prepared, echo))
        served = prompts[0][0].served
        form = CompletionForm(asked, int(gateway.unix_s()), served)
        return gateway.answer(asked, form, prompts)

    return routes
