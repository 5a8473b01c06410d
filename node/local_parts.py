"""The layers that a driver keeps for itself (`local_layers=k`): embed, the first k layers, and the head."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from shoal.compression.kv_levels import KvLevel
from shoal.swarm.errors import Refused, UsageError
from shoal.swarm.identifiers import ModelId, SessionId
from shoal.swarm.kv.kv_chunks import KvFormat
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Compute, Done, Work
from shoal.swarm.sessions.lanes import MEMBER, Claim
from shoal.swarm.units import Span

from .hosted_models import HostedModels
from .options import NodeOptions

if TYPE_CHECKING:
    from .engine import Engine

KV_TOKENS = 16384


class SplitCompute:
    """One `Compute` over several engines; a session belongs to the one that holds its span."""

    def __init__(self, parts: dict[Span, Compute]) -> None:
        self._parts = parts
        self._sessions: dict[SessionId, Compute] = {}

    async def open(
        self,
        session: SessionId,
        span: Span,
        max_tokens: int,
        sampling: Sampling,
        history: tuple[int, ...],
        claim: Claim = MEMBER,
    ) -> None:
        compute = next(part for held, part in self._parts.items() if held.covers(span))
        await compute.open(session, span, max_tokens, sampling, history, claim)
        self._sessions[session] = compute

    async def stand_by(self, session: SessionId, span: Span, max_tokens: int) -> None:
        raise Refused("the parts of a driver stand by for nobody")

    async def take_over(
        self,
        session: SessionId,
        span: Span,
        max_tokens: int,
        sampling: Sampling,
        history: tuple[int, ...],
        below: int,
        claim: Claim = MEMBER,
    ) -> int:
        raise Refused("the parts of a driver stand by for nobody")

    async def run(self, work: Work) -> Done:
        return await self._sessions[work.session].run(work)

    def kv_format(self, span: Span) -> KvFormat:
        return next(part for held, part in self._parts.items() if held.covers(span)).kv_format(span)

    async def prepare_kv(self, span: Span) -> None:
        await next(part for held, part in self._parts.items() if held.covers(span)).prepare_kv(span)

    async def export_kv(
        self, session: SessionId, start: int, stop: int, level: KvLevel = "lossless", span: Span | None = None
    ) -> list[bytes]:
        return await self._sessions[session].export_kv(session, start, stop, level, span)

    async def import_kv(
        self, session: SessionId, start: int, chunks: Sequence[bytes], history: tuple[int, ...] = ()
    ) -> int:
        return await self._sessions[session].import_kv(session, start, chunks, history)

    async def place_kv(self, session: SessionId, chunk: bytes) -> None:
        await self._sessions[session].place_kv(session, chunk)

    def close(self, session: SessionId) -> None:
        compute = self._sessions.pop(session, None)
        if compute is not None:
            compute.close(session)


class NodeLocalParts:
    """`driver.LocalParts` from the files of this machine; loaded parts are kept for the next session."""

    def __init__(self, options: NodeOptions, hosted: HostedModels) -> None:
        self._options, self._hosted = options, hosted
        self._loaded: dict[tuple[ModelId, int], tuple[SplitCompute, str]] = {}
        self._engines: list[Engine] = []
        self._lock = anyio.Lock()

    async def load(self, model: ModelId, local_layers: int) -> tuple[Compute, str]:
        async with self._lock:
            if (model, local_layers) not in self._loaded:
                self._loaded[model, local_layers] = await anyio.to_thread.run_sync(self._load, model, local_layers)
            return self._loaded[model, local_layers]

    def _load(self, wanted: ModelId, local_layers: int) -> tuple[SplitCompute, str]:
        from .engine import Engine  # torch
        from .shard import Shard, choose_device, choose_dtype

        options = self._options
        models = [hosted.local for hosted in self._hosted if hosted.local is not None]
        if not models:
            raise UsageError("local_layers needs the model's files on this machine; start the node with a model")
        model = next((local for local in models if local.model_id == wanted), None)
        if model is None:
            raise UsageError(f"local_layers works with the model of this node, {models[0].manifest.name}, only")
        layers = model.manifest.layers
        device = choose_device(options.device)
        dtype = choose_dtype(options.dtype, model.manifest, device)
        parts: dict[Span, Compute] = {}
        for span in (Span(0, 1 + local_layers), Span(layers + 1, layers + 2)):
            model.fetch(span)
            engine = Engine(Shard.load(model, span, dtype, device), KV_TOKENS)
            self._engines.append(engine)
            parts[span] = engine
        return SplitCompute(parts), dtype

    def stop(self) -> None:
        for engine in self._engines:
            engine.stop()
