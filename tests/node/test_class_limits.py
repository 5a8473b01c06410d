"""A node finds the limits of a class by itself: honest work lies within, cheap cheating beyond."""

from collections.abc import Iterator

import anyio
import msgspec
import pytest
import torch
from node.audited_swarm import BACK, FRONT, MODEL, WHOLE, model
from node.engine_chain import CPU

from shoal.incentives.audit_evidence import ChunkEvidence
from shoal.incentives.audit_threshold import Threshold
from shoal.incentives.work_chunks import Given, Made
from shoal.incentives.work_statement import Served
from shoal.node.activation_tensors import bytes_of
from shoal.node.audit_memory import AuditMemory
from shoal.node.audit_records import SessionRecords
from shoal.node.class_limits import CEILING, MEASURED, ClassLimits
from shoal.node.engine import Engine
from shoal.node.hosted_models import HostedModel, HostedModels
from shoal.node.model_source import LocalModel
from shoal.node.shard import Shard
from shoal.swarm.errors import Refused
from shoal.swarm.identity import Identity
from shoal.swarm.units import Span

__all__ = ["model"]  # a fixture
ME = Identity(bytes([33]) * 32)


def limits_of(model: LocalModel, engine: Engine, dtype: str, known: AuditMemory | None = None) -> ClassLimits:
    hosted = HostedModels()
    hosted.add(HostedModel(MODEL, model.manifest, {}, WHOLE, dtype, "cpu", engine))
    return ClassLimits(
        hosted, SessionRecords(ME, lambda _: model.manifest, anyio.current_time), known or AuditMemory(None)
    )


def served(span: Span, dtype: str) -> Served:
    return Served(bytes.fromhex(MODEL), dtype, dtype, span)


def evidence(rows: int, dtype: str, scale: float = 1.0) -> ChunkEvidence:
    """Inputs of one chunk, for a span behind the embedding."""
    hidden = bytes_of(scale * torch.randn((rows, 64), generator=torch.Generator().manual_seed(1)), dtype)
    return ChunkEvidence(b"", 0, rows, (Given((), hidden),), Made(b"", ()), ())


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(model: LocalModel, dtype: str) -> Iterator[Engine]:
    engine = Engine(Shard.load(model, WHOLE, dtype, CPU), 4096)
    yield engine
    engine.stop()


def found(limits: ClassLimits, span: Span, dtype: str, shown: ChunkEvidence | None = None) -> Threshold:
    async def scenario() -> Threshold:
        with anyio.fail_after(60):
            return await limits.threshold(served(span, dtype), shown or evidence(32, dtype))

    return anyio.run(scenario)


def test_limits_are_found_once_kept_and_never_below_what_was_measured(
    model: LocalModel, engine: Engine, dtype: str
) -> None:
    known = AuditMemory(None)
    limits = limits_of(model, engine, dtype, known)
    for span in (FRONT, BACK):
        limit = found(limits, span, dtype)
        assert limit.chunks >= 100
        assert MEASURED[dtype] <= limit.limit <= CEILING * MEASURED[dtype]
        assert limit.largest <= limit.limit
        assert found(limits, span, dtype) is limit
        assert found(limits_of(model, engine, dtype, known), span, dtype) == limit, "from the home folder"
    assert engine.sessions == 0
    for span in (Span(0, 1), Span(5, 6)):  # the embedding alone, the head alone: nothing to compute in another order
        assert found(limits, span, dtype).limit >= MEASURED[dtype]


def test_a_class_that_is_not_computed_here_or_of_which_nothing_is_known_is_refused(model: LocalModel) -> None:
    engine = Engine(Shard.load(model, FRONT, "float32", CPU), 4096)
    try:
        hosted = HostedModels()
        hosted.add(HostedModel(MODEL, model.manifest, {}, FRONT, "float32", "cpu", engine))
        records = SessionRecords(ME, lambda _: model.manifest, anyio.current_time)
        limits = ClassLimits(hosted, records, AuditMemory(None))
        for about in (served(BACK, "float32"), served(FRONT, "bfloat16")):
            with pytest.raises(Refused, match="not computed here"):
                anyio.run(limits.threshold, about, evidence(32, "float32"))
        odd = msgspec.structs.replace(served(FRONT, "float32"), wire="float8")
        with pytest.raises(Refused, match="nothing is known"):
            anyio.run(limits.threshold, odd, evidence(32, "float32"))
        broken = msgspec.structs.replace(evidence(32, "float32"), inputs=(Given((), b"none"),))
        middle = limits_of(model, engine, "float32")
        with pytest.raises(Refused, match="cannot be read"):
            anyio.run(middle.threshold, served(Span(1, 3), "float32"), broken)
    finally:
        engine.stop()


def test_a_node_with_a_full_cache_puts_it_off(model: LocalModel) -> None:
    engine = Engine(Shard.load(model, WHOLE, "float32", CPU), 1024)
    try:
        with pytest.raises(Refused, match="needed for sessions"):
            found(limits_of(model, engine, "float32"), FRONT, "float32")
    finally:
        engine.stop()


def test_inputs_made_to_scatter_widen_a_limit_no_further_than_the_ceiling(model: LocalModel) -> None:
    engine = Engine(Shard.load(model, WHOLE, "float32", CPU), 4096)
    try:
        for scale in (1e-20, 1e4, 1e18):
            try:
                limit = found(limits_of(model, engine, "float32"), BACK, "float32", evidence(32, "float32", scale))
            except Refused:
                continue
            assert limit.limit <= CEILING * MEASURED["float32"]
    finally:
        engine.stop()
