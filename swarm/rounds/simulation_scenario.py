"""What a simulation of rounds is to look like."""

from dataclasses import dataclass, field

from .events import RoundOptions
from .exchange import RunSpec

SPEC = RunSpec(
    name="simulated",
    model="0" * 64,
    data="0" * 64,
    strategy="sparse",
    fragments=(4 * 4096,),
    preset="sparse",
    shards=4,
    quorum=2,
    grace_s=8.0,
    deadline_s=60.0,
)


@dataclass(frozen=True, slots=True)
class RoundConditions:
    """What the network does to messages, and how fast the volunteers and their directory are."""

    latency_s: tuple[float, float] = (0.01, 0.3)  # one way
    bulk_s: tuple[float, float] = (0.1, 1.5)  # of a message with a payload
    loss: float = 0.05
    repeats: float = 0.02
    noticed: float = 0.8  # probability that a sender learns that a peer is gone
    listed_every_s: float = 5.0
    listed_for_s: float = 24.0  # a dead peer stays in the directory so long
    compute_s: tuple[float, float] = (2.0, 6.0)  # inner steps of one round
    stragglers: float = 0.02
    straggler_factor: float = 8.0
    job_s: tuple[float, float] = (0.01, 0.2)
    catch_up_s: tuple[float, float] = (1.0, 4.0)


@dataclass(frozen=True, slots=True)
class RoundScenario:
    """churn: share of the peers that is killed, and as many join, in each round; liars: owners that lie"""

    peers: int = 50
    rounds: int = 5
    churn: float = 0.2
    churn_window_s: float = 20.0
    liars: int = 0
    seed: int = 0
    spec: RunSpec = SPEC
    options: RoundOptions = field(default_factory=lambda: RoundOptions(beat_s=1.0))
    conditions: RoundConditions = field(default_factory=RoundConditions)
    limit_s: float = 1800.0  # simulated
