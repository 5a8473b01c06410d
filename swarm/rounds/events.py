"""What happens to the machine of the outer round, and what it wants done."""

from collections.abc import Collection
from dataclasses import dataclass

from shoal.swarm.errors import ShoalError
from shoal.swarm.identifiers import PeerId

from .audit import Audited, AuditJob
from .exchange import Offer, Outcome
from .messages import AnyMessage
from .reducing import Checked, CheckJob, ReduceJob, Reduction

Job = ReduceJob | CheckJob | AuditJob  # pure and heavy: `run()` it beside the loop, then report `Ran`
JobResult = Reduction | Checked | Audited


@dataclass(frozen=True, slots=True)
class Offered:
    """The trainer has its part of a round ready."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The trainer no longer waits; votes and owned shards go on."""


@dataclass(frozen=True, slots=True)
class Received:
    sender: PeerId  # authenticated by the transport
    message: AnyMessage


@dataclass(frozen=True, slots=True)
class Listed:
    """Who is in the run, by what the directory says now; without ourselves."""

    peers: Collection[PeerId]


@dataclass(frozen=True, slots=True)
class Lost:
    """A stream to the peer broke or it cannot be dialled; it may be back any moment."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Mismatched:
    """A peer trains another run of the same name."""

    peer: PeerId
    differences: str


@dataclass(frozen=True, slots=True)
class Ran:
    result: JobResult


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed: to be sent every `RoundOptions.beat_s`."""


Event = Offered | Withdrawn | Received | Listed | Lost | Mismatched | Ran | Ticked


@dataclass(frozen=True, slots=True)
class Send:
    to: PeerId
    message: AnyMessage


@dataclass(frozen=True, slots=True)
class Run:
    job: Job


@dataclass(frozen=True, slots=True)
class Finish:
    """What the trainer was waiting for: an outcome, or RoundSkipped, OutOfStep, Refused or VersionMismatch."""

    round: int
    result: Outcome | ShoalError


@dataclass(frozen=True, slots=True)
class Status:
    """Where the round stands. stage: gathering, reducing, proposing; text: one line for a person"""

    round: int
    stage: str
    ready: int
    needed: int
    text: str


@dataclass(frozen=True, slots=True)
class UpdateRefused:
    """As an owner we left a contribution out, and why."""

    round: int
    shard: int
    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class LiarNamed:
    """lied: by evidence that anybody can repeat; otherwise it would not show its work and owns no shard any more"""

    round: int
    shard: int
    peer: PeerId
    lied: bool
    reason: str


@dataclass(frozen=True, slots=True)
class AuditPassed:
    round: int
    shard: int
    owner: PeerId


Fact = Status | UpdateRefused | LiarNamed | AuditPassed


@dataclass(frozen=True, slots=True)
class Report:
    fact: Fact


Effect = Send | Run | Finish | Report


@dataclass(frozen=True, slots=True)
class RoundOptions:
    """One peer's patience; peers of a run may differ in it."""

    beat_s: float = 0.5  # how often the machine looks at the clock
    resend_s: float = 2.0  # until a small message is said again
    nudge_s: float = 5.0  # until a payload that did not come is asked for
    leader_silence_s: float = 6.0  # until the next in line is asked to lead
    owner_silence_s: float = 8.0  # until a shard gets another owner
    founding_s: float = 2.0  # how long a first leader looks around before the first group closes
    unlisted_s: float = 30.0  # not listed and not heard of for so long: no round waits for it
    forget_s: float = 120.0  # and for so long: it no longer counts as a voter
    audit_share: float = 1 / 16  # of the shards of each round, at the cost of all uploads to one; 1.0 checks every one
