"""From what the user named to a model: on this machine, in the swarm, or on a hub.

What lies on this machine comes first. In a private swarm a name then means the model that its members call so, and no
hub is told the name; in a public one anybody may call anything by any name, so the hub comes before the members. An id
means one model everywhere.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio.to_thread

from shoal.swarm.errors import Unavailable, UsageError
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.records import NodeRecord

from .model_source import EMBEDDED, LocalModel, resolve
from .options import BY_NEED
from .peer_folder import PeerFolder
from .peer_model import kept_model, peer_model
from .peer_weights import Peers, Tell
from .swarm_models import chosen, find_given, looks_like_id, most_needed


@dataclass(frozen=True, slots=True)
class Finder:
    """peers: the other members that are there now"""

    calls: MemberCalls
    peers: Peers
    me: PeerId
    cache: Path
    public: bool
    tell: Tell | None = None

    async def find(self, wanted: str, records: Sequence[NodeRecord]) -> LocalModel:
        """wanted: BY_NEED, an embedded name, a folder, a hub id, a name in the swarm, or a model's id

        raises: UsageError (nobody has it), Unavailable, RemoteFault, OutOfMemory
        """
        if wanted == BY_NEED:
            return await self._needed(records)
        if is_local(wanted):
            return await self._resolved(wanted)
        if looks_like_id(wanted):
            found = await self._named(wanted, records)
            if found is None:
                raise UsageError(
                    f"no member of the swarm has a model {wanted}; `shoal models` and `shoal models held` list what "
                    "there is, `shoal models publish FOLDER` gives one"
                )
            return found
        if self.public:
            return await self._from_hub(wanted, records)
        return await self._named(wanted, records) or await self._from_hub(wanted, records, asked=True)

    async def by_id(self, model: ModelId) -> LocalModel:
        embedded = await self._resolved(EMBEDDED)
        if embedded.model_id == model:
            return embedded
        return await peer_model(self.calls, self.peers, model, self.cache, self.tell)

    async def _needed(self, records: Sequence[NodeRecord]) -> LocalModel:
        model = most_needed(records, self.me)
        if model is not None:
            return await self.by_id(model)
        for folder in PeerFolder.every(self.cache):  # nobody serves now: what this machine fetched last
            kept = kept_model(folder, self.calls, self.peers, self.tell)
            if kept is not None:
                return kept
        return await self._resolved(EMBEDDED)

    async def _named(self, wanted: str, records: Sequence[NodeRecord]) -> LocalModel | None:
        model = chosen(wanted, await find_given(self.calls, self.peers()), records)
        if model is not None:
            return await self.by_id(model)
        for folder in PeerFolder.every(self.cache):
            kept = kept_model(folder, self.calls, self.peers, self.tell)
            if kept is not None and (kept.manifest.name == wanted or kept.model_id.startswith(wanted)):
                return kept
        return None

    async def _from_hub(self, wanted: str, records: Sequence[NodeRecord], *, asked: bool = False) -> LocalModel:
        """raises: what the hub's failure was, when the members do not have it either"""
        try:
            return await self._resolved(wanted)
        except (UsageError, Unavailable) as error:
            found = None if asked else await self._named(wanted, records)
            if found is None and not self.peers():
                raise
            if found is None:
                raise type(error)(f"no member of the swarm has a model {wanted}, and {error}") from error
            return found

    async def _resolved(self, wanted: str) -> LocalModel:
        return await anyio.to_thread.run_sync(partial(resolve, wanted, self.cache), abandon_on_cancel=True)


def is_local(wanted: str) -> bool:
    """What cannot be a name in the swarm, or lies on this machine: `resolve` finds it, or says what is wrong."""
    return wanted == EMBEDDED or not wanted.strip() or wanted.startswith((".", "/", "~")) or os.path.exists(wanted)  # noqa: PTH110
