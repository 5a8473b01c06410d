"""Auditors and jurors: repeat what an owner did, accuse, judge, and know whom the jurors named.

The auditor that finds a fault sends its evidence to the jurors, who repeat the check with contributions that they fetch
themselves, and tell everybody. Who is named by a majority of the jurors is out: the owner that lied, or the auditor
whose evidence holds and shows nothing. Leaders leave it out of the next group and write it into the next decision.
"""

from dataclasses import dataclass, field

from shoal.swarm.identifiers import PeerId

from .audit import Audited, AuditJob, Draw, draw_of, draws
from .ballots import majority
from .commitments import is_committed
from .decisions import Decision, Done, digest, indices
from .events import AuditPassed, LiarNamed
from .history import Holder
from .messages import Accusation, AskResidual, Residual, Upload, Verdict, Want
from .peer_state import PeerState

KEPT_ROUNDS = 2
TRIES = 4  # requests for a residual, before its owner counts as silent


@dataclass(slots=True)
class _Inquiry:
    """One check under way. accuser: None for the auditor's own; silence: accused of showing nothing, not of a fault"""

    decision: Decision
    draw: Draw
    before: Holder | None
    accuser: PeerId | None
    evidence: Residual | None = None
    uploads: dict[PeerId, Upload] = field(default_factory=dict)
    silence: bool = False
    tries: int = 0
    asked_at: float = float("-inf")
    running: bool = False
    over: bool = False


