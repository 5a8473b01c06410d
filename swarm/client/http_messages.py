"""The gateway's JSON as the client reads and writes it."""

from typing import Any

import msgspec

from shoal.swarm.errors import ShoalError, StreamBroken
from shoal.swarm.sessions.generation import FinishReason, Route, ServedModel
from shoal.swarm.text.pieces import Alternative, Piece, TokenLogprob, Usage
from shoal.swarm.text.text_request import TextRequest

from .error_codes import error_of


class _Error(msgspec.Struct):
    message: str = ""
    code: str | int | None = None


class _ErrorAnswer(msgspec.Struct):
    error: _Error


class _Alternative(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None
    id: int = -1  # a server that is not ours does not say


class _Logprob(_Alternative):
    top_logprobs: list[_Alternative] = []
    offset: int = 0


class _Logprobs(msgspec.Struct):
    content: list[_Logprob] | None = None


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    token_ids: tuple[int, ...] = ()


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Shoal(msgspec.Struct):
    seed: int
    route: Route


class Chunk(msgspec.Struct):
    """One event of a stream."""

    model: str = ""
    choices: list[_Choice] = []
    usage: _Usage | None = None
    shoal: _Shoal | None = None
    error: _Error | None = None

    @property
    def piece(self) -> Piece | None:
        for choice in self.choices:
            text = choice.text if choice.delta is None else choice.delta.content
            tokens = (choice.logprobs and choice.logprobs.content) or []
            if text or choice.token_ids:
                return Piece(text or "", choice.token_ids, tuple(map(_logprob, tokens)))
        return None

    @property
    def finish_reason(self) -> FinishReason | None:
        for choice in self.choices:
            if choice.finish_reason is not None:
                return "length" if choice.finish_reason == "length" else "stop"
        return None

    @property
    def used(self) -> Usage | None:
        return None if self.usage is None else Usage(self.usage.prompt_tokens, self.usage.completion_tokens)


class _Models(msgspec.Struct):
    models: list[ServedModel]


_chunk = msgspec.json.Decoder(Chunk)
_models = msgspec.json.Decoder(_Models)
_error = msgspec.json.Decoder(_ErrorAnswer)


def _alternative(given: _Alternative) -> Alternative:
    data = given.token.encode() if given.bytes is None else bytes(given.bytes)
    return Alternative(given.id, given.token, data, given.logprob)


def _logprob(given: _Logprob) -> TokenLogprob:
    own = _alternative(given)
    top = tuple(map(_alternative, given.top_logprobs))
    return TokenLogprob(own.id, own.token, own.bytes, own.logprob, top, given.offset)


def read_chunk(data: bytes) -> Chunk:
    """raises: StreamBroken for bytes that are no chunk; the error that the chunk tells"""
    try:
        chunk = _chunk.decode(data)
        if chunk.error is not None:
            raise error_of(503, str(chunk.error.code), chunk.error.message)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise StreamBroken("the server sent an event that is not of this API") from error
    return chunk


def read_models(data: bytes) -> list[ServedModel]:
    """raises: StreamBroken"""
    try:
        return _models.decode(data).models
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise StreamBroken("this server's list of models is not shoal's") from error


def read_error(status: int, data: bytes) -> ShoalError:
    try:
        told = _error.decode(data).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return error_of(status, None, f"the server answered with status {status}")
    return error_of(status, None if told.code is None else str(told.code), told.message)


def write_request(request: TextRequest) -> tuple[str, bytes]:
    """Path and body; always streamed, so that one way is enough.

    raises: TypeError for messages or tools that are not JSON
    """
    sampling = request.sampling
    alternatives = None if sampling.top_logprobs < 0 else sampling.top_logprobs
    body: dict[str, Any] = {
        "model": request.model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "max_tokens": request.max_tokens,
        "fill_context": request.max_tokens is None,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": sampling.seed,
        "stop": list(request.stop),
        "stop_token_ids": sorted(request.stop_ids),
        "ignore_eos": request.ignore_eos,
        "local_layers": request.local_layers,
        "max_hops": request.max_hops,
        "exclude": sorted(request.exclude),
        "trust": sorted(request.trust) or None,
        "prefill": request.prefill,
        "share_prefix": request.share_prefix,
        "session": request.session or None,
        "exactness": request.exactness,
        "keep_snapshots": request.keep_snapshots,
    }
    if request.messages is None:
        return "/v1/completions", msgspec.json.encode({**body, "prompt": request.prompt, "logprobs": alternatives})
    body |= {
        "messages": request.messages,
        "tools": request.tools or None,
        "chat_template_kwargs": request.template_options,
        "logprobs": alternatives is not None,
        "top_logprobs": alternatives,
    }
    return "/v1/chat/completions", msgspec.json.encode(body)
