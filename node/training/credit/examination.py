"""A claim looked at: does the shown interval lead where it was said to, is the update the work's, what was it worth.

Everything here is computed; nothing waits for anybody. It runs between two rounds of the judge's own training, on its
own model, which afterwards stands where it stood.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import structlog

from shoal.compression.errors import MalformedPayload
from shoal.compression.update_codec import Values
from shoal.incentives.audit_threshold import Finding
from shoal.incentives.step_statement import StepStatement, carried_hash
from shoal.incentives.training_draw import quality_percent
from shoal.node.training.data.assignment import Share
from shoal.node.training.parameters import ModelParameters
from shoal.node.training.strategies.encoding import encoded, left_out
from shoal.node.training.update_audit import (
    StepState,
    batches_of,
    root_of,
    state_digest,
    state_now,
    step_distance,
    taken_again,
)
from shoal.node.training.update_value import held_out_gradient
from shoal.node.training.valued_rounds import decoded
from shoal.node.training.worker import WorkerParts
from shoal.node.training.worker_inner_state import restore_inner
from shoal.node.training.worker_steps import LossNotFinite
from shoal.swarm.errors import UsageError
from shoal.swarm.rounds.exchange import Outcome

from .kept_work import residual_digest

EXACT, ROUNDED = 1e-3, 2e-2  # of an interval's way: float32 on every machine; where some may train in bfloat16
FALSE_FROM = 0.15  # no rounding; what lies between is undecided, and not paid
MOST_TWINS = 8  # of others, whose data is tried when steps lead neither where they should nor clearly elsewhere
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """What the trainer has shown of one interval; each is checked against its digest already.

    begin, last: parameters where the work began and ended; start, end: of the interval; residual: None where nothing
    was left out before
    """

    interval: int
    begin: Values
    start: StepState
    end: Values
    last: Values
    residual: Values | None
    payloads: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, eq=False)
class RoundFacts:
    """What the judge knows of a round by itself. before: the outer parameters that it started from, (N,)"""

    outcome: Outcome
    before: Values
    before_hash: bytes
    roots: dict[str, bytes]  # by peer, what each committed to


@dataclass(frozen=True, slots=True)
class Examined:
    finding: Finding
    reason: str
    step_distance: float | None = None
    payload_distance: float | None = None
    own: float | None = None
    mean: float | None = None
    quality: int = 0


def examined(
    parts: WorkerParts,
    facts: RoundFacts,
    statement: StepStatement,
    residual_after: bytes,
    share: Share,
    shown: Shown,
    of_others: Sequence[Share] = (),
) -> Examined:
    """share: of the data, that the trainer had in the round; of_others: what others had. raises: OutOfMemory"""
    own_state = state_now(parts.steps, parts.parameters)
    try:
        found = _examined(parts, facts, statement, residual_after, share, shown)
        if found.payload_distance is None and found.finding is Finding.FAR:
            return _unless_copied(found, parts, statement, shown, of_others)
        return found
    finally:
        parts.parameters.write(0, own_state.parameters)
        restore_inner(parts.steps.optimizer, own_state.moments)


def _unless_copied(
    found: Examined, parts: WorkerParts, statement: StepStatement, shown: Shown, of_others: Sequence[Share]
) -> Examined:
    """Steps on somebody else's data may lead nearly where the own ones would, as moments carry both on. But taken
    again on that data they lead there to the bit, which no rounding of the own ones does."""
    for other in of_others[:MOST_TWINS]:
        if finding_of(_steps_apart(parts, statement, other, shown), _limit(parts)) is Finding.SOUND:
            return replace(found, finding=Finding.GROSS, reason="the steps are those on another trainer's data")
    return found


def _limit(parts: WorkerParts) -> float:
    return EXACT if parts.config.batch.precision == "float32" else ROUNDED


def _examined(
    parts: WorkerParts, facts: RoundFacts, statement: StepStatement, residual_after: bytes, share: Share, shown: Shown
) -> Examined:
    apart = _steps_apart(parts, statement, share, shown)
    found = finding_of(apart, _limit(parts))
    if found is not Finding.SOUND:
        return Examined(found, "the steps lead elsewhere", apart)
    settings, spec, outcome = parts.strategy.settings, parts.strategy.spec, facts.outcome
    update = shown.begin - shown.last
    try:
        sent = decoded(spec, Outcome(outcome.round, outcome.fragment, shown.payloads, ()))
        expected, _ = encoded(spec, settings.feedback, outcome.round, outcome.fragment, update, shown.residual)
        away = _apart(sent, decoded(spec, Outcome(outcome.round, outcome.fragment, expected, ())))
    except (UsageError, MalformedPayload, ValueError) as error:
        return Examined(Finding.GROSS, f"the update cannot be read: {error}", apart)
    found = finding_of(away, EXACT)
    if found is not Finding.SOUND:
        return Examined(found, "the update is not what the steps led to", apart, away)
    if settings.feedback:
        left = residual_digest(left_out(settings.feedback, update, shown.residual, sent))
        if left != residual_after:
            return Examined(Finding.GROSS, "what the encoder left out is not what was said", apart, away)
    held_out = parts.data.held_out
    if held_out is None or not isinstance(parts.parameters, ModelParameters):
        return Examined(Finding.SOUND, "", apart, away, quality=100)
    windows = range(min(len(held_out), parts.config.evaluation.sequences))
    gradient = held_out_gradient(parts.steps, parts.parameters, held_out, facts.before, windows).astype(np.float64)
    own, mean = (float(gradient @ values) for values in (sent, decoded(spec, outcome)))  # updates point downhill
    return Examined(Finding.SOUND, "", apart, away, own, mean, quality_percent(own, mean))


def finding_of(distance: float, limit: float) -> Finding:
    if distance <= limit:
        return Finding.SOUND
    return Finding.FAR if distance < FALSE_FROM else Finding.GROSS


def _steps_apart(parts: WorkerParts, statement: StepStatement, share: Share, shown: Shown) -> float:
    sequences, every = parts.config.batch.sequences, statement.every
    batches = batches_of(share, shown.interval * every * sequences, every, sequences)
    first = statement.first + shown.interval * every
    if shown.start.parameters.shape != shown.end.shape or not np.isfinite(shown.start.parameters).all():
        return float("inf")
    try:
        again = taken_again(parts.steps, parts.parameters, parts.data.windows, shown.start, batches, first)
    except (LossNotFinite, ValueError, KeyError, TypeError, RuntimeError) as error:  # moments that no optimiser has
        log.warning("steps_not_taken_again", error=f"{type(error).__name__}: {error}")
        return float("inf")
    return step_distance(shown.start.parameters, shown.end, again.parameters)


def _apart(one: Values, other: Values) -> float:
    if one.shape != other.shape or not np.isfinite(one).all():
        return float("inf")
    return float(np.linalg.norm(one - other)) / max(float(np.linalg.norm(other)), 1e-30)


def statement_problem(
    statement: StepStatement, marks: tuple[tuple[bytes, bytes], ...], residuals: tuple[bytes, bytes]
) -> str:
    """Why the digests shown are not those that were signed for, or an empty string."""
    if len(marks) != statement.intervals + 1 or statement.root != root_of(marks):
        return "the digests are not those of the statement"
    if statement.begin != state_digest(marks[0]):
        return "the work begins elsewhere than the statement says"
    if statement.carried != carried_hash(marks[0][1], residuals[0]):
        return "the moments carried in are not those of the statement"
    if statement.carries != carried_hash(marks[-1][1], residuals[1]):
        return "the moments carried on are not those of the statement"
    return ""
