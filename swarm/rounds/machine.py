"""The outer round as a machine without I/O and without a clock: `handle(event, now)` returns what is to be done.

A round runs so: peers that are ready commit to their payloads; the leader fixes the group; members upload each shard to
its owner; owners push aggregates to all; the voters accept what the leader proposes once they hold every aggregate; the
leader says that it is decided. A peer that missed something asks. Rounds are decided one after another, each by those
who took part in the last one that happened; what is decided never changes. Reducers and contributors may lie and are
found out; leaders may die or be slow at any moment, but are taken not to forge decisions.
"""

import random
from collections.abc import Sequence
from typing import assert_never

from shoal.swarm.errors import Refused, ShoalError, VersionMismatch
from shoal.swarm.identifiers import PeerId

from . import checking
from .audit import Audited
from .auditor import Auditor
from .contributor import Contributor
from .decisions import Decision, Done, contributors
from .events import (
    Effect,
    Event,
    Finish,
    JobResult,
    Listed,
    Lost,
    Mismatched,
    Offered,
    Ran,
    Received,
    RoundOptions,
    Ticked,
    Withdrawn,
)
from .exchange import Offer, Outcome, OutOfStep, RoundSkipped, RunSpec
from .history import History
from .leader import Leader
from .learner import Learner
from .owner import Owner
from .peer_state import PeerState
from .reducing import Checked, Reduction
from .routing import Routes
from .slot import Slot
from .voter import Voter

HOLDERS_NAMED = 8


