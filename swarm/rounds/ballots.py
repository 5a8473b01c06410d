"""Single-decree consensus: of all values proposed for a round at most one is ever chosen, whoever dies when.

An acceptor promises to ignore lower ballots and says what it accepted; a proposer with promises from a majority must
propose again what was accepted under the highest ballot among them. Two majorities share a peer, hence the safety.
source: Lamport, Paxos Made Simple, 2001
"""

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from shoal.swarm.identifiers import PeerId

from .decisions import Count, Decision


class Ballot(msgspec.Struct, frozen=True, array_like=True, order=True, forbid_unknown_fields=True):
    """Unique: two proposers never share one. Number 0 belongs to the first leader that all agree on."""

    number: Count
    proposer: PeerId


@dataclass(slots=True)
class Acceptor:
    """One peer's memory of one round. It lives as long as the process; a restarted peer does not vote (see Member)."""

    promised: Ballot | None = None
    ballot: Ballot | None = None  # under which `accepted` was
    accepted: Decision | None = None

    def allows(self, ballot: Ballot) -> bool:
        return self.promised is None or ballot >= self.promised

    def promise(self, ballot: Ballot) -> bool:
        """Whether it was high enough."""
        if not self.allows(ballot):
            return False
        self.promised = ballot
        return True

    def accept(self, ballot: Ballot, decision: Decision) -> bool:
        if not self.promise(ballot):
            return False
        self.ballot, self.accepted = ballot, decision
        return True


def bound_to(promises: Iterable[tuple[Ballot, Decision] | None]) -> Decision | None:
    """What a proposer with these promises must propose; None leaves it free."""
    highest = max((promise for promise in promises if promise is not None), key=lambda p: p[0], default=None)
    return None if highest is None else highest[1]


def majority(count: int) -> int:
    return count // 2 + 1
