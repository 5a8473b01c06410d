"""What auditors, owners and jurors say to one another."""

from shoal.swarm.identifiers import PeerId

from .decisions import Count
from .message import Message, Path, Reason


class AskResidual(Message, frozen=True):
    round: Count
    shard: Count
    unit: Count


class Residual(Message, frozen=True):
    """A unit of the owner's residual as it was before the round; the paths lead to the roots before and after it."""

    round: Count
    shard: Count
    unit: Count
    values: bytes  # float32, little endian
    before: Path
    after: Path


class Accusation(Message, frozen=True):
    """Auditor to jurors. evidence: None when the owner shows nothing."""

    round: Count
    shard: Count
    unit: Count
    evidence: Residual | None


class Verdict(Message, frozen=True):
    """Juror to all. kind: lied (out of the run) or silent (owns no shard any more)"""

    round: Count
    shard: Count
    culprit: PeerId
    lied: bool
    reason: Reason
