"""What the owner of a node may ask of its KV tiers: `api.kv.KvHost`."""

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

from shoal.compression.kv_levels import KvLevel
from shoal.swarm.errors import Refused, UsageError
from shoal.swarm.prefixes.prefix_chain import chain, usable
from shoal.swarm.text.text_request import TextRequest
from shoal.swarm.text.text_source import TextSource

if TYPE_CHECKING:
    from .node import Node


class NodeKv:
    def __init__(self, node: "Node") -> None:
        self._node = node
        self._prefixes = node.prefixes

    async def stat(self) -> dict[str, Any]:
        store = self._prefixes.store
        prefixes = Counter((label.root, label.model) for label in store.labels().values())
        shared = {label.root for label in store.labels().values() if label.shared}
        return {
            "memory": dataclasses.asdict(store.memory),
            "disk": dataclasses.asdict(store.disk),
            "prefixes": [
                {"prefix": root.hex()[:16], "model": model, "chunks": chunks, "shared": root in shared}
                for (root, model), chunks in sorted(prefixes.items())
            ],
            "counts": dataclasses.asdict(self._prefixes.counts),
        }

    async def fetch(self, prompt: str | tuple[int, ...], level: KvLevel) -> dict[str, Any]:
        hosted = next(iter(self._node.hosted), None)
        if hosted is None:
            raise Refused("this node hosts no layers, so it has no use for their KV")
        source = TextSource(self._node.driver)
        text = prompt if isinstance(prompt, str) else tuple(prompt)
        prepared = await source.prepare(TextRequest(prompt=text, model=hosted.model, max_tokens=1))
        ids = prepared.tokens.ids
        links = chain(hosted.model, hosted.dtype, "", ids)[: usable(len(ids))]
        if not links:
            raise UsageError(f"the prompt has {len(ids)} tokens; a prefix of fewer than 65 is not worth a fetch")
        held, came = await self._prefixes.fetch_ahead(hosted.engine.kv_format(hosted.span), links, level)
        return {"chunks": len(links), "held": held, "fetched": came}

    async def drop(self, which: Literal["all", "private", "taken"]) -> int:
        me = self._node.transport.me
        return await self._prefixes.store.drop(
            lambda _, label: (
                which == "all" or (which == "private" and not label.shared) or (which == "taken" and label.maker != me)
            )
        )
