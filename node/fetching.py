"""Weights brought here without being served (`shoal models fetch`), and what `shoal models held` asks a node."""

from functools import partial
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import msgspec
import structlog

from shoal.swarm.errors import UsageError
from shoal.swarm.identifiers import ModelId
from shoal.swarm.units import parse

from .node_events import LoadProgress, NodeEvent, WeightsFetched
from .peer_folder import PeerFolder

if TYPE_CHECKING:
    from .node import Node

log = structlog.get_logger(__name__)


class Fetching:
    """`api.weights.WeightsHost` over a running node."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._running: dict[str, LoadProgress] = {}  # by what the user named

    def state(self) -> dict[str, Any]:
        node = self._node
        hosted = {each.model for each in node.hosted}
        published = {each.model for each in node.publications.published()}
        models = [
            {
                "model": held.model,
                "name": held.manifest.name,
                "origin": held.local.origin,
                "held_bytes": held.held_bytes,
                "total_bytes": held.total_bytes,
                "folder": str(held.local.folder),
                "serving": held.model in hosted,
                "published": held.model in published,
            }
            for held in node.shelf.held()
        ]
        running = [{"what": each.what, "done": each.done, "total": each.total} for each in self._running.values()]
        return {
            "models": models,
            "given_bytes": node.shelf.given_bytes,
            "upload_byte_s": node.options.upload_byte_s or 0.0,
            "fetching": running,
        }

    async def fetch(self, model: str, layers: str) -> dict[str, Any]:
        node = self._node
        fetched: list[WeightsFetched] = []

        def tell(event: NodeEvent) -> None:
            log.info("weights", **msgspec.to_builtins(event))
            if isinstance(event, WeightsFetched):
                fetched.append(event)

        def advance(what: str, done: int, total: int) -> None:
            self._running[model] = LoadProgress(what, done, total)

        local = await node.finder(tell).find(model, node.known())
        try:
            span = parse(layers, local.manifest.layers)
        except ValueError as error:
            raise UsageError(f"layers: {error}") from error
        try:
            await anyio.to_thread.run_sync(partial(local.fetch, span, advance), abandon_on_cancel=True)
        finally:
            self._running.pop(model, None)
        held = await node.shelf.put(local, "kept")
        return {
            "model": local.model_id,
            "name": local.manifest.name,
            "folder": str(local.folder),
            "held_bytes": held.held_bytes,
            "total_bytes": held.total_bytes,
            "fetched_bytes": sum(event.fetched_bytes for event in fetched),
            "givers": {peer: count for event in fetched for peer, count in event.givers.items()},
        }

    async def remove(self, model: ModelId) -> bool:
        node = self._node
        if any(each.model == model for each in node.hosted):
            raise UsageError(f"{model[:12]} is served now; stop the node first")
        folder = PeerFolder.of(node.options.home.cache, model)
        if folder.manifest() is None:
            return False
        node.shelf.drop(model, "kept")
        await anyio.to_thread.run_sync(folder.remove)
        return True
