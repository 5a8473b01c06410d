"""What the roles of one peer share: who it is, what it knows of the others, and where its effects go."""

import random
from collections import deque
from dataclasses import dataclass, field

from shoal.swarm.identifiers import PeerId

from .aggregate_store import AggregateStore
from .ballots import Ballot
from .decisions import Decision, Member, Roster
from .events import Effect, Fact, Job, Report, RoundOptions, Run, Send
from .exchange import RunSpec
from .history import History
from .messages import AnyMessage
from .ownership import leaders
from .run_identity import RunId, run_id
from .slot import Slot

NONCE_BITS = 52
BID = (
    1 << 20
)  # before the first round two may bid with one number; the one that loses adds so much, and leads all the same


@dataclass(slots=True)
class PeerState:
    """now: of the event that is being handled. A message to ourselves goes through `to_myself`, like any other."""

    me: PeerId
    spec: RunSpec
    options: RoundOptions
    generator: random.Random
    history: History
    slot: Slot
    run: RunId = field(init=False)
    nonce: int = field(init=False)
    now: float = 0.0
    began_at: float = 0.0
    store: AggregateStore = field(default_factory=AggregateStore)
    listed: frozenset[PeerId] = frozenset()
    seen: dict[PeerId, float] = field(default_factory=dict)
    lost: set[PeerId] = field(default_factory=set)
    incarnations: dict[PeerId, int] = field(default_factory=dict)  # the nonce that a peer last said
    convicted: dict[PeerId, str] = field(default_factory=dict)  # found lying, by verdicts that we heard
    silent: set[PeerId] = field(default_factory=set)  # would not show their residual, or did not reduce in time
    decided: Decision | None = None  # of the open round, for the machine to take away
    _order: tuple[Slot, bytes, frozenset[PeerId], tuple[PeerId, ...]] | None = None
    _living: tuple[bytes, float, list[Member]] | None = None
    effects: list[Effect] = field(default_factory=list)
    to_myself: deque[AnyMessage] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.run = run_id(self.spec)
        self.draw_nonce()

    def draw_nonce(self) -> None:
        self.nonce = self.generator.getrandbits(NONCE_BITS)

    def send(self, to: PeerId, message: AnyMessage) -> None:
        if to == self.me:
            self.to_myself.append(message)
        else:
            self.effects.append(Send(to, message))

    def run_job(self, job: Job) -> None:
        self.effects.append(Run(job))

    def report(self, fact: Fact) -> None:
        self.effects.append(Report(fact))

    def heard(self, peer: PeerId) -> None:
        self.seen[peer] = self.now
        self.lost.discard(peer)

    @property
    def founding(self) -> bool:
        """No round has happened yet, as far as we know: whoever is listed votes."""
        return not self.history.voters

    @property
    def votes(self) -> bool:
        """Whether we vote on the open round: not before the first round in which this very process took part."""
        return self.founding or any(v.peer == self.me and v.nonce == self.nonce for v in self.history.voters)

    def leader_order(self) -> tuple[PeerId, ...]:
        known = self._order
        if known is None or known[0] is not self.slot or known[1] != self.history.basis or known[2] is not self.listed:
            if self.founding:
                peers = tuple(sorted(self.listed | {self.me}))
            else:
                peers = tuple(v.peer for v in self.history.voters if v.peer not in self.history.excluded)
            known = (self.slot, self.history.basis, self.listed, leaders(self.run, self.slot.round, peers))
            self._order = known
        return known[3]

    def leader_at(self, attempt: int) -> PeerId:
        order = self.leader_order()
        return order[attempt % len(order)]

    def attempt_of(self, ballot: Ballot) -> int:
        """The how manieth leader its proposer takes itself for."""
        number = ballot.number - self.first_number
        return number % BID if self.founding else number

    @property
    def first_number(self) -> int:
        """Of the first leader's ballot. Only an order that all agree on may begin with 0, which needs no promises."""
        return 1 if self.founding else 0

    def roster_of(self, round_: int) -> Roster | None:
        """Of a decided round, or of the open one once its group is known."""
        if round_ == self.slot.round:
            return None if self.slot.group is None else self.slot.group.roster
        decision = self.history.decisions.get(round_)
        return None if decision is None else decision.roster

    def present(self, peer: PeerId) -> bool:
        """Whether a round should wait for this peer."""
        if peer == self.me:
            return True
        recent = self.now - self.seen.get(peer, self.began_at) < self.options.unlisted_s
        return peer not in self.lost and (peer in self.listed or recent)

    def living_voters(self) -> list[Member]:
        """Those that count, looked at once a beat: not excluded, not gone for so long that they are forgotten, and not
        back as another process, which does not know what it voted.
        """
        known = self._living
        if known is not None and known[0] == self.history.basis and self.now - known[1] < self.options.beat_s:
            return known[2]
        living = [v for v in self.history.voters if v.peer not in self.history.excluded and not self._gone(v)]
        self._living = (self.history.basis, self.now, living)
        return living

    def restarted(self, peer: PeerId, nonce: int) -> None:
        """A peer has said which process of it is there."""
        if self.incarnations.get(peer) != nonce:
            self.incarnations[peer] = nonce
            self._living = None

    def _gone(self, voter: Member) -> bool:
        nonce = self.nonce if voter.peer == self.me else self.incarnations.get(voter.peer, voter.nonce)
        if nonce != voter.nonce:
            return True
        if voter.peer == self.me or voter.peer in self.listed:
            return False
        return self.now - self.seen.get(voter.peer, self.began_at) > self.options.forget_s

    def out(self, peer: PeerId) -> str:
        """Why this peer may not take part, or an empty string."""
        if peer in self.convicted:
            return self.convicted[peer]
        return "found lying in an earlier round" if peer in self.history.excluded else ""
