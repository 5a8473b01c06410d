"""From a model to an engine that serves a part of it: choose the layers, fetch, load.

Runs on a worker thread, beside a node that is already answering; `report` is called from that thread.
"""

import gc
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shoal.swarm.errors import Unavailable, UsageError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.records import NodeRecord
from shoal.swarm.routing.placement import Budget, Placement, choose_span
from shoal.swarm.units import Span, describe, parse

from .hosted_models import HostedModel
from .node_events import LayersChosen, LoadProgress, NodeEvent
from .options import NodeOptions

if TYPE_CHECKING:
    import torch

    from .model_source import LocalModel

KV_CONTEXTS = 8  # full contexts that the KV cache has room for, memory permitting
KV_MAX_TOKENS = 65536
Report = Callable[[NodeEvent], None]


def warm_imports() -> None:
    """The seconds of importing torch, spent while the network comes up."""
    from . import engine  # noqa: F401
    from .transformers_imports import import_quickly

    import_quickly("transformers.modeling_layers")


@dataclass(slots=True)
class Loader:
    """What is the same whichever layers of a model this node holds. has_limit: the user has set the budget"""

    model: "LocalModel"
    device: "torch.device"
    dtype: str
    kv_tokens: int
    budget: Budget
    has_limit: bool
    stopped: bool = False  # nobody wants what is still being loaded

    @classmethod
    def of(cls, options: NodeOptions, model: "LocalModel") -> "Loader":
        """raises: UsageError"""
        import torch

        from .memory_budget import available_bytes, kv_bytes_per_token, unit_sizes
        from .shard import choose_device, choose_dtype

        if options.threads:
            torch.set_num_threads(options.threads)
        device = choose_device(options.device)
        dtype = choose_dtype(options.dtype, model.manifest, device)
        kv_tokens = min(KV_CONTEXTS * model.manifest.max_context, KV_MAX_TOKENS)
        budget = Budget(
            total_bytes=available_bytes(options.max_memory, device),
            unit_bytes=unit_sizes(model.manifest, dtype),
            kv_bytes=kv_tokens * kv_bytes_per_token(model, dtype),
        )
        return cls(model, device, dtype, kv_tokens, budget, options.max_memory is not None)

    def place(self, layers: str | None, records: Sequence[NodeRecord], me: PeerId) -> Placement:
        """layers: as the user named them; None: what the swarm lacks most. raises: UsageError, OutOfMemory"""
        if layers is None:
            return choose_span(records, self.model.model_id, self.budget, random.Random(me), me, self.dtype)
        return Placement(named_span(layers, self.model), "as asked for with --layers")

    def chosen(self, placement: Placement) -> LayersChosen:
        manifest = self.model.manifest
        layers = describe(placement.span, manifest.layers)
        return LayersChosen(manifest.name, layers, placement.reason, self.device.type, self.dtype)

    def budget_now(self, held: Span) -> Budget:
        """Of a node that would let go what it holds: other programs may have taken memory since the start."""
        from .memory_budget import free_bytes

        free = free_bytes(self.device) + self.budget.cost(held)
        return replace(self.budget, total_bytes=min(self.budget.total_bytes, free))

    def fits_beside(self, held: Span, span: Span) -> bool:
        """Whether a second span may be loaded while the first is served, for as long as its sessions need."""
        from .memory_budget import DEFAULT_SHARE, free_bytes

        free = free_bytes(self.device)
        room = self.budget.total_bytes - self.budget.cost(held) if self.has_limit else int(free * DEFAULT_SHARE)
        return self.budget.cost(span) <= min(room, free)

    def fetch(self, span: Span, report: Report) -> None:
        """Bring the weights of a span to this machine. raises: UsageError, OutOfMemory, Unavailable, RemoteFault"""
        self.model.fetch(span, lambda what, done, total: report(LoadProgress(what, done, total)))

    def load(self, span: Span, report: Report) -> HostedModel:
        """What has been fetched. raises: UsageError, OutOfMemory; Unavailable when it is `stopped` meanwhile"""
        from .engine import Engine
        from .kv_coding import read_profile
        from .shard import Shard

        model, manifest = self.model, self.model.manifest
        done = Shard.load(
            model, span, self.dtype, self.device, lambda done, total: report(LoadProgress("layers", done, total))
        )
        texts = {entry.name: model.text_file(entry.name) for entry in manifest.texts}
        engine = Engine(done, self.kv_tokens, kv_profile=read_profile(texts, manifest.layers))
        if self.stopped:
            engine.stop()
            raise Unavailable("the node stops")
        return HostedModel(
            model=model.model_id,
            manifest=manifest,
            texts=texts,
            span=span,
            dtype=self.dtype,
            device=self.device.type,
            engine=engine,
            local=model,
        )


def named_span(layers: str, model: "LocalModel") -> Span:
    """raises: UsageError"""
    try:
        return parse(layers, model.manifest.layers)
    except ValueError as error:
        raise UsageError(str(error)) from error


def free_weights() -> None:
    """After an engine has stopped and nobody refers to it: it and its thread refer to each other."""
    from .free_memory import return_freed_memory

    gc.collect()
    return_freed_memory()
