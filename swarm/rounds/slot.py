"""One round while it is open: what this peer has promised, received and reduced."""

import math
from dataclasses import dataclass, field

from shoal.swarm.identifiers import PeerId

from .ballots import Acceptor, Ballot
from .decisions import Decision, Roster
from .gathering import Gathered
from .messages import Group, Promise, Propose, Ready, Reduced, Upload
from .reducing import Reduction


@dataclass(slots=True)
class Lead:
    """What a leader keeps of the round that it leads. stage: preparing, fetching, gathering, reducing, proposing"""

    ballot: Ballot
    attempt: int
    began_at: float
    stage: str
    promises: dict[PeerId, Promise] = field(default_factory=dict)
    quorum_at: float = math.inf
    found: Gathered | None = None  # when it was last looked at
    missing: set[PeerId] = field(default_factory=set)  # whom the group waits for
    group: Group | None = None
    reports: dict[int, Reduced] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)  # shards of which nothing could count
    heard: dict[int, float] = field(default_factory=dict)  # shard to when its owner last showed life
    given: dict[int, float] = field(default_factory=dict)  # shard to when its owner got it
    barred: set[PeerId] = field(default_factory=set)  # owners that failed in this round
    decision: Decision | None = None
    accepts: set[PeerId] = field(default_factory=set)
    said_at: float = -math.inf  # Prepare, Group or Propose
    beat_at: float = -math.inf


@dataclass(slots=True)
class Slot:
    """round: the lowest that is not decided yet."""

    round: int
    opened_at: float
    acceptor: Acceptor = field(default_factory=Acceptor)
    readies: dict[PeerId, Ready] = field(default_factory=dict)
    coming: set[PeerId] = field(default_factory=set)  # who work on it and have no vote
    rosters: dict[bytes, Roster] = field(default_factory=dict)
    group: Group | None = None  # the one with the highest ballot and version
    name: bytes = b""  # digest of its roster
    group_at: float = math.inf
    deadline: float = math.inf
    pending: Propose | None = None  # to be voted for once its aggregates are here
    lead: Lead | None = None

    attempt: int = 0  # the how manieth leader we believe in
    bids: int = 0  # how often we had to bid higher, before the first round
    leader: PeerId | None = None
    heard_at: float = -math.inf  # when the leader last showed life
    ready_at: float = -math.inf  # when we last said that we are ready
    acknowledged: bool = False

    uploads: dict[int, dict[PeerId, Upload]] = field(default_factory=dict)  # by shard
    verified: set[tuple[int, PeerId, bytes]] = field(default_factory=set)  # shard, contributor, root
    sent: set[tuple[int, PeerId]] = field(default_factory=set)  # shard and owner that have our payload
    reductions: dict[tuple[bytes, int], Reduction] = field(default_factory=dict)  # by roster and shard
    reducing: set[tuple[bytes, int]] = field(default_factory=set)
    nudged_at: float = -math.inf
    progress_at: float = -math.inf

    checked: set[bytes] = field(default_factory=set)  # aggregates that decode
    checking: set[bytes] = field(default_factory=set)
    malformed: set[bytes] = field(default_factory=set)

    def know(self, roster: Roster) -> bytes:
        self.rosters[roster.name] = roster
        return roster.name
