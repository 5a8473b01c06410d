"""Text in, text out, over any token source: where the HTTP gateway and the Python client meet.

`prepare` finds every fault of the request before a session is opened; `generate` opens the session.
"""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial

import anyio
import anyio.to_thread

from shoal.swarm.errors import ContextTooLong, UsageError
from shoal.swarm.identifiers import ModelId
from shoal.swarm.sampling import checked
from shoal.swarm.sessions.generation import ServedModel, TokenRequest, TokenSource

from .model_choice import choose_model
from .text_request import MAX_STOP_CHARACTERS, MAX_STOPS, TextRequest
from .text_stream import TextStream, open_text_stream
from .tokenizer import TextModel

_LONG_TEXT = 4096  # characters; longer ones are tokenized beside the event loop
_KEPT_MODELS = 16


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request without faults, in ids."""

    served: ServedModel
    model: TextModel
    tokens: TokenRequest
    stops: tuple[str, ...]


class TextSource:
    """Tokenizers are read once per model and kept."""

    def __init__(self, tokens: TokenSource) -> None:
        self.tokens = tokens
        self._models: dict[ModelId, TextModel] = {}
        self._reading: dict[ModelId, anyio.Lock] = {}

    async def models(self) -> list[ServedModel]:
        return await self.tokens.models()

    async def text_model(self, model: ModelId) -> TextModel:
        """raises: UsageError (not a tokenizer, or another model's), ModelNotServable, Unavailable"""
        if model not in self._models:
            async with self._reading.setdefault(model, anyio.Lock()):
                if model not in self._models:
                    manifest = await self.tokens.manifest(model)
                    files = await self.tokens.text_files(model)
                    read = partial(TextModel.from_files, files, manifest)
                    found = await anyio.to_thread.run_sync(read)
                    while len(self._models) >= _KEPT_MODELS:
                        del self._models[next(iter(self._models))]
                    self._models[model] = found
            self._reading.pop(model, None)
        return self._models[model]

    async def prepare(self, request: TextRequest) -> Prepared:
        """raises: UnknownModel, ModelNotServable, ContextTooLong, UsageError, Unavailable"""
        served = choose_model(await self.models(), request.model)
        model = await self.text_model(served.id)
        ids = await self._ids(model, request)
        if len(request.stop) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP_CHARACTERS for stop in request.stop):
            raise UsageError(f"stop takes up to {MAX_STOPS} strings of 1 to {MAX_STOP_CHARACTERS} characters")
        try:
            sampling = checked(request.sampling)
        except ValueError as error:
            raise UsageError(str(error)) from error
        tokens = TokenRequest(
            model=served.id,
            ids=ids,
            max_new_tokens=room(len(ids), request.max_tokens, min(served.max_context, model.max_context)),
            sampling=sampling,
            stop_ids=request.stop_ids | (frozenset() if request.ignore_eos else model.eos_ids),
            local_layers=request.local_layers,
            max_hops=request.max_hops,
            exclude=request.exclude,
            trust=request.trust,
            prefill=request.prefill,
            share_prefix=request.share_prefix,
            session=request.session,
            exactness=request.exactness,
            keep_snapshots=request.keep_snapshots,
        )
        return Prepared(served, model, tokens, request.stop)

    def generate(self, prepared: Prepared) -> AbstractAsyncContextManager[TextStream]:
        return open_text_stream(self.tokens, prepared.model, prepared.tokens, prepared.stops)

    async def _ids(self, model: TextModel, request: TextRequest) -> tuple[int, ...]:
        match request:
            case TextRequest(prompt=None, messages=messages) if messages is not None:
                encode = partial(model.apply_chat_template, messages, request.tools, options=request.template_options)
                ids = await anyio.to_thread.run_sync(encode)  # a template is a stranger's program
            case TextRequest(prompt=str() as text, messages=None):
                if not text:
                    raise UsageError("the prompt must not be empty")
                if len(text) <= _LONG_TEXT:
                    ids = model.encode(text)
                else:
                    ids = await anyio.to_thread.run_sync(model.encode, text)
            case TextRequest(prompt=tuple() as given, messages=None):
                ids = model.checked(given)
            case _:
                raise UsageError("give either a prompt or messages")
        if not ids:
            raise UsageError("the prompt must not be empty")
        return model.checked(ids)


def room(prompt_tokens: int, wanted: int | None, max_context: int) -> int:
    """New tokens for a prompt: as many as wanted, or all that fit.

    raises: ContextTooLong when they do not fit; UsageError for less than one
    """
    if wanted is not None and wanted < 1:
        raise UsageError(f"max_tokens must be at least 1, got {wanted}")
    if prompt_tokens >= max_context:
        raise ContextTooLong(f"the prompt has {prompt_tokens} tokens, the model's context {max_context}")
    left = max_context - prompt_tokens
    if wanted is not None and wanted > left:
        raise ContextTooLong(
            f"the prompt's {prompt_tokens} tokens and {wanted} new ones exceed the context of {max_context}"
        )
    return left if wanted is None else wanted
