"""The keyword arguments of `generate` and `stream`, and the request that they make."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from shoal.swarm.errors import UsageError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.peer_id import is_peer_id
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.generation import EXACTNESSES, Exactness, checked_prefill, checked_session
from shoal.swarm.text.text_request import TextRequest

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""A text to continue, token ids, or the messages of a chat."""

DEFAULT_TOKENS = 256


class GenerationOptions(TypedDict, total=False):
    model: str | None  # name or id; None: the client's, or the only servable one
    max_tokens: int | None  # 256; None: until the model stops or its context is full
    temperature: float  # 0: the most likely token each time
    top_k: int  # 0: off
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None  # None: drawn; the result tells it
    stop: str | Sequence[str]
    stop_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int | None  # alternatives per token; 0: the chosen token's only; None: none
    tools: Sequence[Mapping[str, Any]]
    template_options: Mapping[str, Any] | None
    local_layers: int  # embedding, head and the first k layers stay in this process
    max_hops: int
    exclude: Sequence[str]  # peers that must not take part
    trust: Sequence[str] | None  # the only peers that may; None: every one
    prefill: str  # who computes a long prompt for the chain: auto (where it pays), never, or a PeerID
    share_prefix: bool  # KV of the prompt may be kept by peers, announced, and taken from others
    session: str  # KV is kept at the peers under this name; ask with it again to go on
    exactness: Exactness  # how a lost hop's cache comes back: exact, fast, or replay (computed again)
    keep_snapshots: bool  # in this process instead of at standbys


def text_request(
    prompt: Prompt,
    *,
    model: str | None = None,
    max_tokens: int | None = DEFAULT_TOKENS,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    stop_ids: Sequence[int] = (),
    ignore_eos: bool = False,
    logprobs: int | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    template_options: Mapping[str, Any] | None = None,
    local_layers: int = 0,
    max_hops: int = 8,
    exclude: Sequence[str] = (),
    trust: Sequence[str] | None = None,
    prefill: str = "auto",
    share_prefix: bool = False,
    session: str = "",
    exactness: Exactness = "replay",
    keep_snapshots: bool = False,
) -> TextRequest:
    """raises: UsageError for a prompt or peers that are none; TypeError for an option that does not exist"""
    if trust is not None and not trust:
        raise UsageError("an empty trust leaves nobody to answer; leave it out to allow every peer")
    if exactness not in EXACTNESSES:
        raise UsageError(f"exactness is one of {', '.join(EXACTNESSES)}, not {exactness!r}")
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=_drawn(temperature) if seed is None else seed,
        top_logprobs=-1 if logprobs is None else logprobs,
    )
    text, messages = _sorted_out(prompt)
    return TextRequest(
        prompt=text,
        messages=messages,
        tools=tuple(tools),
        template_options=template_options,
        model=model,
        max_tokens=max_tokens,
        sampling=sampling,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_ids=frozenset(stop_ids),
        ignore_eos=ignore_eos,
        local_layers=local_layers,
        max_hops=max_hops,
        exclude=_peers("exclude", exclude),
        trust=_peers("trust", trust or ()),
        prefill=checked_prefill(prefill),
        share_prefix=share_prefix,
        session=checked_session(session),
        exactness=exactness,
        keep_snapshots=keep_snapshots,
    )


def _peers(option: str, given: Sequence[str]) -> frozenset[PeerId]:
    if isinstance(given, str):
        raise UsageError("exclude and trust are lists of peer ids")
    for peer in given:
        if not is_peer_id(peer):
            raise UsageError(f"{option} takes PeerIDs, as `shoal peers` shows them, not {peer!r}")
    return frozenset(map(PeerId, given))


def _drawn(temperature: float) -> int:
    """A greedy text depends on no seed; 53 bits survive every JSON reader."""
    return secrets.randbits(53) if temperature else 0


def _sorted_out(prompt: Prompt) -> tuple[str | tuple[int, ...] | None, tuple[Mapping[str, Any], ...] | None]:
    """(text or ids, None) or (None, messages)."""
    if isinstance(prompt, str):
        return prompt, None
    ids = tuple(item for item in prompt if isinstance(item, int))
    messages = tuple(item for item in prompt if isinstance(item, Mapping))
    if not len(prompt) == len(ids) + len(messages) or (ids and messages):
        raise UsageError("a prompt is a text, a list of token ids, or a list of messages")
    return (None, messages) if messages else (ids, None)