class Auditor:
    def __init__(self, state: PeerState) -> None:
        self._state = state
        self._inquiries: dict[tuple[int, int, bool], _Inquiry] = {}  # round, shard, whether as a juror
        self._verdicts: dict[tuple[int, int, PeerId, bool], set[PeerId]] = {}  # ... culprit, lied: by which jurors
        self._before: dict[int, tuple[bool, dict[int, Holder]]] = {}  # residuals before a round; whether all are known

    def on_settled(self, decision: Decision) -> None:
        """To be called before the history learns the decision: the residuals before it are still known."""
        state, value, roster = self._state, decision.value, decision.roster
        if not isinstance(value, Done) or roster is None:
            return
        history = state.history
        founded = history.founded or not value.basis
        held = {s: h for s in range(len(value.shards)) if (h := history.holders.get((roster.fragment, s))) is not None}
        self._before[value.round] = (founded, held)
        oldest = value.round - KEPT_ROUNDS + 1
        self._before = {r: kept for r, kept in self._before.items() if r >= oldest}
        self._inquiries = {key: inquiry for key, inquiry in self._inquiries.items() if key[0] >= oldest}
        self._verdicts = {key: jurors for key, jurors in self._verdicts.items() if key[0] >= oldest}
        for draw in draws(state.spec, decision, state.options.audit_share):
            if draw.auditor == state.me:
                self._open(decision, draw, None)

    def tick(self) -> None:
        for inquiry in list(self._inquiries.values()):
            self._pursue(inquiry)

    def on_residual(self, sender: PeerId, message: Residual) -> None:
        for as_juror in (False, True):
            inquiry = self._inquiries.get((message.round, message.shard, as_juror))
            if inquiry is None or inquiry.evidence is not None or message.unit != inquiry.draw.unit:
                continue
            if self._owner(inquiry) == sender:
                inquiry.evidence = message
                self._pursue(inquiry)

    def on_upload(self, message: Upload) -> None:
        for as_juror in (False, True):
            inquiry = self._inquiries.get((message.round, message.shard, as_juror))
            if inquiry is not None and message.contributor in self._arrived(inquiry) and self._committed(message):
                inquiry.uploads[message.contributor] = message
                self._pursue(inquiry)

    def on_accusation(self, sender: PeerId, message: Accusation) -> None:
        """Open an inquiry of our own when we are a juror of that shard."""
        state = self._state
        decision = state.history.decisions.get(message.round)
        if decision is None or not isinstance(decision.value, Done) or decision.roster is None:
            return
        bounds = state.spec.sharding(decision.roster.fragment).bounds()
        if message.shard >= len(bounds) or (message.round, message.shard, True) in self._inquiries:
            return
        start, stop = bounds[message.shard]
        draw = draw_of(state.spec, decision, digest(decision.value), message.shard, stop - start)
        if sender == draw.auditor and state.me in draw.jurors and message.unit == draw.unit:
            inquiry = self._open(decision, draw, sender)
            if inquiry is not None:
                inquiry.evidence, inquiry.silence = message.evidence, message.evidence is None
                self._pursue(inquiry)

    def on_verdict(self, sender: PeerId, message: Verdict) -> None:
        state = self._state
        decision = state.history.decisions.get(message.round)
        if decision is None or not isinstance(decision.value, Done) or decision.roster is None:
            return
        bounds = state.spec.sharding(decision.roster.fragment).bounds()
        if message.shard >= len(bounds):
            return
        start, stop = bounds[message.shard]
        draw = draw_of(state.spec, decision, digest(decision.value), message.shard, stop - start)
        owner = decision.roster.members[decision.value.shards[message.shard].owner].peer
        if sender not in draw.jurors or message.culprit not in (owner, draw.auditor):
            return
        jurors = self._verdicts.setdefault((message.round, message.shard, message.culprit, message.lied), set())
        jurors.add(sender)
        if len(jurors) == majority(len(draw.jurors)):
            if message.lied:
                state.convicted[message.culprit] = f"{message.reason} (shard {message.shard}, round {message.round})"
            else:
                state.silent.add(message.culprit)
            state.report(LiarNamed(message.round, message.shard, message.culprit, message.lied, message.reason))

    def on_audited(self, audited: Audited) -> None:
        job = audited.job
        for as_juror in (False, True):
            inquiry = self._inquiries.get((job.round, job.evidence.shard, as_juror))
            if inquiry is None or inquiry.over or inquiry.evidence is not job.evidence:
                continue
            inquiry.running = False
            if audited.unproven and inquiry.accuser is None:
                inquiry.evidence = None  # what the owner showed proves nothing; the next try may
                inquiry.asked_at = self._state.now
            elif inquiry.accuser is None:
                self._end_audit(inquiry, audited.fault)
            else:
                self._end_trial(inquiry, audited)

    def _open(self, decision: Decision, draw: Draw, accuser: PeerId | None) -> _Inquiry | None:
        """Nothing is opened where the residual before the round is not known for certain."""
        assert isinstance(decision.value, Done)
        assert decision.roster is not None
        founded, held = self._before.get(decision.value.round, (False, {}))
        holder = held.get(draw.shard)
        if holder is None and not founded:
            return None
        owner = decision.roster.members[decision.value.shards[draw.shard].owner]
        if holder is not None and (holder.peer, holder.nonce) != (owner.peer, owner.nonce):
            holder = None  # another owner: it had to start with an empty residual
        inquiry = _Inquiry(decision, draw, holder, accuser)
        self._inquiries[decision.value.round, draw.shard, accuser is not None] = inquiry
        self._pursue(inquiry)
        return inquiry

    def _pursue(self, inquiry: _Inquiry) -> None:
        state, decision = self._state, inquiry.decision
        if inquiry.over or inquiry.running:
            return
        missing = [peer for peer in self._arrived(inquiry) if peer not in inquiry.uploads]
        if not missing and inquiry.evidence is not None:
            self._run(inquiry)
            return
        if state.now - inquiry.asked_at < 2 * state.options.resend_s:
            return
        inquiry.asked_at = state.now
        inquiry.tries += 1
        round_, shard, owner = decision.value.round, inquiry.draw.shard, self._owner(inquiry)
        if inquiry.evidence is None:
            if inquiry.tries > TRIES:
                self._give_up(inquiry)
                return
            state.send(owner, AskResidual(round_, shard, inquiry.draw.unit))
        for peer in missing:
            if inquiry.tries <= 2 and peer not in state.lost:
                state.send(peer, Want(round_, (shard,), ()))
        if missing and inquiry.tries > 1:
            state.send(owner, Want(round_, (shard,), tuple(missing)))
        inquiry.over = inquiry.tries > 2 * TRIES  # contributors gone and the owner too: nothing to be known

    def _run(self, inquiry: _Inquiry) -> None:
        state, decision, draw = self._state, inquiry.decision, inquiry.draw
        value, roster = decision.value, decision.roster
        assert isinstance(value, Done)
        assert roster is not None
        assert inquiry.evidence is not None
        result = value.shards[draw.shard]
        aggregate = state.store.get(result.aggregate)
        if aggregate is None:
            return  # it is being fetched; the next tick tries again
        inquiry.running = True
        members = {member.peer: member for member in roster.members}
        contributions = tuple(
            (peer, members[peer].tokens, inquiry.uploads[peer].payload) for peer in sorted(self._arrived(inquiry))
        )
        state.run_job(
            AuditJob(
                state.spec,
                value.round,
                roster.fragment,
                result,
                inquiry.evidence,
                None if inquiry.before is None else inquiry.before.root,
                contributions,
                roster.peers,
                aggregate,
            )
        )

    def _end_audit(self, inquiry: _Inquiry, fault: str) -> None:
        inquiry.over = True
        round_, draw = inquiry.decision.value.round, inquiry.draw
        if not fault:
            self._state.report(AuditPassed(round_, draw.shard, self._owner(inquiry)))
            return
        for juror in draw.jurors:
            self._state.send(juror, Accusation(round_, draw.shard, draw.unit, inquiry.evidence))

    def _end_trial(self, inquiry: _Inquiry, audited: Audited) -> None:
        """The owner, when the fault is there; the accuser, when its evidence shows none, or proves nothing."""
        if audited.fault:
            self._tell(inquiry, self._owner(inquiry), True, audited.fault)
        elif inquiry.silence:
            inquiry.over = not audited.unproven  # the owner has answered us, and rightly
            inquiry.evidence = None if audited.unproven else inquiry.evidence
        else:
            assert inquiry.accuser is not None
            self._tell(inquiry, inquiry.accuser, True, audited.unproven or "it accused an owner of what it did not do")

    def _give_up(self, inquiry: _Inquiry) -> None:
        """The owner shows nothing. If it is gone that is nobody's fault; if it answers nobody, it owns no more."""
        inquiry.over = True
        round_, draw, owner = inquiry.decision.value.round, inquiry.draw, self._owner(inquiry)
        if owner in self._state.lost or not self._state.present(owner):
            return
        if inquiry.accuser is None:
            for juror in draw.jurors:
                self._state.send(juror, Accusation(round_, draw.shard, draw.unit, None))
        else:
            self._tell(inquiry, owner, False, "it does not show its residual")

    def _tell(self, inquiry: _Inquiry, culprit: PeerId, lied: bool, reason: str) -> None:
        inquiry.over = True
        assert inquiry.decision.roster is not None
        verdict = Verdict(inquiry.decision.value.round, inquiry.draw.shard, culprit, lied, reason)
        for peer in inquiry.decision.roster.peers:
            self._state.send(peer, verdict)

    def _owner(self, inquiry: _Inquiry) -> PeerId:
        value, roster = inquiry.decision.value, inquiry.decision.roster
        assert isinstance(value, Done)
        assert roster is not None
        return roster.members[value.shards[inquiry.draw.shard].owner].peer

    def _arrived(self, inquiry: _Inquiry) -> list[PeerId]:
        value, roster = inquiry.decision.value, inquiry.decision.roster
        assert isinstance(value, Done)
        assert roster is not None
        return [roster.peers[i] for i in indices(value.shards[inquiry.draw.shard].arrived, len(roster.members))]

    def _committed(self, message: Upload) -> bool:
        state = self._state
        decision = state.history.decisions[message.round]
        assert decision.roster is not None
        root = next(m.root for m in decision.roster.members if m.peer == message.contributor)
        shards = len(state.spec.sharding(decision.roster.fragment).bounds())
        return is_committed(
            state.run,
            message.round,
            decision.roster.fragment,
            message.contributor,
            root,
            shards,
            message.shard,
            message.payload,
            message.path,
        )
