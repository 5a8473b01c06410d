"""From a model to an engine that serves: choose the layers, fetch, load.

Runs on a worker thread, beside a node that is already answering; `report` is called from that thread.
"""

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from shoal.swarm.errors import UsageError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.records import NodeRecord
from shoal.swarm.routing.placement import Budget, Placement, choose_span
from shoal.swarm.units import describe, parse

from .hosted_models import HostedModel
from .node_events import LayersChosen, LoadProgress, NodeEvent
from .options import NodeOptions

if TYPE_CHECKING:
    from .model_source import LocalModel

KV_CONTEXTS = 8  # full contexts that the KV cache has room for, memory permitting
KV_MAX_TOKENS = 65536


def warm_imports() -> None:
    """The seconds of importing torch, spent while the network comes up."""
    from . import engine  # noqa: F401
    from .transformers_imports import import_quickly

    import_quickly("transformers.modeling_layers")


def load_hosted(
    options: NodeOptions,
    records: Sequence[NodeRecord],
    me: PeerId,
    report: Callable[[NodeEvent], None],
    model: "LocalModel",
) -> HostedModel:
    """raises: UsageError, OutOfMemory, Unavailable, RemoteFault"""
    manifest = model.manifest

    import torch

    from .engine import Engine
    from .kv_coding import read_profile
    from .memory_budget import available_bytes, kv_bytes_per_token, unit_sizes
    from .shard import Shard, choose_device, choose_dtype

    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, manifest, device)
    kv_tokens = min(KV_CONTEXTS * manifest.max_context, KV_MAX_TOKENS)
    budget = Budget(
        total_bytes=available_bytes(options.max_memory, device),
        unit_bytes=unit_sizes(manifest, dtype),
        kv_bytes=kv_tokens * kv_bytes_per_token(model, dtype),
    )
    if options.layers is None:
        placement = choose_span(records, model.model_id, budget, random.Random(me), me, dtype)
    else:
        try:
            placement = Placement(parse(options.layers, manifest.layers), "as asked for with --layers")
        except ValueError as error:
            raise UsageError(str(error)) from error
    span = placement.span
    report(LayersChosen(manifest.name, describe(span, manifest.layers), placement.reason, device.type, dtype))
    model.fetch(span, lambda what, done, total: report(LoadProgress(what, done, total)))
    shard = Shard.load(model, span, dtype, device, lambda done, total: report(LoadProgress("layers", done, total)))
    texts = {entry.name: model.text_file(entry.name) for entry in manifest.texts}
    return HostedModel(
        model=model.model_id,
        manifest=manifest,
        texts=texts,
        span=span,
        dtype=dtype,
        device=device.type,
        engine=Engine(shard, kv_tokens, kv_profile=read_profile(texts, manifest.layers)),
        local=model,
    )
