"""The leader's part: gather who is ready, fix the group, see that every shard gets reduced, and have it decided.

The group must hold a majority of those who vote: the members of the last round that happened, less those that are gone
for good. Before the first such round all that the directory lists vote.
"""

import math

from shoal.swarm.identifiers import PeerId

from .ballots import Ballot, bound_to
from .decisions import Decision, Roster, Skip, digest
from .electorate import awaited, electorate, needed, votes
from .gathering import Gathered, gathered
from .messages import (
    Accept,
    Astray,
    Barred,
    Decided,
    Gathering,
    Nack,
    Prepare,
    Progress,
    Promise,
    Propose,
    Ready,
)
from .peer_state import BID, PeerState
from .slot import Lead
from .stewardship import Stewardship

HOLDERS_NAMED = 8
SHOWN_STAGES = {"preparing": "gathering", "fetching": "proposing"}  # to those who need not know how leaders change


class Leader:
    def __init__(self, state: PeerState) -> None:
        self._state = state
        self._steward = Stewardship(state)

    def on_ready(self, sender: PeerId, ready: Ready) -> None:
        state, slot = self._state, self._state.slot
        reason = state.out(sender)
        if reason:
            state.send(sender, Barred(slot.round, reason))
            return
        slot.readies[sender] = ready
        state.restarted(sender, ready.nonce)
        if state.leader_at(ready.attempt) == state.me:
            self._start(ready.attempt)
        lead = slot.lead
        if lead is not None:
            state.send(sender, self._sign_of_life(lead))
            if lead.group is not None and sender in lead.group.roster.index:
                state.send(sender, lead.group)
            lead.missing.discard(sender)
            if not lead.missing:
                self.advance()

    def on_coming(self, sender: PeerId) -> None:
        """A newcomer, or one that missed the last round: without this it would come a moment too late for ever."""
        if not self._state.out(sender):
            self._state.slot.coming.add(sender)

    def tick(self) -> None:
        state, lead = self._state, self._state.slot.lead
        if lead is None:
            return
        if state.now - lead.beat_at >= state.options.resend_s:
            lead.beat_at = state.now
            if lead.stage == "preparing":
                lead.found = self._gathered()
            sign = self._sign_of_life(lead)
            for peer in self._participants(lead):
                state.send(peer, sign)
        if state.now - lead.said_at >= state.options.resend_s:
            self._say(lead, again=True)
        self.advance()

    def advance(self) -> None:
        """Do whatever has become possible."""
        state, slot, lead = self._state, self._state.slot, self._state.slot.lead
        if lead is None:
            return
        if lead.stage == "preparing" and votes(state, lead.promises) >= needed(state, lead):
            lead.stage = "gathering"
            promised = [promise.accepted for promise in lead.promises.values() if promise.accepted is not None]
            bound = bound_to((p.ballot, Decision(p.value, p.roster)) for p in promised)
            if bound is not None:
                holders = [peer for peer, promise in lead.promises.items() if promise.accepted is not None]
                self._steward.want(bound, holders)
                lead.decision, lead.stage, lead.began_at = bound, "fetching", state.now
        if lead.stage == "fetching" and lead.decision is not None:
            if self._steward.holds(lead.decision):
                self._propose(lead, lead.decision)
            elif state.now - lead.began_at > 2 * state.options.owner_silence_s:
                self.stand_down()  # whoever held it is gone; others may know more
                return
        if lead.stage == "gathering":
            self._gather(lead)
        if lead.stage == "reducing":
            if state.now > slot.deadline or self._steward.hopeless(lead):
                self._propose(lead, Decision(Skip(slot.round, state.history.basis), None))
            elif self._steward.complete(lead):
                self._propose(lead, self._steward.decision(lead))
            elif self._steward.replace_silent_owners(lead):
                self._say(lead)
        if lead.stage == "proposing":
            self._decide(lead)  # those whose votes are missing may be forgotten by now

    def on_promise(self, sender: PeerId, promise: Promise) -> None:
        lead = self._state.slot.lead
        if lead is not None and lead.ballot == promise.ballot:
            lead.promises[sender] = promise
            self.advance()

    def on_nack(self, message: Nack) -> None:
        """Somebody else leads under a higher ballot. Before the first round it may only have thought so, until it knew
        the others: then whoever promised it that would refuse us for ever, if we did not bid higher.
        """
        state, slot, lead = self._state, self._state.slot, self._state.slot.lead
        if lead is None or message.promised <= lead.ballot:
            return
        attempt = state.attempt_of(message.promised)
        self.stand_down()
        if state.founding and attempt <= lead.attempt:
            slot.bids = message.promised.number // BID + 1
            self._start(lead.attempt)
        else:
            slot.attempt = max(slot.attempt, attempt)

    def stand_down(self) -> None:
        self._state.slot.lead = None

    def on_progress(self, sender: PeerId, message: Progress) -> None:
        lead = self._state.slot.lead
        if lead is not None and lead.group is not None and message.roster == self._state.slot.name:
            self._steward.on_progress(lead, sender, message)
            self.advance()

    def on_accept(self, sender: PeerId, message: Accept) -> None:
        lead = self._state.slot.lead
        if lead is None or lead.stage != "proposing" or message.ballot != lead.ballot:
            return
        lead.accepts.add(sender)
        self._decide(lead)

    def repeat_proposal(self, peer: PeerId) -> None:
        """With the roster, for somebody who lacks it."""
        lead = self._state.slot.lead
        if lead is not None and lead.stage == "proposing" and lead.decision is not None:
            self._state.send(
                peer, Propose(self._state.slot.round, lead.ballot, lead.decision.value, lead.decision.roster)
            )

    def _start(self, attempt: int) -> None:
        state, slot = self._state, self._state.slot
        ballot = Ballot(attempt + state.first_number + slot.bids * BID, state.me)
        if (slot.lead is not None and slot.lead.ballot >= ballot) or not slot.acceptor.allows(ballot):
            return
        slot.lead = Lead(ballot, attempt, state.now, "preparing" if ballot.number else "gathering")
        self._say(slot.lead)

    def _gather(self, lead: Lead) -> None:
        """Close the group: with everybody who is there, or when the grace is over."""
        state, slot = self._state, self._state.slot
        if slot.group is not None:  # a leader before us fixed the members; they have committed, some have uploaded
            self._fix(lead, slot.group.roster)
            return
        found = lead.found = self._gathered()
        if found is None or not self._suffices(lead, found):
            lead.quorum_at = math.inf
            lead.missing = awaited(state) - slot.readies.keys()
            return
        lead.quorum_at = min(lead.quorum_at, state.now)
        peers = {member.peer for member in found.members}
        lead.missing = awaited(state) - peers - set(found.astray)
        looked_around = not state.founding or state.now - lead.began_at >= state.options.founding_s
        if looked_around and (not lead.missing or state.now >= lead.quorum_at + state.spec.grace_s):
            for peer in found.astray:
                state.send(peer, Astray(slot.round, tuple(sorted(peers)[:HOLDERS_NAMED])))
            self._fix(lead, found.roster(slot.round))

    def _gathered(self) -> Gathered | None:
        state = self._state
        readies = {peer: ready for peer, ready in state.slot.readies.items() if not state.out(peer)}
        voters = None if state.founding else {(v.peer, v.nonce) for v in state.history.voters}
        return gathered(readies, voters)

    def _suffices(self, lead: Lead, found: Gathered) -> bool:
        """Enough members, and a majority of the votes among them."""
        state = self._state
        return len(found.members) >= state.spec.quorum and found.voters >= needed(state, lead)

    def _fix(self, lead: Lead, roster: Roster) -> None:
        state = self._state
        lead.stage = "reducing"
        state.slot.deadline = min(state.slot.deadline, state.now + state.spec.deadline_s)
        self._steward.begin(lead, roster)
        self._say(lead)

    def _decide(self, lead: Lead) -> None:
        """Once a majority has accepted it is so, whoever dies now; tell everybody."""
        state = self._state
        if lead.decision is None or state.decided is not None or votes(state, lead.accepts) < needed(state, lead):
            return
        state.decided = lead.decision
        news = Decided(state.slot.round, digest(lead.decision.value))
        for peer in sorted({*self._participants(lead), *electorate(state)}):
            if peer != state.me:
                state.send(peer, news)

    def _propose(self, lead: Lead, decision: Decision) -> None:
        lead.stage, lead.decision = "proposing", decision
        self._say(lead)

    def _say(self, lead: Lead, again: bool = False) -> None:
        """What the stage is about, to those whom it concerns; again: to those who have not answered."""
        state, slot = self._state, self._state.slot
        lead.said_at = state.now
        match lead.stage:
            case "preparing":
                for peer in electorate(state):
                    if peer not in lead.promises:
                        state.send(peer, Prepare(slot.round, lead.ballot, state.history.basis))
            case "reducing" if lead.group is not None:
                for peer in self._steward.quiet_owners(lead) if again else lead.group.roster.peers:
                    state.send(peer, lead.group)
            case "proposing" if lead.decision is not None:
                knowing = () if lead.group is None or again else lead.group.roster.peers
                for peer in electorate(state):
                    if peer not in lead.accepts:
                        roster = None if peer in knowing else lead.decision.roster
                        state.send(peer, Propose(slot.round, lead.ballot, lead.decision.value, roster))
            case _:
                return

    def _sign_of_life(self, lead: Lead) -> Gathering:
        state = self._state
        match lead.stage:
            case "reducing":
                ready, most = len(lead.reports), 0 if lead.group is None else len(lead.group.owners)
            case "proposing":
                ready, most = votes(state, lead.accepts), needed(state, lead)
            case _:
                found = lead.found
                ready = 0 if found is None else len(found.members)
                missing_votes = needed(state, lead) - (0 if found is None else found.voters)
                most = max(state.spec.quorum, ready + max(0, missing_votes))
        return Gathering(state.slot.round, lead.ballot, ready, most, SHOWN_STAGES.get(lead.stage, lead.stage))

    def _participants(self, lead: Lead) -> list[PeerId]:
        members = () if lead.group is None else lead.group.roster.peers
        return sorted({*self._state.slot.readies, *members})
