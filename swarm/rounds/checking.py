"""Aggregates that are here, for voters, and that decode, for leaders: nobody proposes what no replica could apply."""

from collections.abc import Sequence

from shoal.swarm.identifiers import PeerId

from .decisions import Decision, Done
from .peer_state import PeerState
from .reducing import Checked, CheckJob


def usable(state: PeerState, round_: int, fragment: int, aggregates: Sequence[tuple[int, bytes]]) -> bool:
    """Whether all of them (shard, hash) are here and checked; starts the check of those that are not.

    A malformed one is never usable.
    """
    slot = state.slot
    unchecked = []
    usable_now = True
    for shard, hash_ in aggregates:
        if hash_ in slot.checked:
            continue
        usable_now = False
        payload = state.store.get(hash_)
        if payload is not None and hash_ not in slot.checking and hash_ not in slot.malformed:
            slot.checking.add(hash_)
            unchecked.append((shard, hash_, payload))
    if unchecked:
        state.run_job(CheckJob(state.spec, round_, fragment, tuple(unchecked)))
    return usable_now


def on_checked(state: PeerState, checked: Checked) -> None:
    slot = state.slot
    if checked.job.round != slot.round:
        return
    hashes = {hash_ for _, hash_, _ in checked.job.aggregates}
    slot.checking -= hashes
    slot.malformed |= set(checked.malformed)
    slot.checked |= hashes - slot.malformed


def want(state: PeerState, decision: Decision, first: Sequence[PeerId], not_before: float = 0.0) -> list[bytes]:
    """Ask for the aggregates of a decision that are not here: `first`, each shard's owner, then any member.

    returns: the hashes that are missing
    """
    value, roster = decision.value, decision.roster
    if not isinstance(value, Done) or roster is None:
        return []
    missing = []
    for result in value.shards:
        if result.aggregate not in state.store:
            missing.append(result.aggregate)
            owner = roster.members[result.owner].peer
            state.store.want(value.round, result.aggregate, [*first, owner, *roster.peers], not_before)
    return missing


def aggregates_of(value: Done) -> list[tuple[int, bytes]]:
    return [(shard, result.aggregate) for shard, result in enumerate(value.shards)]
