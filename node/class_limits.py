"""How far honest computations of a class lie apart on this machine: found out by doing the same work in several ways.

At the first need a node computes sequences as one prefill each, and again as sessions come: in slices, a token at a
time, alone and in batches with others. The limit is what these differ by, with a margin, but never less than what was
measured (docs/measures.md, "Audits"), and kept in the home folder. A class that cannot be calibrated is refused:
whoever asked goes to another auditor.

What is computed: random ids where the span begins with the embedding. Behind it, positions of real hidden states in a
random order, from this node's own sessions where it has served such a span, else from what it was asked to audit. A
liar could send inputs on which everything scatters, to be given a wide limit; CEILING bounds that.
"""

import hashlib
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import msgspec
import structlog

from shoal.compression import activations
from shoal.compression.errors import MalformedPayload
from shoal.incentives.audit_evidence import ChunkEvidence
from shoal.incentives.audit_threshold import FEWEST, Threshold, calibrated, rounding_floor
from shoal.incentives.work_chunks import CHUNK_POSITIONS, Given
from shoal.incentives.work_statement import Served
from shoal.swarm.errors import Refused, ShoalError
from shoal.swarm.identifiers import ModelId, SessionId
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Work
from shoal.swarm.sessions.lanes import Claim, Lane
from shoal.swarm.units import Span, has_embed

from .audit_memory import AuditMemory
from .audit_records import SessionRecords
from .hosted_models import HostedModel, HostedModels

if TYPE_CHECKING:
    from .engine import Engine  # torch

