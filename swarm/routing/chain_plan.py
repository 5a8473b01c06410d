"""What a driver asks of whoever chooses peers."""

from dataclasses import dataclass
from typing import Protocol

from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.manifest import Manifest
from shoal.swarm.sessions.generation import ServedModel, TokenRequest
from shoal.swarm.sessions.session_events import Plan
from shoal.swarm.units import Span


@dataclass(frozen=True, slots=True)
class PlannedHop:
    peer: PeerId
    name: str
    span: Span
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """A second chain, over embed and all layers, that computes the prompt and gives its KV to the first.

    Expected, in seconds, 0 where nobody knows: until the first chunk of KV comes, from one to the next, and what the
    first chain would take to compute one itself
    """

    hops: tuple[PlannedHop, ...]
    first_s: float = 0.0
    chunk_s: float = 0.0
    own_chunk_s: float = 0.0
    exact: bool = True  # whether it is sooner so, where the client would allow a loss


@dataclass(frozen=True, slots=True)
class ChainPlan:
    hops: tuple[PlannedHop, ...]
    dtype: str  # of the arithmetic, equal on all hops
    prefill: PrefillPlan | None = None  # of a chain that begins with nothing
    no_prefill: str = ""  # why the peer that the client named does not do it


class ChainPlanner(Protocol):
    async def plan(self, request: TokenRequest, wanted: Plan, dtype: str | None) -> ChainPlan:
        """The cheapest chain for `wanted`, and who computes the prompt for it where that pays.

        dtype: the one that the session has begun with

        raises: ModelNotServable naming the missing layers; Unavailable when the swarm cannot be asked
        """

    def blame(self, peer: PeerId) -> None:
        """The peer failed a session: avoid it for a while."""

    async def models(self) -> list[ServedModel]: ...

    async def manifest(self, model: ModelId) -> Manifest: ...

    async def text_files(self, model: ModelId) -> dict[str, bytes]: ...
