"""What OpenAI's clients send, with vLLM's and shoal's own additions; null means the default everywhere."""

from typing import Any

import msgspec

from shoal.swarm.identifiers import PeerId
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.generation import Exactness

MAX_CHOICES = 128
MAX_HOPS = 64
_SEEDS = 1 << 63


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Generation(msgspec.Struct, kw_only=True):
    """The fields that both endpoints share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    # as vLLM
    top_k: int | None = None  # -1 and 0: off
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None
    # shoal's own
    fill_context: bool | None = None  # without a limit of its own, the answer may fill the context
    local_layers: int | None = None
    max_hops: int | None = None
    exclude: list[str] | None = None  # peers that must not take part
    trust: list[str] | None = None  # the only peers that may
    prefill: str | None = None  # these three as in `swarm.generation.TokenRequest`
    share_prefix: bool | None = None
    session: str | None = None
    exactness: Exactness | None = None  # how a lost hop's cache comes back
    keep_snapshots: bool | None = None  # at this node instead of at standbys

    @property
    def choices(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def stops(self) -> tuple[str, ...]:
        match self.stop:
            case None:
                return ()
            case str() as one:
                return (one,)
            case several:
                return tuple(several)

    @property
    def peers_out(self) -> frozenset[PeerId]:
        return frozenset(map(PeerId, self.exclude or ()))

    @property
    def peers_in(self) -> frozenset[PeerId]:
        return frozenset(map(PeerId, self.trust or ()))

    def sampling(self, seed: int, top_logprobs: int) -> Sampling:
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=0 if self.top_k in (None, -1) else self.top_k,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            seed=seed % _SEEDS,
            top_logprobs=top_logprobs,
        )


class CompletionRequest(Generation, kw_only=True):
    prompt: str | list[str | int | list[int]] | None = None
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None


class ResponseFormat(msgspec.Struct):
    type: str


class ChatRequest(Generation, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = None


COMPLETION = msgspec.json.Decoder(CompletionRequest)
CHAT = msgspec.json.Decoder(ChatRequest)