log = structlog.get_logger(__name__)
MEASURED = {"float32": 1.9e-6, "bfloat16": 0.00528, "float16": 0.00066}  # limits; float16 follows from bfloat16
CEILING = 4.0  # times the least limit
SEQUENCES, LENGTH = 8, 128
ALONE = 2  # of the sequences are computed with nobody beside them
PATIENCE_S = 150.0
CALIBRATION = Claim("audits", Lane.FREE)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs of LENGTH positions: ids, or an activation."""

    ids: tuple[int, ...]
    hidden: bytes

    def part(self, start: int, stop: int) -> tuple[tuple[int, ...], bytes]:
        if self.ids:
            return self.ids[start:stop], b""
        return (), activations.cut(self.hidden, LENGTH, start, stop)


class ClassLimits:
    """`audit_service.Replaying` over the models that this node hosts."""

    def __init__(self, hosted: HostedModels, records: SessionRecords, known: AuditMemory) -> None:
        self._hosted, self._records, self._known = hosted, records, known
        self._limits: dict[bytes, Threshold] = {}
        self._one = anyio.Lock()

    def engine(self, model: ModelId) -> "Engine | None":
        found = self._found(model)
        return found.engine if found else None

    def _found(self, model: ModelId) -> HostedModel | None:
        return next((each for each in self._hosted if each.model == model), None)

    async def threshold(self, served: Served, evidence: ChunkEvidence) -> Threshold:
        """raises: Refused"""
        hosted = self._found(ModelId(served.model.hex()))
        if hosted is None or hosted.dtype != served.dtype or not hosted.span.covers(served.span):
            raise Refused("this class is not computed here")
        name = _name_of(served, hosted.device)
        async with self._one:
            limit = self._limits.get(name) or self._known.threshold(name)
            if limit is None:
                limit = await self._calibrate(hosted, served, evidence)
                self._known.keep_threshold(name, limit)
                log.info("class_calibrated", span=str(served.span), dtype=served.dtype, limit=limit.limit)
            self._limits[name] = limit
        return limit

    async def _calibrate(self, hosted: HostedModel, served: Served, evidence: ChunkEvidence) -> Threshold:
        """raises: Refused"""
        try:
            floor = max(MEASURED[served.dtype], rounding_floor(served.dtype, served.wire))
        except (KeyError, ValueError):
            raise Refused(f"nothing is known of how far honest {served.dtype} computations lie apart") from None
        layers = hosted.manifest.layers
        if served.span.start > layers or served.span == Span(0, 1):
            return Threshold(floor, FEWEST, 0.0)  # the head passes its input on, the embedding is a table
        body = Span(served.span.start, min(served.span.stop, layers + 1))
        if hosted.engine.free_tokens - SEQUENCES * LENGTH < hosted.engine.kv_tokens // 4:
            raise Refused("the cache is needed for sessions now; ask somebody else")
        distances: list[float] = []
        try:
            sequences = self._sequences(hosted, served, evidence)
            with anyio.move_on_after(PATIENCE_S) as late:
                distances = await _Ways(hosted.engine, body, sequences).distances()
        except MalformedPayload as error:
            raise Refused(f"what is to be audited has inputs that cannot be read: {error}") from error
        except Refused:
            raise
        except ShoalError as error:
            raise Refused(f"the limits of this class could not be found: {error}") from error
        if late.cancelled_caught:
            raise Refused("this node is too slow, or too busy, to find the limits of this class")
        try:
            limit = calibrated(distances, floor)
        except ValueError as error:
            raise Refused(f"the limits of this class could not be found: {error}") from error
        if limit.limit > CEILING * floor:
            raise Refused("honest computations of this class lie too far apart here to judge others")
        return limit

    def _sequences(self, hosted: HostedModel, served: Served, evidence: ChunkEvidence) -> list[Inputs]:
        """raises: MalformedPayload, Refused"""
        draw = random.Random(secrets.randbits(64))
        if hosted.manifest.max_context < LENGTH:
            raise Refused(f"the model's context is shorter than the {LENGTH} positions that limits are found with")
        if has_embed(served.span):
            words = range(hosted.manifest.vocabulary)
            return [Inputs(tuple(draw.choices(words, k=LENGTH)), b"") for _ in range(SEQUENCES)]
        own = self._records.inputs(hosted.model, served.span.start)
        sizes = [*(CHUNK_POSITIONS for _ in evidence.inputs[:-1]), evidence.count]
        given = own if sum(count for _, count in own) >= CHUNK_POSITIONS else zip(evidence.inputs, sizes, strict=True)
        rows = _rows(list(given))
        return [
            Inputs((), activations.join([(rows[0], 1), *((row, 1) for row in draw.choices(rows, k=LENGTH - 1))]))
            for _ in range(SEQUENCES)
        ]


def _rows(given: Sequence[tuple[Given, int]]) -> list[bytes]:
    """An activation for each position. raises: MalformedPayload"""
    return [activations.cut(each.hidden, count, at, at + 1) for each, count in given for at in range(count)]


def _name_of(served: Served, device: str) -> bytes:
    import torch

    return hashlib.sha256(msgspec.msgpack.encode((served, device, str(torch.__version__)))).digest()


class _Ways:
    """The same work in several ways, on an engine that serves sessions meanwhile."""

    def __init__(self, engine: "Engine", span: Span, sequences: Sequence[Inputs]) -> None:
        self._engine, self._span, self._sequences = engine, span, sequences

    async def distances(self) -> list[float]:
        """Of all chunks in all ways. raises: ShoalError"""
        steps = [*range(CHUNK_POSITIONS, LENGTH), LENGTH]
        later = [*range(2 * CHUNK_POSITIONS, LENGTH), LENGTH]
        reference = [await self._outputs(each, [LENGTH], self._span) for each in self._sequences]
        before = [await self._before(each) for each in self._sequences]
        ways = [
            await self._together(steps),
            await self._together(later),
            await self._together(range(CHUNK_POSITIONS, LENGTH + 1, CHUNK_POSITIONS)),
            [await self._outputs(each, steps, self._span) for each in self._sequences[:ALONE]],
        ]
        return [
            far
            for way in ways
            for made, again, x in zip(way, reference, before, strict=False)
            for far in self._compared(made, again, x)
        ]

    async def _together(self, edges: Sequence[int]) -> list[bytes]:
        made = [b""] * len(self._sequences)
        errors: list[ShoalError] = []

        async def one(number: int) -> None:
            try:
                made[number] = await self._outputs(self._sequences[number], edges, self._span)
            except ShoalError as error:
                errors.append(error)

        async with anyio.create_task_group() as tasks:
            for number in range(len(self._sequences)):
                tasks.start_soon(one, number)
        if errors:
            raise errors[0]
        return made

    async def _before(self, each: Inputs) -> bytes:
        return await self._outputs(each, [LENGTH], Span(0, 1)) if each.ids else each.hidden

    async def _outputs(self, each: Inputs, edges: Sequence[int], span: Span) -> bytes:
        """edges: where each work ends. returns: an activation of LENGTH positions"""
        name, parts, start = SessionId("limits-" + secrets.token_hex(12)), [], 0
        await self._engine.open(name, span, LENGTH, Sampling(), (), CALIBRATION)
        try:
            for stop in edges:
                ids, hidden = each.part(start, stop)
                done = await self._engine.run(Work(name, start, stop - start, ids, hidden))
                parts.append((done.hidden, stop - start))
                start = stop
        finally:
            self._engine.close(name)
        return activations.join(parts)

    def _compared(self, made: bytes, again: bytes, before: bytes) -> list[float]:
        import torch

        from .activation_tensors import tensor_of
        from .audit_replay import CPU, distance

        width = self._engine.shard.manifest.hidden
        a, b, x = (tensor_of(data, LENGTH, width, torch.float32, CPU) for data in (made, again, before))
        starts = range(0, LENGTH, CHUNK_POSITIONS)
        return [distance(*(t[at : at + CHUNK_POSITIONS] for t in (a, b, x))) for at in starts]
