"""The driver's part in using a prefix again: the links of its ids, and what all hops of the chain hold."""

from collections.abc import Sequence

from shoal.compression.kv_levels import CHUNK_TOKENS
from shoal.swarm.sessions.generation import TokenRequest
from shoal.swarm.sessions.messages import Keep, Prefix, Reused, Skippable, Staged
from shoal.swarm.sessions.session_events import HopKey
from shoal.swarm.transfer.chunk_ranges import numbers_in, ranges_of

from .prefix_chain import chain, usable


class DriverPrefix:
    """One session. Links are made anew when the chain is, for the ids have grown by then."""

    def __init__(self, request: TokenRequest) -> None:
        self._request = request
        self._dtype = ""
        self._told = 0  # links that the hops have
        self._staged: dict[HopKey, frozenset[int]] = {}
        self.reused: dict[HopKey, tuple[int, int]] = {}  # positions: stored at the hop, fetched by it

    def wish(self, ids: Sequence[int], dtype: str) -> Prefix:
        """For all hops of a chain that is opened now."""
        self._dtype = dtype
        self._staged.clear()
        links = self._links(ids)[: usable(len(ids))]
        self._told = len(links)
        return Prefix(tuple(links), self._request.share_prefix, self._request.exactness != "fast")

    def _links(self, ids: Sequence[int]) -> tuple[bytes, ...]:
        scope = "" if self._request.share_prefix else f"session {self._request.session}"
        return chain(self._request.model, self._dtype, scope, ids)

    def staged(self, key: HopKey, said: Staged, hops: Sequence[HopKey]) -> tuple[HopKey, Skippable] | None:
        """What the first of the hops is to be told now. raises: MalformedMessage"""
        self._staged[key] = numbers_in(said.chunks)
        if len(hops) < 2 or key == hops[0]:
            return None
        return hops[0], self.skippable(hops, fetched=said.fetched)

    def skippable(self, hops: Sequence[HopKey], *, fetched: bool = False) -> Skippable:
        """What all but the first of them hold."""
        held = [self._staged.get(key, frozenset[int]()) for key in hops[1:]]
        return Skippable(ranges_of(frozenset.intersection(*held)) if held else (), fetched)

    def keep(self, ids: Sequence[int]) -> Keep | None:
        """For all hops, when a chunk has become complete. What was answered to a shared prompt is not kept."""
        if self._request.share_prefix or len(ids) // CHUNK_TOKENS <= self._told:
            return None
        links = self._links(ids)
        told = Keep(self._told, links[self._told :])
        self._told = len(links)
        return told

    def note(self, key: HopKey, said: Reused) -> None:
        stored, fetched = self.reused.get(key, (0, 0))
        self.reused[key] = stored + said.stored, fetched + said.fetched
