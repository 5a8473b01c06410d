"""What has been decided so far: who votes next, whose residual is where, who is out of the run."""

from collections import OrderedDict
from dataclasses import dataclass, field

from shoal.swarm.identifiers import PeerId

from .decisions import Decision, Done, Member, digest

REMEMBERED = 16  # decisions


@dataclass(frozen=True, slots=True)
class Holder:
    """Who owns a shard's residual, and the root of it. A restarted owner (another nonce) has lost it."""

    peer: PeerId
    nonce: int
    root: bytes


@dataclass(slots=True)
class History:
    """settled: the highest round that is decided, or that the trainer's own state says is over.

    founded: whether all of the run's past is known here, so that a shard without a holder never had one
    """

    settled: int
    founded: bool = False
    basis: bytes = b""
    last: Decision | None = None  # the last that happened
    decisions: OrderedDict[int, Decision] = field(default_factory=OrderedDict)
    holders: dict[tuple[int, int], Holder] = field(default_factory=dict)  # by fragment and shard
    excluded: tuple[PeerId, ...] = ()
    disowned: tuple[PeerId, ...] = ()

    @property
    def voters(self) -> tuple[Member, ...]:
        """Members of the last round that happened; () when unknown."""
        return () if self.last is None or self.last.roster is None else self.last.roster.members

    def learn(self, decision: Decision) -> None:
        """The next decision, or after a gap the newest one."""
        value = decision.value
        self.settled = max(self.settled, value.round)
        self.decisions[value.round] = decision
        while len(self.decisions) > REMEMBERED:
            self.decisions.popitem(last=False)
        if not isinstance(value, Done):
            return
        self.basis, self.last = digest(value), decision
        self.excluded, self.disowned = value.excluded, value.disowned
        assert decision.roster is not None
        self.founded = self.founded or not value.basis
        for shard, result in enumerate(value.shards):
            owner = decision.roster.members[result.owner]
            self.holders[decision.roster.fragment, shard] = Holder(owner.peer, owner.nonce, result.residual)

    def start_over(self, settled: int) -> None:
        """The trainer comes from elsewhere: what was known of the run may not be the run's past any more."""
        self.settled, self.basis, self.last, self.founded = settled, b"", None, False
        self.decisions.clear()
        self.holders.clear()

    def happened_after(self, round_: int) -> bool:
        return self.last is not None and self.last.value.round > round_
