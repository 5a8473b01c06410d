"""Whether the tokens of a chunk follow from the residual stream that the server signed for: the head, once more.

The draw of a token is a pure function of logits, seed and position, so a re-execution gives the same token, except
where two were so near that rounding decided. What lies within NEAR of the likeliest is no fault.
"""

import secrets

import msgspec

from shoal.compression import activations
from shoal.incentives.audit_evidence import Unproven
from shoal.incentives.work_chunks import Made
from shoal.swarm.identifiers import SessionId
from shoal.swarm.sampling import MAX_TOP_LOGPROBS, Sampling, decoded
from shoal.swarm.sessions.compute import Choice, Work
from shoal.swarm.sessions.lanes import Claim, Lane
from shoal.swarm.units import Span

from .engine import Engine

NEAR = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.25}  # nats


async def wrong_tokens(engine: Engine, made: Made, first: int, count: int, sampling: bytes) -> int:
    """first: position of the chunk's first in its session. Sessions with penalties depend on more than is signed for,
    so that their tokens are not judged.

    raises: Unproven for a sampling that is none
    """
    try:
        chosen = decoded(sampling)
    except ValueError as error:
        raise Unproven(f"the statement's sampling is none: {error}") from error
    if chosen.needs_history or len(made.tokens) != count:
        return count if not chosen.needs_history and made.tokens else 0
    again = await _choices(engine, made, first, count, msgspec.structs.replace(chosen, top_logprobs=MAX_TOP_LOGPROBS))
    near = NEAR[engine.shard.dtype]
    pairs = [(token - 1, choice) for token, choice in zip(made.tokens, again, strict=True) if token]
    return sum(not _may_be(token, choice, chosen, near) for token, choice in pairs)


def _may_be(token: int, choice: Choice, sampling: Sampling, near: float) -> bool:
    if token == choice.id:
        return True
    likely = dict(choice.top)
    if token not in likely:
        return False
    return sampling.temperature == 0.0 and choice.logprob - likely[token] <= near


async def _choices(engine: Engine, made: Made, first: int, count: int, sampling: Sampling) -> list[Choice]:
    """The head has no memory, but the draw depends on the position, so the positions before are skipped by dummies."""
    layers = engine.shard.manifest.layers
    head = Span(layers + 1, layers + 2)
    session = SessionId("audit-" + secrets.token_hex(12))
    await engine.open(session, head, first + count, sampling, (), Claim("audits", Lane.FREE))
    choices = []
    try:
        if first:
            row = activations.cut(made.hidden, count, 0, 1)
            await engine.run(Work(session, 0, first, (), activations.join([(row, 1)] * first)))
        for at in range(count):
            row = activations.cut(made.hidden, count, at, at + 1)
            done = await engine.run(Work(session, first + at, 1, (), row, wants_token=True))
            assert done.choice is not None
            choices.append(done.choice)
    finally:
        engine.close(session)
    return choices
