"""An owner's part: collect the payloads of its shards, reduce them, push the aggregates to all members.

A payload counts when it is the one that its sender committed to. What does not come is asked for; what does not come in
time is left out, as long as a majority of the group came.
"""

from shoal.swarm.identifiers import PeerId

from .audit_messages import AskResidual, Residual
from .commitments import is_committed
from .decisions import Decision, Done, Roster, bits
from .events import UpdateRefused
from .messages import Aggregate, Progress, Reduced, Upload, Want
from .peer_state import PeerState
from .reducing import ReduceJob, Reduction
from .residuals import Residuals, unit_values
from .run_identity import largest_payload_bytes

AUDITED_ROUNDS = 2  # for how long contributions and residuals of a decided round are kept


class Owner:
    def __init__(self, state: PeerState) -> None:
        self._state = state
        self.residuals = Residuals(state.spec)
        self._archive: dict[int, dict[int, dict[PeerId, Upload]]] = {}  # uploads by round and shard

    def on_upload(self, sender: PeerId, message: Upload) -> None:
        """May come before the group does; whether it is the payload committed to is checked when it is used."""
        slot = self._state.slot
        if message.contributor != sender or message.shard >= self._state.spec.shards:
            return
        if len(message.payload) > largest_payload_bytes(max(self._state.spec.fragments)):
            return
        known = slot.uploads.setdefault(message.shard, {})
        if sender not in known or known[sender].payload != message.payload:
            known[sender] = message
        self.advance()

    def on_group(self) -> None:
        self._state.slot.nudged_at = self._state.now
        self.advance()

    def advance(self) -> None:
        """Reduce each owned shard as soon as it can be, once for each set of members."""
        for shard in self._open_shards():
            self._reduce_when_complete(shard)

    def tick(self) -> None:
        state, slot = self._state, self._state.slot
        open_shards = self._open_shards()
        if open_shards and state.now - slot.nudged_at >= state.options.nudge_s:
            slot.nudged_at = state.now
            self._nudge(open_shards)
        self.advance()
        if self._owned() and state.now - slot.progress_at >= state.options.resend_s:
            self.say_progress()

    def on_reduction(self, reduction: Reduction) -> None:
        state, slot, job = self._state, self._state.slot, reduction.job
        if job.round != slot.round:
            return
        slot.reductions[job.roster, job.shard] = reduction
        for peer, reason in sorted(reduction.refused.items()):
            state.report(UpdateRefused(job.round, job.shard, peer, reason))
        if reduction.payload is not None and slot.group is not None and slot.name == job.roster:
            state.store.put(job.round, reduction.payload)
            for member in slot.group.roster.members:
                if member.peer != state.me:
                    state.send(member.peer, Aggregate(job.round, job.shard, reduction.payload))
        self.say_progress()

    def say_progress(self) -> None:
        """A sign of life to the leader, with all that is reduced."""
        state, group = self._state, self._state.slot.group
        if group is None:
            return
        state.slot.progress_at = state.now
        name = state.slot.name
        reduced, failed = [], []
        for shard in self._owned():
            reduction = state.slot.reductions.get((name, shard))
            if reduction is None:
                continue
            if reduction.payload is None:
                failed.append(shard)
            else:
                reduced.append(_report(reduction, group.roster))
        state.send(group.ballot.proposer, Progress(group.roster.round, name, tuple(reduced), tuple(failed)))

    def on_settled(self, decision: Decision) -> None:
        """Keep the residual that belongs to the aggregate that was decided, and no other."""
        state, slot, value = self._state, self._state.slot, decision.value
        if isinstance(value, Done) and decision.roster is not None:
            self._archive[value.round] = {}
            for shard, result in enumerate(value.shards):
                reduction = slot.reductions.get((value.roster, shard))
                if decision.roster.members[result.owner].peer != state.me or reduction is None:
                    self.residuals.drop(decision.roster.fragment, shard)
                    continue
                assert reduction.step is not None
                self.residuals.adopt(value.round, decision.roster.fragment, shard, reduction.step)
                self._archive[value.round][shard] = slot.uploads.get(shard, {})
        oldest = value.round - AUDITED_ROUNDS + 1
        self.residuals.forget(oldest)
        self._archive = {r: kept for r, kept in self._archive.items() if r >= oldest}

    def lose_residuals(self) -> None:
        self.residuals = Residuals(self._state.spec)

    def on_want(self, sender: PeerId, message: Want) -> None:
        """An auditor asks for others' payloads, because they do not answer."""
        roster = self._state.roster_of(message.round)
        if roster is None or sender not in roster.index:
            return
        for shard in dict.fromkeys(message.shards):
            uploads = self._archive.get(message.round, {}).get(shard, {})
            for contributor in dict.fromkeys(message.contributors):
                if contributor in uploads:
                    self._state.send(sender, uploads[contributor])

    def on_ask_residual(self, sender: PeerId, message: AskResidual) -> None:
        state = self._state
        roster = state.roster_of(message.round)
        if roster is None or sender not in roster.index:
            return
        bounds = state.spec.sharding(roster.fragment).bounds()
        if message.shard >= len(bounds):
            return
        start, stop = bounds[message.shard]
        shown = self.residuals.show(
            message.round, message.shard, message.unit, unit_values(state.spec.codec(), stop - start)
        )
        if shown is not None:
            state.send(sender, Residual(message.round, message.shard, message.unit, *shown))

    def _owned(self) -> list[int]:
        group = self._state.slot.group
        if group is None:
            return []
        peers = group.roster.peers
        return [shard for shard, owner in enumerate(group.owners) if peers[owner] == self._state.me]

    def _open_shards(self) -> list[int]:
        slot = self._state.slot
        if slot.group is None:
            return []
        name = slot.name
        return [s for s in self._owned() if (name, s) not in slot.reductions and (name, s) not in slot.reducing]

    def _reduce_when_complete(self, shard: int) -> None:
        state, slot = self._state, self._state.slot
        assert slot.group is not None
        roster, known = slot.group.roster, slot.uploads.get(shard, {})
        patient = state.now < slot.group_at + state.spec.grace_s
        if patient and len(known) + len(state.lost) < len(roster.members):
            return
        arrived = self._committed_uploads(roster, shard)
        waiting = [m.peer for m in roster.members if m.peer not in arrived and m.peer not in state.lost]
        enough = max(state.spec.quorum, len(roster.members) // 2 + 1)
        if len(arrived) < enough or (waiting and patient):
            return
        slot.reducing.add((slot.name, shard))
        holder = state.history.holders.get((roster.fragment, shard))
        if holder is None or (holder.peer, holder.nonce) != (state.me, state.nonce):
            self.residuals.drop(roster.fragment, shard)
        state.run_job(
            ReduceJob(
                state.spec,
                roster.round,
                roster.fragment,
                shard,
                slot.name,
                tuple((m.peer, m.tokens, arrived[m.peer].payload) for m in roster.members if m.peer in arrived),
                self.residuals.of(roster.fragment, shard),
            )
        )

    def _committed_uploads(self, roster: Roster, shard: int) -> dict[PeerId, Upload]:
        """Those that are what their senders committed to; the others are dropped."""
        state, known = self._state, self._state.slot.uploads.get(shard, {})
        checked = state.slot.verified
        arrived = {}
        for member in roster.members:
            upload = known.get(member.peer)
            if upload is None:
                continue
            key = (shard, member.peer, member.root)
            if key not in checked:
                shards = len(state.spec.sharding(roster.fragment).bounds())
                if not is_committed(
                    state.run,
                    roster.round,
                    roster.fragment,
                    member.peer,
                    member.root,
                    shards,
                    shard,
                    upload.payload,
                    upload.path,
                ):
                    del known[member.peer]
                    state.report(UpdateRefused(roster.round, shard, member.peer, "not the payload it committed to"))
                    continue
                checked.add(key)
            arrived[member.peer] = upload
        return arrived

    def _nudge(self, shards: list[int]) -> None:
        state, slot = self._state, self._state.slot
        assert slot.group is not None
        missing: dict[PeerId, list[int]] = {}
        for shard in shards:
            known = slot.uploads.get(shard, {})
            for member in slot.group.roster.members:
                if member.peer not in known:
                    missing.setdefault(member.peer, []).append(shard)
        for peer, wanted in sorted(missing.items()):
            state.send(peer, Want(slot.round, tuple(wanted), ()))


def _report(reduction: Reduction, roster: Roster) -> Reduced:
    assert reduction.payload is not None
    count, peers = len(roster.members), roster.peers
    arrived = {peer for peer, _, _ in reduction.job.contributions}
    return Reduced(
        reduction.job.shard,
        reduction.hash,
        reduction.root,
        bits((i for i, peer in enumerate(peers) if peer in arrived), count),
        bits((i for i, peer in enumerate(peers) if peer in reduction.refused), count),
    )