class RoundMachine:
    """first_round: the one that the trainer will offer first; a run begins with 0."""

    def __init__(
        self,
        me: PeerId,
        spec: RunSpec,
        first_round: int = 0,
        options: RoundOptions | None = None,
        generator: random.Random | None = None,
        now: float = 0.0,
    ) -> None:
        self.state = PeerState(
            me,
            spec,
            options or RoundOptions(),
            generator or random.Random(),
            History(first_round - 1),
            Slot(first_round, now),
            now=now,
            began_at=now,
        )
        self.contributor = Contributor(self.state)
        self.leader = Leader(self.state)
        self.owner = Owner(self.state)
        self.voter = Voter(self.state)
        self.auditor = Auditor(self.state)
        self.learner = Learner(self.state)
        self._routes = Routes(self)
        self._mismatched: dict[PeerId, str] = {}
        self._offered_at = now

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """now: seconds of any clock that does not go back"""
        state = self.state
        state.now, state.effects = now, []
        match event:
            case Received(sender, message):
                state.heard(sender)
                self._routes.receive(sender, message)
            case Ticked():
                self._tick()
            case Offered(offer):
                self._offered(offer)
            case Withdrawn():
                self.contributor.offer = None
            case Listed(peers):
                state.listed = frozenset(peers) - self._mismatched.keys() - {state.me}
            case Lost(peer):
                state.lost.add(peer)
            case Mismatched(peer, differences):
                self._mismatched[peer] = differences
                state.listed -= {peer}
            case Ran(result):
                self._ran(result)
            case _:
                assert_never(event)
        self._settle_all()
        return state.effects

    def adopt(self, settled: int, decision: Decision) -> None:
        """Take over the run's past from others. What we had reduced and voted before does not belong to it."""
        state = self.state
        newcomer = state.founding
        state.history.start_over(settled)
        state.history.learn(decision)
        if not newcomer:
            state.draw_nonce()
            self.owner.lose_residuals()
        state.slot = Slot(state.history.settled + 1, state.now)
        offer = self.contributor.offer
        if offer is None:
            return
        if offer.round == state.slot.round:
            self.contributor.take(offer)
        else:
            self._finish(self._out_of_step())

    def finish_astray(self, holders: Sequence[PeerId]) -> None:
        """The group is at another state than our offer."""
        if self.contributor.waits:
            round_ = self.state.slot.round
            self._finish(OutOfStep(f"the group of round {round_} is at another state", round_, holders))

    def finish_barred(self, reason: str) -> None:
        if self.contributor.waits:
            self._finish(Refused(f"this peer was left out of the run: {reason}"))

    def _offered(self, offer: Offer) -> None:
        state = self.state
        self._offered_at = state.now
        self.contributor.offer = offer
        if offer.round > state.slot.round:  # the trainer has caught up by other means
            state.history.start_over(offer.round - 1)
            state.draw_nonce()
            self.owner.lose_residuals()
            state.slot = Slot(offer.round, state.now)
        if offer.round == state.slot.round:
            self.contributor.take(offer)
        elif state.history.happened_after(offer.round):
            self._finish(self._out_of_step())
        else:
            self._finish_when_complete()

    def _tick(self) -> None:
        state = self.state
        offer = self.contributor.offer
        self.learner.tick(self.contributor.waits, offer is not None and not self.contributor.waits)
        self.contributor.tick()
        self.leader.tick()
        self.owner.tick()
        self.auditor.tick()
        self._tell_mismatch()
        patience_s = state.options.nudge_s
        for peer, request in state.store.requests(state.now, patience_s, state.me, state.lost, state.generator):
            state.send(peer, request)

    def _ran(self, result: JobResult) -> None:
        match result:
            case Reduction():
                self.owner.on_reduction(result)
            case Checked():
                checking.on_checked(self.state, result)
            case Audited():
                self.auditor.on_audited(result)
            case _:
                assert_never(result)
        self.voter.advance()
        self.leader.advance()

    def _settle_all(self) -> None:
        """Messages to ourselves, and what they decide, until nothing is left."""
        state = self.state
        while True:
            if state.decided is not None:
                decision, state.decided = state.decided, None
                if decision.value.round == state.slot.round:
                    self._settle(decision)
            elif self.learner.adopted is not None:
                adopted, self.learner.adopted = self.learner.adopted, None
                self.adopt(*adopted)
            elif state.to_myself:
                self._routes.receive(state.me, state.to_myself.popleft())
            else:
                break
        self._finish_when_complete()

    def _settle(self, decision: Decision) -> None:
        state = self.state
        self.auditor.on_settled(decision)
        self.owner.on_settled(decision)
        state.history.learn(decision)
        kept = state.history.settled - 2
        state.store.forget(kept)
        self.contributor.forget(kept)
        checking.want(state, decision, [state.slot.leader] if state.slot.leader else [], state.now)
        before, state.slot = state.slot, Slot(state.history.settled + 1, state.now)
        if self.contributor.offer is not None and self.contributor.waits and before.round != state.slot.round:
            self.contributor.take(self.contributor.offer)

    def _finish_when_complete(self) -> None:
        state, offer = self.state, self.contributor.offer
        if offer is None or offer.round >= state.slot.round:
            return
        decision = state.history.decisions.get(offer.round)
        if decision is None:
            self._finish(self._out_of_step())
        elif not isinstance(decision.value, Done) or decision.roster is None:
            self._finish(RoundSkipped(f"round {offer.round} had no quorum in time and was skipped"))
        elif (decision.roster.fragment, decision.roster.state) != (offer.fragment, offer.state):
            self._finish(self._out_of_step())
        else:
            aggregates = [state.store.get(result.aggregate) for result in decision.value.shards]
            payloads = tuple(payload for payload in aggregates if payload is not None)
            if len(payloads) == len(aggregates):
                self._finish(Outcome(offer.round, offer.fragment, payloads, contributors(decision)))
                self.contributor.begin()
            elif state.history.happened_after(offer.round):
                self._finish(self._out_of_step())

    def _finish(self, result: Outcome | ShoalError) -> None:
        offer = self.contributor.offer
        if offer is not None:
            self.contributor.offer = None
            self.state.effects.append(Finish(offer.round, result))

    def _out_of_step(self) -> OutOfStep:
        state = self.state
        known = [voter.peer for voter in state.history.voters if voter.peer != state.me]
        holders = [peer for peer in known if peer not in state.lost] or known
        round_ = state.slot.round
        return OutOfStep(f"the run is at round {round_}", round_, holders[:HOLDERS_NAMED])

    def _tell_mismatch(self) -> None:
        """Nobody trains what we train, but somebody trains something else of that name."""
        state = self.state
        if not (self._mismatched and self.contributor.waits and state.founding and state.slot.group is None):
            return
        ours = 1 + len(state.listed | state.seen.keys() - self._mismatched.keys())
        waited = state.now - self._offered_at >= state.options.founding_s
        if waited and len(self._mismatched) >= ours:
            peer, text = sorted(self._mismatched.items())[0]
            self._finish(VersionMismatch(f"{peer} trains another run named {state.spec.name!r}: {text}"))
