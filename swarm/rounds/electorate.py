"""Who may vote on the open round, who is awaited for it, and how many votes it takes."""

from collections.abc import Collection

from shoal.swarm.identifiers import PeerId

from .ballots import majority
from .peer_state import PeerState
from .slot import Lead


def electorate(state: PeerState) -> list[PeerId]:
    """Whom a leader asks for a vote."""
    if state.founding:
        return sorted(state.listed | {state.me})
    return [v.peer for v in state.history.voters if v.peer not in state.history.excluded]


def votes(state: PeerState, peers: Collection[PeerId]) -> int:
    """Acceptors answer only when they may vote, so before the first round all count."""
    if state.founding:
        return len(peers)
    known = set(peers)
    return sum(voter.peer in known for voter in state.living_voters())


def needed(state: PeerState, lead: Lead) -> int:
    """Of the votes; before the first round the widest view of who there is counts.

    0 when no process that took part in the last round is left: then the run goes on from what a quorum of peers holds.
    """
    if not state.founding:
        living = state.living_voters()
        return majority(len(living)) if living else 0
    views = [len(state.listed) + 1, *(promise.listed for promise in lead.promises.values())]
    return majority(max(views))


def awaited(state: PeerState) -> set[PeerId]:
    """Who is there and could come: the voters and those that said so; before the first round all."""
    voters = state.listed | {state.me} if state.founding else {v.peer for v in state.living_voters()}
    return {peer for peer in voters | state.slot.coming if state.present(peer)}
