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
        self._parting: dict[ModelId, HostedModel] = {}  # no record says so any more; who has planned with it may come
        self._between: dict[ModelId, tuple[Manifest, dict[str, bytes]]] = {}  # models whose layers are exchanged

    def add(self, hosted: HostedModel) -> None:
        self._models[hosted.model] = hosted
        self._between.pop(hosted.model, None)

    def part_with(self, hosted: HostedModel) -> None:
        """What is let go: in no record from now on, other layers of the model may be added; `parted` ends it."""
        if self._models.get(hosted.model) is hosted:
            del self._models[hosted.model]
            self._between[hosted.model] = hosted.manifest, hosted.texts
        self._parting[hosted.model] = hosted

    def parted(self, model: ModelId) -> None:
        """No more sessions begin on it; the model's small files are still given."""
        self._parting.pop(model, None)

    def __iter__(self) -> Iterator[HostedModel]:
        return iter(tuple(self._models.values()))

    def manifest(self, model: ModelId) -> Manifest | None:
        files = self._files(model)
        return files[0] if files else None

    def _files(self, model: ModelId) -> tuple[Manifest, dict[str, bytes]] | None:
        hosted = self._models.get(model)
        return (hosted.manifest, hosted.texts) if hosted else self._between.get(model)

    def coder(self, model: ModelId) -> ChunkCoder | None:
        """What recodes and compares chunks of a model's caches."""
        hosted = self._models.get(model)
        return hosted.engine if hosted else None

    def find(self, model: ModelId, dtype: str, span: Span) -> Compute:
        here = [each[model] for each in (self._models, self._parting) if model in each]
        if not here and model in self._between:
            raise Refused(f"this node exchanges its layers of {self._between[model][0].name} now")
        if not here:
            raise Refused(f"model {model[:12]} is not served here")
        hosted = next((each for each in here if each.span.covers(span)), here[0])
        if hosted.dtype != dtype:
            raise Refused(f"served here in {hosted.dtype}, not in {dtype}")
        if not hosted.span.covers(span):
            wanted = describe(span, hosted.manifest.layers)
            raise Refused(f"{wanted} is not served here, only {hosted.layers_text}")
        return hosted.engine

    def blobs(self, model: ModelId) -> dict[str, bytes] | None:
        files = self._files(model)
        return {MANIFEST: manifests.encode(files[0]), **files[1]} if files else None

    def measure_when_idle(self) -> None:
        """Have every engine that has nothing to do find out how fast it is."""
        for hosted in self:
            hosted.engine.measure_when_idle()

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
