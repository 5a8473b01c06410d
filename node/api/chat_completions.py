"""POST /v1/chat/completions."""

import secrets
from collections.abc import Sequence

from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from shoal.swarm.sessions.generation import ServedModel
from shoal.swarm.text.pieces import Piece

from .choices import ChoiceRun, finish_of
from .gateway import Gateway
from .openai_answers import (
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    Delta,
    DeltaChoice,
    Message,
    ShoalInfo,
    TokenCount,
    chat_logprobs,
    encode,
    joined,
)
from .openai_requests import CHAT, ChatRequest
from .request_body import parsed, read_body
from .request_checks import chat_request, check_chat, check_shared


class ChatForm:
    prompt_field = "messages"

    def __init__(self, asked: ChatRequest, created: int, served: ServedModel) -> None:
        kind = "chat.completion.chunk" if asked.stream else "chat.completion"
        name = asked.model or served.name
        self._head = (f"chatcmpl-{secrets.token_hex(12)}", kind, created, name, served.id[:16])
        self._logprobs = bool(asked.logprobs)
        self._ids = bool(asked.return_token_ids)
        self._usage: UnsetType | None = None if asked.wants_usage else UNSET

    def first(self, run: ChoiceRun) -> list[bytes]:
        return [self._chunk(DeltaChoice(run.index, Delta("assistant", "")))]

    def chunk(self, run: ChoiceRun, piece: Piece) -> bytes:
        ids = piece.ids if self._ids else UNSET
        return self._chunk(DeltaChoice(run.index, Delta(content=piece.text), self._logprobs_of(piece), None, ids))

    def last(self, run: ChoiceRun, shoal: ShoalInfo | None) -> bytes:
        return self._chunk(DeltaChoice(run.index, Delta(), None, finish_of(run)), shoal)

    def usage(self, usage: TokenCount, shoal: ShoalInfo) -> bytes:
        none: list[DeltaChoice] = []
        return encode(ChatCompletion(*self._head, none, usage, shoal))

    def whole(
        self, runs: Sequence[ChoiceRun], pieces: Sequence[Sequence[Piece]], usage: TokenCount, shoal: ShoalInfo
    ) -> bytes:
        choices = []
        for run, parts in zip(runs, pieces, strict=True):
            piece = joined(parts)
            message = Message("assistant", piece.text)
            ids = piece.ids if self._ids else UNSET
            choices.append(ChatChoice(run.index, message, self._logprobs_of(piece), finish_of(run), ids))
        return encode(ChatCompletion(*self._head, choices, usage, shoal))

    def _logprobs_of(self, piece: Piece) -> ChatLogprobs | None:
        return ChatLogprobs(chat_logprobs(piece.logprobs, self._ids)) if self._logprobs else None

    def _chunk(self, choice: DeltaChoice, shoal: ShoalInfo | None = None) -> bytes:
        return encode(ChatCompletion(*self._head, [choice], self._usage, UNSET if shoal is None else shoal))


def chat_routes(gateway: Gateway) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        asked = parsed(await read_body(request), CHAT)
        check_chat(asked)
        check_shared(asked, 1)
        prepared = await gateway.texts.prepare(chat_request(asked))
        form = ChatForm(asked, int(gateway.unix_s()), prepared.served)
        return gateway.answer(asked, form, [(prepared, "")])

    return routes
