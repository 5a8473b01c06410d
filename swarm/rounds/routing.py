"""Which role takes which message, and which messages are heard at all."""

from typing import TYPE_CHECKING, assert_never

from shoal.swarm.identifiers import PeerId

from .audit_messages import Accusation, AskResidual, Residual, Verdict
from .messages import (
    Accept,
    Aggregate,
    AnyMessage,
    Ask,
    Astray,
    Barred,
    Coming,
    Data,
    Decided,
    Enter,
    Entered,
    Fetch,
    Gathering,
    Group,
    Latest,
    Mismatch,
    Nack,
    Prepare,
    Progress,
    Promise,
    Propose,
    Ready,
    Settled,
    Upload,
    Want,
)
from .run_identity import largest_payload_bytes

if TYPE_CHECKING:
    from .machine import RoundMachine

SPARE_AGGREGATES = 4  # for each shard, pushed by owners that were replaced


class Routes:
    def __init__(self, machine: "RoundMachine") -> None:
        self._machine = machine

    def receive(self, sender: PeerId, message: AnyMessage) -> None:
        machine = self._machine
        match message:
            case Ready():
                self._ready(sender, message)
            case Coming() if machine.learner.in_step(sender, message.round, message.basis):
                machine.leader.on_coming(sender)
            case Gathering() if self._speaks_of_now(sender, message.round):
                machine.contributor.on_gathering(sender, message)
            case Group():
                self._group(sender, message)
            case Prepare() if machine.learner.in_step(sender, message.round, message.basis):
                machine.voter.on_prepare(sender, message)
            case Propose() if machine.learner.in_step(sender, message.round, message.value.basis):
                machine.voter.on_propose(sender, message)
            case Decided() if machine.learner.in_step(sender, message.round):
                machine.voter.on_decided(sender, message)
            case Promise() if self._is_open(message.round):
                machine.leader.on_promise(sender, message)
            case Accept() if self._is_open(message.round):
                machine.leader.on_accept(sender, message)
            case Nack() if self._is_open(message.round):
                machine.leader.on_nack(message)
            case Progress() if self._is_open(message.round):
                machine.leader.on_progress(sender, message)
            case Upload():
                self._upload(sender, message)
            case Aggregate():
                self._aggregate(sender, message)
            case Want():
                machine.contributor.on_want(sender, message) if not message.contributors else machine.owner.on_want(
                    sender, message
                )
            case Fetch():
                self._fetch(sender, message)
            case Data(payload):
                if machine.state.store.arrive(payload):
                    self._data_came()
            case Ask():
                if machine.learner.on_ask(sender, message):
                    machine.leader.repeat_proposal(sender)
            case Settled():
                machine.learner.on_settled(sender, message)
            case Latest():
                machine.learner.on_latest(sender, message)
            case Astray() if self._is_open(message.round):
                machine.finish_astray(message.holders)
            case Barred() if self._is_open(message.round):
                machine.finish_barred(message.reason)
            case AskResidual():
                machine.owner.on_ask_residual(sender, message)
            case Residual():
                machine.auditor.on_residual(sender, message)
            case Accusation():
                machine.auditor.on_accusation(sender, message)
            case Verdict():
                machine.auditor.verdicts.on_verdict(sender, message)
            case Enter() | Entered() | Mismatch():
                return  # words of a stream's beginning, out of place here
            case (
                Coming()
                | Gathering()
                | Prepare()
                | Propose()
                | Decided()
                | Promise()
                | Accept()
                | Nack()
                | Progress()
                | Astray()
                | Barred()
            ):
                return  # of another round or another past
            case _:
                assert_never(message)

    def _is_open(self, round_: int) -> bool:
        return round_ == self._machine.state.slot.round

    def _speaks_of_now(self, sender: PeerId, round_: int) -> bool:
        """A sign of life of an older round needs no answer."""
        return round_ >= self._machine.state.slot.round and self._machine.learner.in_step(sender, round_)

    def _ready(self, sender: PeerId, message: Ready) -> None:
        """A newcomer without a past is heard all the same: its state must be the group's."""
        in_step = self._machine.learner.in_step(sender, message.round, message.basis)
        newcomer = not message.basis and self._is_open(message.round)
        if in_step or newcomer:
            self._machine.leader.on_ready(sender, message)

    def _group(self, sender: PeerId, group: Group) -> None:
        machine, slot = self._machine, self._machine.state.slot
        if group.ballot.proposer != sender or not machine.learner.in_step(sender, group.roster.round, group.basis):
            return
        known = slot.group
        if known is not None and (group.ballot, group.version) <= (known.ballot, known.version):
            return
        spec = machine.state.spec
        fits = group.roster.fragment < len(spec.fragments)
        fits = fits and len(group.owners) == len(spec.sharding(group.roster.fragment).bounds())
        fits = fits and max(group.owners) < len(group.roster.members)
        if not fits:
            return
        promised = slot.acceptor.promised
        if promised is not None and not slot.acceptor.allows(group.ballot):
            machine.state.send(sender, Nack(slot.round, promised))  # else it would wait for us until the deadline
            return
        slot.group, slot.name, slot.group_at = group, slot.know(group.roster), machine.state.now
        slot.deadline = min(slot.deadline, machine.state.now + spec.deadline_s)
        machine.contributor.on_group(group)
        machine.owner.on_group()

    def _upload(self, sender: PeerId, message: Upload) -> None:
        """For the open round to the owner; of a decided one, to an auditor."""
        machine = self._machine
        if self._is_open(message.round):
            machine.owner.on_upload(sender, message)
        elif message.round < machine.state.slot.round:
            machine.auditor.on_upload(message)

    def _aggregate(self, sender: PeerId, message: Aggregate) -> None:
        """Pushed by an owner. Of a decided round only what is missing is taken; of the open one no more than can be."""
        state, slot = self._machine.state, self._machine.state.slot
        if len(message.payload) > largest_payload_bytes(max(state.spec.fragments)):
            return
        if not self._is_open(message.round):
            if state.store.arrive(message.payload):
                self._data_came()
            return
        group = slot.group
        if group is not None and message.shard < len(group.owners):
            expected = group.roster.members[group.owners[message.shard]].peer
            if sender != expected and sender not in slot.readies and sender not in group.roster.index:
                return
        if state.store.held(message.round) < SPARE_AGGREGATES * state.spec.shards:
            state.store.put(message.round, message.payload)
            self._data_came()

    def _fetch(self, sender: PeerId, message: Fetch) -> None:
        state = self._machine.state
        for hash_ in dict.fromkeys(message.hashes):
            payload = state.store.get(hash_)
            if payload is not None:
                state.send(sender, Data(payload))

    def _data_came(self) -> None:
        self._machine.voter.advance()
        self._machine.leader.advance()
