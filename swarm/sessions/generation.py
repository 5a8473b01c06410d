"""Token streams: what the driver offers to everything that speaks text (gateway, Python client, command line).

A `TokenSource` is the driver itself (`swarm/sessions/driver.py`) or a fake in tests; ids in, ids out, no text here.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from shoal.swarm.errors import UsageError
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.manifest import Manifest
from shoal.swarm.peer_id import is_peer_id
from shoal.swarm.sampling import Sampling

from .compute import Choice

FinishReason = Literal["stop", "length", "cancelled"]
Exactness = Literal["exact", "fast", "replay"]
"""How a session goes on when a hop is lost: from a lossless snapshot of its cache, from a lossy one (text may change a
little), or with no snapshot, by computing again. A hop that leaves of its own accord hands its cache over anyway."""
EXACTNESSES: tuple[Exactness, ...] = ("exact", "fast", "replay")


LEAST_SESSION, MOST_SESSION = 8, 128  # characters of a session's name


def checked_session(name: str) -> str:
    """raises: UsageError"""
    if name and not (LEAST_SESSION <= len(name) <= MOST_SESSION and name.isprintable()):
        raise UsageError(
            f"a session's name has {LEAST_SESSION} to {MOST_SESSION} printable characters, and nobody should guess it"
        )
    return name


def checked_prefill(choice: str) -> str:
    """raises: UsageError"""
    if choice not in {"auto", "never"} and not is_peer_id(choice):
        raise UsageError(f"prefill is auto, never, or a PeerID, as `shoal peers` shows it, not {choice[:80]!r}")
    return choice


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """raises on use: ContextTooLong, ModelNotServable, OutOfMemory, Unavailable, Refused"""

    model: ModelId
    ids: tuple[int, ...]  # the prompt, at least one
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()  # end-of-text ids; the stop id itself is not emitted
    local_layers: int = 0  # embed, head and the first k layers stay in this process
    max_hops: int = 8
    exclude: frozenset[PeerId] = frozenset()
    trust: frozenset[PeerId] = frozenset()  # when not empty, only these peers may see activations
    exactness: Exactness = "replay"
    keep_snapshots: bool = False  # in this process, and not at other holders of the layers
    prefill: str = "auto"  # who computes a long prompt for the chain: who pays, nobody ("never"), or this peer
    share_prefix: bool = False  # KV of the prompt may be kept, announced, given to others and taken from them
    session: str = ""  # KV is kept at the hops under this name, for a later request with the same name

    @property
    def prefiller(self) -> PeerId | None:
        """Whom the client named."""
        return PeerId(self.prefill) if self.prefill not in {"auto", "never"} else None

    @property
    def may_prefill_apart(self) -> bool:
        """Prompts whose KV is kept or shared are computed where that is done; and the driver's own layers see them."""
        return self.prefill != "never" and not self.reuses_kv and not self.local_layers

    @property
    def reuses_kv(self) -> bool:
        return self.share_prefix or bool(self.session)


@dataclass(frozen=True, slots=True)
class RouteHop:
    peer: PeerId
    name: str
    layers: str  # "embed+0:4"
    tokens: int  # positions it computed
    compute_ms: float  # mean per step
    queue_ms: float  # mean per step
    stored: int = 0  # positions of the prompt whose KV lay there already
    fetched: int = 0  # positions of the prompt whose KV came from another peer


@dataclass(frozen=True, slots=True)
class Failover:
    peer: PeerId
    layers: str
    reason: str
    pause_s: float
    replaced_by: tuple[PeerId, ...]
    loaded: int = 0  # positions whose cache was taken over and not computed again
    planned: bool = False  # the peer left of its own accord


@dataclass(frozen=True, slots=True)
class RoutePrefill:
    """Who computed the prompt, or a part of it, for the chain."""

    peers: tuple[PeerId, ...]
    names: tuple[str, ...]
    layers: tuple[str, ...]
    positions: int  # whose KV all hops took from them
    asked: int
    trouble: str = ""  # why not all


@dataclass(slots=True)
class Route:
    """Filled while the stream runs; complete at its end."""

    hops: list[RouteHop] = field(default_factory=list)
    failovers: list[Failover] = field(default_factory=list)
    first_token_s: float = 0.0
    total_s: float = 0.0
    prefills: list[RoutePrefill] = field(default_factory=list)


class TokenStream(Protocol):
    route: Route
    finish_reason: FinishReason | None  # None while running

    def __aiter__(self) -> AsyncIterator[Choice]: ...


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that the swarm knows, servable or not."""

    id: ModelId
    name: str
    layers: int
    max_context: int
    dtypes: tuple[str, ...]
    holders: int  # peers that hold any part
    missing: str  # "" when servable, else e.g. "layers 4:8, head"


class TokenSource(Protocol):
    def generate(self, request: TokenRequest) -> AbstractAsyncContextManager[TokenStream]:
        """Leaving the context cancels the session everywhere and frees its KV."""

    async def models(self) -> list[ServedModel]: ...

    async def manifest(self, model: ModelId) -> Manifest:
        """From a peer, verified against the id, kept in memory. raises: ModelNotServable, Unavailable"""

    async def text_files(self, model: ModelId) -> dict[str, bytes]:
        """The manifest's small files by name (tokenizer.json, ...), verified. raises: Unavailable"""
