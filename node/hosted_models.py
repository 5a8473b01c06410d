"""What this node serves now: engines by model, their records, and the small files that clients ask for."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.swarm import manifest as manifests
from shoal.swarm.errors import Refused
from shoal.swarm.identifiers import ModelId
from shoal.swarm.manifest import Manifest
from shoal.swarm.records import Hosted
from shoal.swarm.sessions.compute import ChunkCoder, Compute
from shoal.swarm.transfer.blobs import MANIFEST
from shoal.swarm.units import Span, describe

if TYPE_CHECKING:
    from .engine import Engine  # torch
    from .model_source import LocalModel


@dataclass(frozen=True, slots=True)
class HostedModel:
    model: ModelId
    manifest: Manifest
    texts: dict[str, bytes]
    span: Span
    dtype: str
    device: str  # cpu, cuda
    engine: "Engine"
    local: "LocalModel | None" = None  # where it was loaded from

    @property
    def layers_text(self) -> str:
        return describe(self.span, self.manifest.layers)


class HostedModels:
    """`hop_server.Hosting`, and the source of the node's record."""

    def __init__(self) -> None:
        self._models: dict[ModelId, HostedModel] = {}

    def add(self, hosted: HostedModel) -> None:
        self._models[hosted.model] = hosted

    def remove(self, model: ModelId) -> HostedModel | None:
        return self._models.pop(model, None)

    def __iter__(self) -> Iterator[HostedModel]:
        return iter(tuple(self._models.values()))

    def manifest(self, model: ModelId) -> Manifest | None:
        hosted = self._models.get(model)
        return hosted.manifest if hosted else None

    def coder(self, model: ModelId) -> ChunkCoder | None:
        """What recodes and compares chunks of a model's caches."""
        hosted = self._models.get(model)
        return hosted.engine if hosted else None

    def find(self, model: ModelId, dtype: str, span: Span) -> Compute:
        hosted = self._models.get(model)
        if hosted is None:
            raise Refused(f"model {model[:12]} is not served here")
        if hosted.dtype != dtype:
            raise Refused(f"served here in {hosted.dtype}, not in {dtype}")
        if not hosted.span.covers(span):
            wanted = describe(span, hosted.manifest.layers)
            raise Refused(f"{wanted} is not served here, only {hosted.layers_text}")
        return hosted.engine

    def blobs(self, model: ModelId) -> dict[str, bytes] | None:
        hosted = self._models.get(model)
        if hosted is None:
            return None
        return {MANIFEST: manifests.encode(hosted.manifest), **hosted.texts}

    def records(self) -> tuple[Hosted, ...]:
        return tuple(
            Hosted(
                model=hosted.model,
                name=hosted.manifest.name,
                layers=hosted.manifest.layers,
                span=hosted.span,
                dtype=hosted.dtype,
                step_ms=hosted.engine.step_ms,
                queue=hosted.engine.sessions,
                free_tokens=hosted.engine.free_tokens,
                max_context=hosted.manifest.max_context,
                device=hosted.device,
                prefill_ms=round(hosted.engine.prefill_ms, 4),
                kv_bytes=hosted.engine.kv_bytes,
            )
            for hosted in self
        )
