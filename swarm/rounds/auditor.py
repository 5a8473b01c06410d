"""Auditors and jurors: repeat what an owner did, accuse, judge.

The auditor that finds a fault sends its evidence to the jurors, who repeat the check with contributions that they fetch
themselves, and tell everybody. Who is named by a majority of the jurors is out: the owner that lied, or the auditor
whose evidence holds and shows nothing. Leaders leave it out of the next group and write it into the next decision.
"""

from dataclasses import dataclass

from shoal.swarm.identifiers import PeerId

from .audit import Audited, Draw, draws
from .audit_messages import Accusation, AskResidual, Residual, Verdict
from .decisions import Decision, Done
from .events import AuditPassed
from .history import Holder
from .inquiry import Inquiry
from .messages import Upload, Want
from .peer_state import PeerState
from .verdicts import Verdicts, drawn

KEPT_ROUNDS = 2  # as long as owners keep what they can show
TRIES = 4  # requests for a residual, before its owner counts as silent


@dataclass(frozen=True, slots=True)
class _Before:
    """Whose residuals the shards had before a round. complete: a shard without a holder surely had none"""

    complete: bool
    holders: dict[int, Holder]


class Auditor:
    def __init__(self, state: PeerState) -> None:
        self.verdicts = Verdicts(state)
        self._state = state
        self._inquiries: dict[tuple[int, int, bool], Inquiry] = {}  # round, shard, whether as a juror
        self._before: dict[int, _Before] = {}

    def on_settled(self, decision: Decision) -> None:
        """To be called before the history learns the decision: the residuals before it are still known."""
        state, value, roster = self._state, decision.value, decision.roster
        if not isinstance(value, Done) or roster is None:
            return
        history = state.history
        held = {s: h for s in range(len(value.shards)) if (h := history.holders.get((roster.fragment, s))) is not None}
        self._before[value.round] = _Before(history.founded or not value.basis, held)
        oldest = value.round - KEPT_ROUNDS + 1
        self._before = {round_: kept for round_, kept in self._before.items() if round_ >= oldest}
        self._inquiries = {key: inquiry for key, inquiry in self._inquiries.items() if key[0] >= oldest}
        self.verdicts.forget(oldest)
        for draw in draws(state.spec, decision, state.options.audit_share):
            if draw.auditor == state.me:
                self._open(decision, draw, None)

    def tick(self) -> None:
        for inquiry in list(self._inquiries.values()):
            self._pursue(inquiry)

    def on_residual(self, sender: PeerId, message: Residual) -> None:
        for inquiry in self._about(message.round, message.shard):
            if inquiry.evidence is None and message.unit == inquiry.draw.unit and inquiry.owner == sender:
                inquiry.evidence = message
                self._pursue(inquiry)

    def on_upload(self, message: Upload) -> None:
        for inquiry in self._about(message.round, message.shard):
            if inquiry.take(self._state.run, self._state.spec, message):
                self._pursue(inquiry)

    def on_accusation(self, sender: PeerId, message: Accusation) -> None:
        """Open an inquiry of our own when we are a juror of that shard."""
        state = self._state
        decision = state.history.decisions.get(message.round)
        draw = drawn(state, decision, message.shard)
        if decision is None or draw is None or (message.round, message.shard, True) in self._inquiries:
            return
        if sender == draw.auditor and state.me in draw.jurors and message.unit == draw.unit:
            inquiry = self._open(decision, draw, sender)
            if inquiry is not None:
                inquiry.evidence, inquiry.silence = message.evidence, message.evidence is None
                self._pursue(inquiry)

    def on_audited(self, audited: Audited) -> None:
        job = audited.job
        for inquiry in self._about(job.round, job.evidence.shard):
            if inquiry.over or inquiry.evidence is not job.evidence:
                continue
            inquiry.running = False
            if inquiry.accuser is not None:
                self._end_trial(inquiry, inquiry.accuser, audited)
            elif audited.unproven:
                inquiry.evidence = None  # what the owner showed proves nothing; the next try may
                inquiry.asked_at = self._state.now
            else:
                self._end_audit(inquiry, audited.fault)

    def _about(self, round_: int, shard: int) -> list[Inquiry]:
        found = (self._inquiries.get((round_, shard, as_juror)) for as_juror in (False, True))
        return [inquiry for inquiry in found if inquiry is not None]

    def _open(self, decision: Decision, draw: Draw, accuser: PeerId | None) -> Inquiry | None:
        """Nothing is opened where the residual before the round is not known for certain."""
        assert isinstance(decision.value, Done)
        assert decision.roster is not None
        before = self._before.get(decision.value.round)
        holder = None if before is None else before.holders.get(draw.shard)
        if before is None or (holder is None and not before.complete):
            return None
        owner = decision.roster.members[decision.value.shards[draw.shard].owner]
        if holder is not None and (holder.peer, holder.nonce) != (owner.peer, owner.nonce):
            holder = None  # another owner: it had to start with an empty residual
        inquiry = Inquiry(decision, draw, holder, accuser)
        self._inquiries[decision.value.round, draw.shard, accuser is not None] = inquiry
        if accuser is None:
            self._pursue(inquiry)
        return inquiry

    def _pursue(self, inquiry: Inquiry) -> None:
        """Compute when nothing is missing; else ask for it, now and then."""
        state = self._state
        if inquiry.over or inquiry.running:
            return
        missing = inquiry.missing
        if not missing and inquiry.evidence is not None:
            aggregate = state.store.get(inquiry.result.aggregate)
            if aggregate is not None:  # else it is being fetched, and the next tick tries again
                inquiry.running = True
                state.run_job(inquiry.job(state.spec, aggregate))
            return
        if state.now - inquiry.asked_at < 2 * state.options.resend_s:
            return
        inquiry.asked_at = state.now
        inquiry.tries += 1
        if inquiry.evidence is None:
            if inquiry.tries > TRIES:
                self._give_up(inquiry)
                return
            state.send(inquiry.owner, AskResidual(inquiry.round, inquiry.draw.shard, inquiry.draw.unit))
        self._ask_for(inquiry, missing)
        inquiry.over = inquiry.tries > 2 * TRIES  # contributors gone and the owner too: nothing to be known

    def _ask_for(self, inquiry: Inquiry, contributors: list[PeerId]) -> None:
        """Their own payloads from themselves; when they do not answer, from the owner, who must have them."""
        state, shards = self._state, (inquiry.draw.shard,)
        for peer in contributors:
            if inquiry.tries <= 2 and peer not in state.lost:
                state.send(peer, Want(inquiry.round, shards, ()))
        if contributors and inquiry.tries > 1:
            state.send(inquiry.owner, Want(inquiry.round, shards, tuple(contributors)))

    def _end_audit(self, inquiry: Inquiry, fault: str) -> None:
        inquiry.over = True
        draw = inquiry.draw
        if not fault:
            self._state.report(AuditPassed(inquiry.round, draw.shard, inquiry.owner))
            return
        for juror in draw.jurors:
            self._state.send(juror, Accusation(inquiry.round, draw.shard, draw.unit, inquiry.evidence))

    def _end_trial(self, inquiry: Inquiry, accuser: PeerId, audited: Audited) -> None:
        """The owner, when the fault is there; the accuser, when its evidence shows none, or proves nothing."""
        if audited.fault:
            self._tell(inquiry, inquiry.owner, True, audited.fault)
        elif inquiry.silence:
            inquiry.over = not audited.unproven  # the owner has answered us, and rightly
            inquiry.evidence = None if audited.unproven else inquiry.evidence
        else:
            self._tell(inquiry, accuser, True, audited.unproven or "it accused an owner of what it did not do")

    def _give_up(self, inquiry: Inquiry) -> None:
        """The owner shows nothing. If it is gone that is nobody's fault; if it answers nobody, it owns no more."""
        inquiry.over = True
        draw = inquiry.draw
        if inquiry.owner in self._state.lost or not self._state.present(inquiry.owner):
            return
        if inquiry.accuser is None:
            for juror in draw.jurors:
                self._state.send(juror, Accusation(inquiry.round, draw.shard, draw.unit, None))
        else:
            self._tell(inquiry, inquiry.owner, False, "it does not show its residual")

    def _tell(self, inquiry: Inquiry, culprit: PeerId, lied: bool, reason: str) -> None:
        inquiry.over = True
        verdict = Verdict(inquiry.round, inquiry.draw.shard, culprit, lied, reason)
        for peer in inquiry.roster.peers:
            self._state.send(peer, verdict)
