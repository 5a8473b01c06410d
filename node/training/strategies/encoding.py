"""From an update to what is offered of it: payloads, shard by shard, and what they leave out."""

import numpy as np

from shoal.compression.error_feedback import ErrorFeedback, send
from shoal.compression.update_codec import Values
from shoal.swarm.rounds.exchange import RunSpec, seed_of


def begun(outer: Values, ahead: float, residual: Values | None) -> Values:
    """(F,) what local parameters begin a round with, a copy: ahead of the outer ones by a part of what is not sent yet.

    residual: what earlier payloads left out, (F,); None for nothing
    """
    return outer.copy() if residual is None or not ahead else outer - np.float32(ahead) * residual


def encoded(
    spec: RunSpec, feedback: float, round_: int, fragment: int, update: Values, before: Values | None
) -> tuple[tuple[bytes, ...], Values | None]:
    """update: (F,); feedback: decay of what earlier payloads left out, `before`, (F,); 0 for none

    raises: ValueError for values that are not finite
    """
    codec, payloads = spec.codec(), []
    residual = np.zeros_like(update) if feedback else None
    for shard, (start, stop) in enumerate(spec.sharding(fragment).bounds()):
        seed = seed_of(round_, fragment, shard)
        part = np.ascontiguousarray(update[start:stop])
        if residual is None:
            payloads.append(codec.encode(part, seed))
            continue
        empty = ErrorFeedback.empty(stop - start, feedback)
        sent = send(codec, empty if before is None else ErrorFeedback(before[start:stop], feedback), part, seed)
        payloads.append(sent.payload)
        residual[start:stop] = sent.feedback.residual
    return tuple(payloads), residual


def left_out(feedback: float, update: Values, before: Values | None, sent: Values) -> Values:
    """(F,) what payloads that decode to `sent` leave out, as `encoded` has it."""
    carried = np.zeros_like(update) if before is None else before
    return ErrorFeedback(carried, feedback).target(update) - sent
