"""What a leader does about the owners: assign the shards, note what they report, replace those that fall silent."""

from collections.abc import Sequence

from shoal.swarm.identifiers import PeerId

from . import checking
from .ballots import Ballot
from .decisions import Decision, Done, Roster, ShardResult
from .events import LiarNamed
from .messages import Group, Progress
from .ownership import owners
from .peer_state import PeerState
from .slot import Lead


class Stewardship:
    def __init__(self, state: PeerState) -> None:
        self._state = state

    def begin(self, lead: Lead, roster: Roster) -> None:
        state = self._state
        state.slot.name = state.slot.know(roster)
        lead.barred = set()
        self._assign(lead, roster, self._previous_owners(roster), lead.ballot, 0)

    def on_progress(self, lead: Lead, sender: PeerId, message: Progress) -> None:
        state, shards = self._state, len(lead.group.owners) if lead.group is not None else 0
        for shard in range(shards):
            if self._owner(lead, shard) == sender:
                lead.heard[shard] = state.now
        for reduced in message.reduced:
            if reduced.shard < shards and self._owner(lead, reduced.shard) == sender:
                lead.reports[reduced.shard] = reduced
                if reduced.aggregate not in state.store:  # it is under way, most likely
                    not_before = state.now + state.options.nudge_s
                    others = [] if lead.group is None else lead.group.roster.peers
                    state.store.want(message.round, reduced.aggregate, [sender, *others], not_before)
        for shard in message.failed:
            if shard < shards and self._owner(lead, shard) == sender:
                lead.failed.add(shard)

    def complete(self, lead: Lead) -> bool:
        """Every shard reduced, every aggregate here and sound. Who sent a malformed one owns no more in this round."""
        state = self._state
        if lead.group is None:
            return False
        for shard, reduced in list(lead.reports.items()):
            if reduced.aggregate in state.slot.malformed:
                lead.barred.add(self._owner(lead, shard))
                del lead.reports[shard]
                lead.heard[shard] = float("-inf")
        reported = [(shard, reduced.aggregate) for shard, reduced in sorted(lead.reports.items())]
        roster = lead.group.roster
        sound = checking.usable(state, roster.round, roster.fragment, reported)
        return sound and len(reported) == len(lead.group.owners)

    def hopeless(self, lead: Lead) -> bool:
        """An owner says that nothing it received could count: nobody else would fare better."""
        return bool(lead.failed)

    def decision(self, lead: Lead) -> Decision:
        state, group = self._state, lead.group
        assert group is not None
        results = tuple(
            ShardResult(group.owners[shard], report.aggregate, report.residual, report.arrived, report.refused)
            for shard, report in sorted(lead.reports.items())
        )
        history = state.history
        excluded = tuple(sorted({*history.excluded, *state.convicted}))
        disowned = tuple(sorted({*history.disowned, *state.silent}))
        value = Done(state.slot.round, history.basis, state.slot.name, results, excluded, disowned)
        return Decision(value, group.roster)

    def quiet_owners(self, lead: Lead) -> list[PeerId]:
        """Owners of shards not reduced yet that have not shown life since the group was last sent."""
        quiet_since = self._state.now - self._state.options.resend_s
        return sorted(
            {
                self._owner(lead, shard)
                for shard, heard in lead.heard.items()
                if not self._has(lead, shard) and heard <= quiet_since
            }
        )

    def replace_silent_owners(self, lead: Lead) -> bool:
        """Give their shards to others, which start with an empty residual. returns: whether there were any"""
        state, group = self._state, lead.group
        if group is None:
            return False
        silent = {
            self._owner(lead, shard)
            for shard, heard in lead.heard.items()
            if not self._has(lead, shard) and self._is_silent(self._owner(lead, shard), heard)
        } - {state.me}
        silent |= self._note_idle(lead)
        if not silent:
            return False
        lead.barred |= silent
        current = [self._owner(lead, shard) for shard in range(len(group.owners))]
        kept: list[PeerId | None] = [None if peer in lead.barred else peer for peer in current]
        lead.reports = {shard: report for shard, report in lead.reports.items() if self._has(lead, shard)}
        for shard in [s for s in lead.reports if kept[s] is None]:
            kept[shard] = self._owner(lead, shard)  # it has reduced this one, and we hold it
        return self._assign(lead, group.roster, kept, group.ballot, group.version + 1)

    def holds(self, decision: Decision) -> bool:
        """Whether every aggregate of the decision is here and sound."""
        value, roster = decision.value, decision.roster
        if not isinstance(value, Done) or roster is None:
            return True
        return checking.usable(self._state, value.round, roster.fragment, checking.aggregates_of(value))

    def want(self, decision: Decision, holders: Sequence[PeerId]) -> None:
        checking.want(self._state, decision, holders)

    def _previous_owners(self, roster: Roster) -> list[PeerId | None]:
        """Of the group before us in this round, whose owners have uploads already; else who holds the residuals."""
        state, earlier = self._state, self._state.slot.group
        shards = len(state.spec.sharding(roster.fragment).bounds())
        if earlier is not None and earlier.roster == roster and len(earlier.owners) == shards:
            previous: list[PeerId | None] = [roster.members[owner].peer for owner in earlier.owners]
        else:
            held = [state.history.holders.get((roster.fragment, shard)) for shard in range(shards)]
            nonces = {(m.peer, m.nonce) for m in roster.members}
            previous = [h.peer if h is not None and (h.peer, h.nonce) in nonces else None for h in held]
        return [None if peer is None or not self._may_own(peer) else peer for peer in previous]

    def _may_own(self, peer: PeerId) -> bool:
        state = self._state
        barred = peer in state.history.disowned or peer in state.silent or bool(state.out(peer))
        return not barred and peer not in state.lost

    def _assign(
        self, lead: Lead, roster: Roster, previous: Sequence[PeerId | None], ballot: Ballot, version: int
    ) -> bool:
        """returns: whether somebody could be found"""
        state = self._state
        allowed = tuple(peer for peer in roster.peers if self._may_own(peer) and peer not in lead.barred)
        allowed = allowed or tuple(peer for peer in roster.peers if peer not in lead.barred)
        if not allowed:
            return False
        chosen = owners(state.run, len(previous), allowed, tuple(previous))
        chosen = tuple(
            before if shard in lead.reports and before is not None else after
            for shard, (before, after) in enumerate(zip(previous, chosen, strict=True))
        )
        index = {peer: i for i, peer in enumerate(roster.peers)}
        old = lead.group
        lead.group = Group(ballot, version, state.history.basis, roster, tuple(index[peer] for peer in chosen))
        for shard, owner in enumerate(lead.group.owners):
            if old is None or old.owners[shard] != owner:
                lead.heard[shard] = lead.given[shard] = state.now
        return True

    def _note_idle(self, lead: Lead) -> set[PeerId]:
        """Owners that show life and reduce nothing, while half of the shards came in half of the time that there was.

        Such a one owns no more shards: else each round would take half a deadline. Where uploads are slow for all,
        nobody has come so far by then.
        """
        state = self._state
        found: set[PeerId] = set()
        if 2 * sum(self._has(lead, shard) for shard in lead.given) < len(lead.given):
            return found
        for shard, since in lead.given.items():
            peer = self._owner(lead, shard)
            late = state.now - since > (state.slot.deadline - since) / 2
            if late and not self._has(lead, shard) and peer not in found:
                found.add(peer)
                state.silent.add(peer)
                state.report(LiarNamed(state.slot.round, shard, peer, lied=False, reason="it reduced nothing in time"))
        return found

    def _has(self, lead: Lead, shard: int) -> bool:
        """A report without the aggregate is worth nothing once its owner is gone."""
        report = lead.reports.get(shard)
        return report is not None and report.aggregate in self._state.store

    def _owner(self, lead: Lead, shard: int) -> PeerId:
        assert lead.group is not None
        return lead.group.roster.members[lead.group.owners[shard]].peer

    def _is_silent(self, peer: PeerId, heard: float) -> bool:
        state = self._state
        patience_s = state.options.resend_s if peer in state.lost else state.options.owner_silence_s
        return state.now - heard > patience_s
