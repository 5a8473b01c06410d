"""What OpenAI's clients expect back; encoded by msgspec, a few microseconds a chunk."""

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from shoal.swarm.sessions.generation import Route
from shoal.swarm.text.pieces import Piece, TokenLogprob

Finish = Literal["stop", "length"]
encode = msgspec.json.Encoder().encode


class TokenCount(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChoiceRoute(msgspec.Struct):
    index: int
    seed: int
    route: Route


class ShoalInfo(msgspec.Struct):
    """shoal's own part of an answer; `route` and `seed` are the first choice's."""

    model_id: str
    seed: int
    route: Route
    choices: list[ChoiceRoute]


class Logprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    id: int | UnsetType = UNSET  # with return_token_ids


class ChosenLogprob(Logprob):
    top_logprobs: list[Logprob] = []
    offset: int | UnsetType = UNSET  # characters of generated text before it; with return_token_ids


class ChatLogprobs(msgspec.Struct):
    content: list[ChosenLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]
    content: list[ChosenLogprob] | UnsetType = UNSET  # with return_token_ids: the same in the chat form


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Finish | None = None
    token_ids: tuple[int, ...] | UnsetType = UNSET


class Completion(msgspec.Struct):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: TokenCount | UnsetType | None = UNSET
    shoal: ShoalInfo | UnsetType = UNSET


class Message(msgspec.Struct):
    role: str
    content: str
    refusal: None = None


class Delta(msgspec.Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    index: int
    message: Message
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None
    token_ids: tuple[int, ...] | UnsetType = UNSET


class DeltaChoice(msgspec.Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None
    token_ids: tuple[int, ...] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice] | list[DeltaChoice]
    usage: TokenCount | UnsetType | None = UNSET
    shoal: ShoalInfo | UnsetType = UNSET


def chat_logprobs(tokens: tuple[TokenLogprob, ...], ids: bool) -> list[ChosenLogprob]:
    """ids: add what OpenAI leaves out, the tokens' ids and places"""
    return [
        ChosenLogprob(
            token.token,
            token.logprob,
            list(token.bytes),
            token.id if ids else UNSET,
            [Logprob(other.token, other.logprob, list(other.bytes), other.id if ids else UNSET) for other in token.top],
            token.offset if ids else UNSET,
        )
        for token in tokens
    ]


def completion_logprobs(tokens: tuple[TokenLogprob, ...], wanted: int, ids: bool) -> CompletionLogprobs:
    """wanted: alternatives asked for; with any, the chosen token is among them as OpenAI's are."""
    tops = [
        {printable(token.bytes): token.logprob} | {printable(other.bytes): other.logprob for other in token.top}
        for token in tokens
    ]
    return CompletionLogprobs(
        [printable(token.bytes) for token in tokens],
        [token.logprob for token in tokens],
        tops if wanted else None,
        [token.offset for token in tokens],
        chat_logprobs(tokens, ids) if ids else UNSET,
    )


def printable(data: bytes) -> str:
    """A token as text; a part of a character in OpenAI's old notation, `bytes:\\xf0\\x9f`."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def joined(pieces: Sequence[Piece]) -> Piece:
    return Piece(
        "".join(piece.text for piece in pieces),
        tuple(token for piece in pieces for token in piece.ids),
        tuple(token for piece in pieces for token in piece.logprobs),
    )
