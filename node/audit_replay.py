"""A chunk of somebody else's session, computed again on the own engine as an ordinary prefill, and compared.

Shapes: P positions of the chunk, D hidden.
"""
# ruff: noqa: N803  names end in their shapes, as the legend above says

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import anyio.to_thread
import torch

from shoal.compression import activations
from shoal.compression.errors import MalformedPayload
from shoal.incentives.audit_evidence import ChunkEvidence, Unproven, proven
from shoal.incentives.audit_threshold import Finding, Threshold
from shoal.incentives.work_chunks import CHUNK_POSITIONS, Given
from shoal.swarm.errors import BadActivation, Refused
from shoal.swarm.identifiers import SessionId
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Work
from shoal.swarm.sessions.lanes import Claim, Lane
from shoal.swarm.units import Span, has_embed, has_head

from .activation_tensors import tensor_of
from .audit_tokens import wrong_tokens
from .engine import Engine

CPU = torch.device("cpu")
AUDIT = Claim("audits", Lane.FREE)  # sessions go first


@dataclass(frozen=True, slots=True)
class Replayed:
    """distance: inf where the claim has another shape or is not finite; wrong_tokens: of the chunk's"""

    distance: float
    wrong_tokens: int
    tokens: int

    def finding(self, threshold: Threshold) -> Finding:
        worst = threshold.finding(self.distance)
        if 4 * self.wrong_tokens > self.tokens + 4:  # more than a quarter, and more than one
            return Finding.GROSS
        return max(worst, Finding.FAR) if 16 * self.wrong_tokens > self.tokens + 16 else worst


async def replay(engine: Engine, evidence: ChunkEvidence) -> Replayed:
    """Whoever calls this holds the same class of computation: `statement.served` names it.

    raises: Unproven; Refused when the engine does not hold the span, OutOfMemory when it has no room
    """
    statement = await anyio.to_thread.run_sync(proven, evidence)  # megabytes are hashed
    served = statement.served
    layers = engine.shard.manifest.layers
    body = Span(served.span.start, min(served.span.stop, layers + 1)) if served.span.start <= layers else None
    if served.dtype != engine.shard.dtype or not engine.shard.span.covers(served.span):
        raise Refused("this engine does not hold what is to be computed again")
    width = engine.shard.manifest.hidden
    count = evidence.count
    try:
        claimed = tensor_of(evidence.made.hidden, count, width, torch.float32, CPU)
    except BadActivation:
        return Replayed(float("inf"), 0, 0)
    if activations.parse(evidence.made.hidden, count, width).dtype != served.wire:
        return Replayed(float("inf"), 0, 0)
    try:
        before = await _base(engine, served.span, evidence.inputs[-1], count)
        again = before if body is None else await _outputs(engine, body, evidence.inputs, count)
    except (BadActivation, MalformedPayload) as error:
        raise Unproven(f"the inputs that were signed for are none: {error}") from error
    reference = torch.zeros_like(before) if body in (None, Span(0, 1)) else before
    wrong = 0
    if has_head(served.span, layers):
        first = sum(_count(given, CHUNK_POSITIONS) for given in evidence.inputs[:-1])
        wrong = await wrong_tokens(engine, evidence.made, first, count, statement.sampling)
    return Replayed(distance(claimed, again, reference), wrong, sum(t > 0 for t in evidence.made.tokens))


def distance(claimed_PD: torch.Tensor, again_PD: torch.Tensor, before_PD: torch.Tensor) -> float:
    """Root mean square over a chunk's positions of |claimed - again| / |again - before|; each weighs the same.

    What a short last chunk lacks counts as equal: limits are of whole chunks, and single positions scatter further.
    """
    apart = (claimed_PD - again_PD).double().square().sum(1)
    added = (again_PD - before_PD).double().square().sum(1).clamp_min(1e-60)
    return float(((apart / added).sum() / CHUNK_POSITIONS).sqrt())


def _count(given: Given, full: int) -> int:
    return len(given.ids) or full


async def _base(engine: Engine, span: Span, given: Given, count: int) -> torch.Tensor:
    """(P, D) what the residual stream held before the span's first layer."""
    if has_embed(span):
        return await _outputs(engine, Span(0, 1), (given,), count)
    return tensor_of(given.hidden, count, engine.shard.manifest.hidden, torch.float32, CPU)


async def _outputs(engine: Engine, span: Span, inputs: Sequence[Given], count: int) -> torch.Tensor:
    """(P, D) of the last `count` positions, everything before them computed on the way."""
    ids = tuple(i for given in inputs for i in given.ids)
    sizes = [*(CHUNK_POSITIONS for _ in inputs[:-1]), count]
    hidden = b"" if ids else activations.join([(g.hidden, n) for g, n in zip(inputs, sizes, strict=True)])
    total = sum(sizes)
    session = SessionId("audit-" + secrets.token_hex(12))
    await engine.open(session, span, total, Sampling(), (), AUDIT)
    try:
        done = await engine.run(Work(session, 0, total, ids, hidden))
    finally:
        engine.close(session)
    width = engine.shard.manifest.hidden
    wanted = activations.cut(done.hidden, total, total - count, total)
    return tensor_of(wanted, count, width, torch.float32, CPU)
