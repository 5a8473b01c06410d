"""What a trainer tells whoever shows it: the progress bar, `--json`, TensorBoard, the log."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import msgspec

from shoal.swarm.identifiers import PeerId

Clock = Callable[[], float]  # seconds


@dataclass(frozen=True, slots=True)
class Planned:
    """What is going to happen: said before anything is trained, and all that `--dry-run` does."""

    run: str  # name
    run_id: str  # hex; peers with another one never meet
    model: str
    parameters: int
    strategy: str
    interval: int  # inner steps between two exchanges of the same part of the model
    preset: str
    windows: int  # sequences in the data
    tokens_per_round: int  # of one peer
    round_payload_bytes: int  # of one peer's update
    upload_bytes: int  # of one peer in one round, with `peers`
    download_bytes: int
    peers: int  # assumed
    uplink_bit_s: float | None  # measured, or limits.upload if that is less; None when nobody answered
    exchange_s: float | None  # expected on that link
    memory_bytes: int  # expected
    train_s: float | None = None  # of one round on this machine; None when it was not measured


@dataclass(frozen=True, slots=True)
class Waiting:
    """reason: why no training goes on; "" when it goes on again"""

    reason: str


@dataclass(frozen=True, slots=True)
class Noticed:
    """Something about others: an update that was refused, a reducer that lied."""

    text: str


@dataclass(frozen=True, slots=True)
class StepDone:
    step: int  # from 1
    round: int
    loss: float  # nats a token
    tokens_s: float
    tokens: int  # of this peer since the start


@dataclass(frozen=True, slots=True)
class RoundDone:
    """state: hex, of the outer parameters after it; loss: mean of the own inner steps, None without any"""

    round: int
    fragment: int
    peers: tuple[PeerId, ...]
    tokens: int  # of all contributors
    loss: float | None
    state: str
    sent_bytes: int  # since the last round
    received_bytes: int
    train_s: float
    exchange_s: float  # time that training stood still for it


@dataclass(frozen=True, slots=True)
class RoundLost:
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """This peer was behind: it has taken over the group's state and goes on with `round`."""

    round: int
    source: str


@dataclass(frozen=True, slots=True)
class Evaluated:
    round: int
    loss: float  # nats a token on the held-out text, outer parameters
    perplexity: float


@dataclass(frozen=True, slots=True)
class Saved:
    round: int
    path: str


@dataclass(frozen=True, slots=True)
class StageChosen:
    """This node's place in a pipeline."""

    stage: int
    stages: int
    units: str  # `embed+0:4`
    reason: str


@dataclass(frozen=True, slots=True)
class MicrobatchRedone:
    """A microbatch came to nothing at `peer` and went through another replica of that stage."""

    step: int
    microbatch: int
    peer: PeerId
    stage: int
    reason: str
    pause_s: float  # from its first sending until it had come through


@dataclass(frozen=True, slots=True)
class Progress:
    """A part of the start that takes time: tokenising, loading."""

    what: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Finished:
    rounds: int
    tokens: int
    reason: str
    path: str  # of what was written, "" for nothing


TrainingEvent = (
    Planned
    | Waiting
    | Noticed
    | StepDone
    | RoundDone
    | RoundLost
    | CaughtUp
    | Evaluated
    | Saved
    | StageChosen
    | MicrobatchRedone
    | Progress
    | Finished
)
_KINDS: dict[str, type[TrainingEvent]] = {
    re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower(): kind for kind in get_args(TrainingEvent)
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def as_json(event: TrainingEvent) -> dict[str, Any]:
    """`{"event": "round_done", "round": 7, ...}`; what is not a finite number is null."""
    facts: dict[str, Any] = msgspec.to_builtins(event)
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in facts.items()}
    return {"event": _NAMES[type(event)], **finite}


def read_event(facts: Mapping[str, Any]) -> TrainingEvent | None:
    """What `as_json` made, in another process perhaps; None for what is no event of a training."""
    kind = _KINDS.get(str(facts.get("event")))
    if kind is None:
        return None
    own = {
        name: math.nan if value is None and name == "loss" and kind is StepDone else value
        for name, value in facts.items()
    }
    return msgspec.convert({name: value for name, value in own.items() if name not in ("event", "schema")}, kind)
