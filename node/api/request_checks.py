"""Faults of a generation request that need no model to be found, and its translation for the text layer."""

import secrets

from shoal.swarm.errors import UsageError
from shoal.swarm.peer_id import is_peer_id
from shoal.swarm.sampling import MAX_TOP_LOGPROBS
from shoal.swarm.sessions.generation import checked_prefill, checked_session
from shoal.swarm.text.text_request import TextRequest

from .errors import ApiError
from .openai_requests import MAX_CHOICES, MAX_HOPS, ChatRequest, CompletionRequest, Generation

COMPLETION_TOKENS = 16  # OpenAI's default
Prompts = list[str | tuple[int, ...]]


def prompts_of(asked: CompletionRequest) -> Prompts:
    """A string, a list of strings, a list of ids, or a list of lists of ids.

    raises: ApiError for anything else, and for an empty one
    """
    given = asked.prompt
    mixed = ApiError("prompt: give a string, a list of strings, a list of ids or a list of such lists", param="prompt")
    if given is None:
        raise ApiError("prompt: it is missing", param="prompt")
    if isinstance(given, str):
        given = [given]
    if given and all(isinstance(item, int) for item in given):
        return [tuple(item for item in given if isinstance(item, int))]
    prompts: Prompts = []
    for item in given:
        if isinstance(item, int) or type(item) is not type(given[0]):
            raise mixed
        prompts.append(item if isinstance(item, str) else tuple(item))
    if not prompts or not all(prompts):
        raise ApiError("prompt: it must not be empty", param="prompt")
    return prompts


def check_shared(asked: Generation, prompts: int) -> None:
    """raises: ApiError naming the field"""
    if asked.choices < 1 or asked.choices * prompts > MAX_CHOICES:
        raise ApiError(f"n: a request makes 1 to {MAX_CHOICES} choices over all its prompts", param="n")
    if asked.logit_bias:
        raise ApiError("logit_bias: it is not supported", param="logit_bias")
    if asked.stream_options is not None and not asked.stream:
        raise ApiError("stream_options: it goes with stream only", param="stream_options")
    if (asked.local_layers or 0) < 0:
        raise ApiError("local_layers: it must not be negative", param="local_layers")
    if asked.max_hops is not None and not 1 <= asked.max_hops <= MAX_HOPS:
        raise ApiError(f"max_hops: it must lie in [1, {MAX_HOPS}]", param="max_hops")
    for field, peers in (("exclude", asked.exclude), ("trust", asked.trust)):
        for peer in peers or ():
            if not is_peer_id(peer):
                raise ApiError(f"{field}: {peer[:80]!r} is not a PeerID, as `shoal peers` shows it", param=field)
    try:
        checked_session(asked.session or "")
    except UsageError as error:
        raise ApiError(f"session: {error}", param="session") from error
    try:
        checked_prefill(asked.prefill or "auto")
    except UsageError as error:
        raise ApiError(f"prefill: {error}", param="prefill") from error
    if asked.trust == []:
        raise ApiError("trust: an empty list leaves nobody to answer; leave it out to allow every peer", param="trust")


def check_completion(asked: CompletionRequest) -> None:
    """raises: ApiError naming the field"""
    if asked.best_of not in (None, 1, asked.n):
        raise ApiError("best_of: it is not supported; ask for n choices and choose yourself", param="best_of")
    if asked.suffix:
        raise ApiError("suffix: it is not supported", param="suffix")
    if asked.echo and asked.logprobs is not None:
        raise ApiError("logprobs: none are computed for the prompt that echo repeats", param="logprobs")
    _check_alternatives(asked.logprobs, "logprobs")


def check_chat(asked: ChatRequest) -> None:
    """raises: ApiError naming the field"""
    if asked.top_logprobs is not None and not asked.logprobs:
        raise ApiError("top_logprobs: it goes with logprobs only", param="top_logprobs")
    _check_alternatives(asked.top_logprobs, "top_logprobs")
    if asked.tool_choice not in (None, "none", "auto"):
        raise ApiError("tool_choice: only none and auto are supported", param="tool_choice")
    if asked.response_format is not None and asked.response_format.type != "text":
        raise ApiError("response_format: only text is supported", param="response_format")


def _check_alternatives(wanted: int | None, field: str) -> None:
    if wanted is not None and not 0 <= wanted <= MAX_TOP_LOGPROBS:
        raise ApiError(f"{field}: it must lie in [0, {MAX_TOP_LOGPROBS}]", param=field)


def completion_requests(asked: CompletionRequest) -> list[TextRequest]:
    """One per prompt, all with the same seed."""
    seed = _seed(asked)
    limit = asked.max_tokens
    if limit is None and not asked.fill_context:
        limit = COMPLETION_TOKENS
    top = -1 if asked.logprobs is None else asked.logprobs
    return [_request(asked, seed, limit, top, prompt=prompt) for prompt in prompts_of(asked)]


def chat_request(asked: ChatRequest) -> TextRequest:
    """Without a limit the answer may fill the context."""
    limit = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    top = (asked.top_logprobs or 0) if asked.logprobs else -1
    return _request(asked, _seed(asked), limit, top, chat=asked)


def _seed(asked: Generation) -> int:
    return secrets.randbits(63) if asked.seed is None else asked.seed


def _request(
    asked: Generation,
    seed: int,
    max_tokens: int | None,
    top_logprobs: int,
    prompt: str | tuple[int, ...] | None = None,
    chat: ChatRequest | None = None,
) -> TextRequest:
    return TextRequest(
        prompt=prompt,
        messages=None if chat is None else tuple(chat.messages),
        tools=() if chat is None or chat.tool_choice == "none" else tuple(chat.tools or ()),
        template_options=None if chat is None else chat.chat_template_kwargs,
        model=asked.model or None,
        max_tokens=max_tokens,
        sampling=asked.sampling(seed, top_logprobs),
        stop=asked.stops,
        stop_ids=frozenset(asked.stop_token_ids or ()),
        ignore_eos=bool(asked.ignore_eos),
        local_layers=asked.local_layers or 0,
        max_hops=8 if asked.max_hops is None else asked.max_hops,
        exclude=asked.peers_out,
        trust=asked.peers_in,
        prefill=asked.prefill or "auto",
        share_prefix=bool(asked.share_prefix),
        session=asked.session or "",
        exactness=asked.exactness or "replay",
        keep_snapshots=bool(asked.keep_snapshots),
    )
