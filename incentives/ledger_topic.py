"""The shell around the gossip of the ledger: topic, member calls, clock, and the machines that decide.

Started in a node's task group; everything that it does is asked for by a machine. Questions of others are answered from
the same book.
"""

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import LocalFault, OutOfMemory, ShoalError, Unavailable
from shoal.swarm.identifiers import PeerId, SwarmId
from shoal.swarm.identity import Identity
from shoal.swarm.member_calls import MemberCalls
from shoal.swarm.topic_envelope import open_sealed, seal
from shoal.swarm.topics import Topics

from . import gossip_messages as messages
from .bodies import AnyBody, ForkProof
from .chain import forger
from .entry import Entry
from .gossip_events import (
    Answered,
    Ask,
    Asked,
    Caught,
    Convict,
    Event,
    Fact,
    GossipOptions,
    Heard,
    Kept,
    Listed,
    Publish,
    Report,
    Ticked,
    Unanswered,
)
from .ledger_answers import LedgerAnswers
from .ledger_gossip import LedgerGossip
from .ledger_topic_name import topic_of
from .own_head import AskForOwn, OwnHead
from .rendezvous import NEEDED, witnesses
from .store import Store
from .witness_duty import SignedHeads, WitnessDuty
from .witness_quest import AskWitness, WitnessQuest
from .witnessed import WitnessedHead, head_problem

Found = TypeVar("Found")

ANSWER_S = 5.0
WITNESSED_S = 10.0  # until an author gives up on its witnesses
LISTED_S = 5.0
_MOST_HEARD = 256  # messages that wait to be looked at; of more the newest are dropped
ENTRIES, TIPS, PROOF, COSIGN = "ledger/entries", "ledger/tips", "ledger/proof", "ledger/cosign"


@dataclass(frozen=True, slots=True)
class LedgerParts:
    """What the shell works with. members: of the swarm that live, by what the directory last said"""

    identity: Identity
    swarm: SwarmId
    store: Store
    signed: SignedHeads
    topics: Topics
    calls: MemberCalls
    members: Callable[[], Collection[PeerId]]
    clock: Callable[[], float]  # unix seconds
    report: Callable[[Fact], None] = lambda _fact: None
    options: GossipOptions = field(default_factory=GossipOptions)
    generator: random.Random = field(default_factory=random.SystemRandom)


class LedgerTopic:
    """`await LedgerTopic.start(parts, tasks)`; its tasks end with the task group."""

    def __init__(self, parts: LedgerParts, tasks: TaskGroup) -> None:
        self._parts = parts
        self._tasks = tasks
        self._topic = topic_of(parts.swarm)
        me = parts.identity
        convicted = dict(self._stored_proofs())
        self.gossip = LedgerGossip(
            me.peer_id, parts.store, self._open, parts.options, parts.generator, convicted=convicted
        )
        self.own_head = OwnHead(me.public_key, parts.store, parts.generator)
        self._may_sign = anyio.Event()
        self._answers = LedgerAnswers(parts.store, self.gossip.convicted)
        self._duty = WitnessDuty(
            me,
            parts.store,
            parts.signed,
            parts.members,
            self.is_forger,
            lambda proof: self._handle(Caught(proof)),
            lambda: self.own_head.may_sign,
        )
        self._give, self._take = anyio.create_memory_object_stream[Heard](_MOST_HEARD)

    @classmethod
    async def start(cls, parts: LedgerParts, tasks: TaskGroup) -> "LedgerTopic":
        """raises: DaemonDied"""
        ledger = cls(parts, tasks)
        await ledger._serve()
        await parts.topics.listen(ledger._topic, ledger._heard)
        tasks.start_soon(ledger._read)
        tasks.start_soon(ledger._beat)
        return ledger

    # For sessions, training and the command line

    def is_forger(self, author: bytes) -> bool:
        """Whether this author has lost its standing."""
        return author in self.gossip.convicted

    async def until_it_may_sign(self) -> None:
        """Return once this node knows that its own chain is all that the others have of it."""
        await self._may_sign.wait()

    def append(self, bodies: Sequence[AnyBody]) -> list[Entry]:
        """Sign the next entries of the own chain and publish them.

        raises: Unavailable before `until_it_may_sign`; LocalFault, OutOfMemory as `Store.append_own`
        """
        if not self.own_head.may_sign:
            raise Unavailable("this node asks the others for its own entries first; it may not sign yet")
        written = self._parts.store.append_own(self._parts.identity, bodies, int(self._parts.clock()))
        self._handle(Kept(written))
        return written

    def shown(self, entry: Entry) -> None:
        """An author showed us this entry and the store has accepted it: let others hear of it."""
        self._handle(Kept([entry]))

    def caught(self, proof: ForkProof) -> None:
        """An author showed us an entry that forks his chain."""
        self._handle(Caught(proof))

    async def witnessed_head(self, needed: int = NEEDED) -> WitnessedHead:
        """The signatures of our witnesses under our chain as it stands. raises: Unavailable, ValueError (no entries)"""
        parts = self._parts
        author = parts.identity.public_key
        count = parts.store.chain(author).length
        quest = WitnessQuest(author, count, parts.store, witnesses(author, parts.members()), needed)
        done = anyio.Event()
        with anyio.move_on_after(WITNESSED_S):
            async with anyio.create_task_group() as tasks:
                for ask in quest.begin():
                    tasks.start_soon(self._ask_witness, quest, ask, done)
                if quest.result is None and not quest.failed:
                    await done.wait()
                tasks.cancel_scope.cancel()
        if quest.result is None:
            reasons = "; ".join(sorted(set(quest.refusals.values()))) or "no answer"
            raise Unavailable(f"too few witnesses signed the head of this node's chain: {reasons}")
        return quest.result

    def head_problem(self, witnessed: WitnessedHead, entry: Entry, needed: int = NEEDED) -> str:
        """Why an entry is not to be honoured on the strength of this head, or an empty string."""
        if self.is_forger(entry.author):
            return "the author has forked its chain"
        return head_problem(witnessed, entry, witnesses(entry.author, self._parts.members()), needed)

    # The topic

    def _open(self, origin: PeerId, data: bytes) -> bytes:
        return open_sealed(self._topic, origin, data)[1]

    def _heard(self, origin: PeerId, data: bytes) -> None:
        try:
            self._give.send_nowait(Heard(origin, data))
        except (anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # as lost on the way

    async def _read(self) -> None:
        async for heard in self._take:
            self._handle(heard)
            await anyio.lowlevel.checkpoint()  # sessions go on between two messages

    async def _beat(self) -> None:
        parts = self._parts
        listed_at = -LISTED_S
        while True:
            now = parts.clock()
            if abs(now - listed_at) >= LISTED_S:
                listed_at = now
                members = parts.members()
                self._handle(Listed(members))
                self._ask_for_own(self.own_head.listed(members, now))
            self._handle(Ticked())
            self._ask_for_own(self.own_head.ticked(now))
            await anyio.sleep(parts.options.beat_s)

    def _handle(self, event: Event) -> None:
        for effect in self.gossip.handle(event, self._parts.clock()):
            match effect:
                case Publish(body):
                    self._tasks.start_soon(self._publish, body)
                case Ask():
                    self._tasks.start_soon(self._ask, effect)
                case Convict(proof):
                    self._convict(proof)
                case Report(fact):
                    self._parts.report(fact)

    async def _publish(self, body: bytes) -> None:
        try:
            await self._parts.topics.publish(self._topic, seal(self._parts.identity, self._topic, body))
        except Unavailable:
            return  # the daemon died; the node ends

    def _convict(self, proof: ForkProof) -> None:
        try:
            self.append([proof])
        except (Unavailable, LocalFault, OutOfMemory):
            return  # others tell of it, and whoever compares heads with us hears it

    # Calls of ours

    async def _ask(self, ask: Ask) -> None:
        try:
            answer = await self._question(ask.peer, ask.question)
        except ShoalError:
            self._handle(Unanswered(ask.peer, ask.question))
        else:
            self._handle(Answered(ask.peer, ask.question, answer))

    async def _question(self, peer: PeerId, question: Asked) -> messages.Answer:
        match question:
            case messages.EntriesWanted():
                return await self._exchange(peer, ENTRIES, messages.entries_wanted.encode(question), messages.page)
            case messages.TipsWanted():
                return await self._exchange(peer, TIPS, messages.tips_wanted.encode(question), messages.tips)
            case messages.ProofWanted():
                return await self._exchange(peer, PROOF, messages.proof_wanted.encode(question), messages.proof_found)

    async def _exchange(self, peer: PeerId, method: str, body: bytes, codec: Canonical[Found]) -> Found:
        """raises: ShoalError"""
        return codec.decode(await self._parts.calls.call(peer, method, body, ANSWER_S))

    def _ask_for_own(self, asks: Iterable[AskForOwn]) -> None:
        for ask in asks:
            self._tasks.start_soon(self._fetch_own, ask)
        if self.own_head.may_sign and not self._may_sign.is_set():
            self._may_sign.set()

    async def _fetch_own(self, ask: AskForOwn) -> None:
        try:
            wanted = messages.entries_wanted.encode(ask.question)
            answer = await self._exchange(ask.peer, ENTRIES, wanted, messages.page)
        except ShoalError:
            self.own_head.unanswered(ask.peer, self._parts.clock())
            self._ask_for_own(())
            return
        self._ask_for_own(self.own_head.answered(ask.peer, answer, self._parts.clock()))
        if self.own_head.forked is not None:
            self._handle(Caught(self.own_head.forked))

    async def _ask_witness(self, quest: WitnessQuest, ask: AskWitness, done: anyio.Event) -> None:
        asks = [ask]
        while asks and quest.result is None:
            ask = asks.pop()
            body = messages.cosign_wanted.encode(ask.question)
            try:
                answer = await self._exchange(ask.peer, COSIGN, body, messages.cosigned)
            except ShoalError as error:
                quest.unanswered(ask.peer, str(error))
                break
            asks += quest.answered(ask.peer, answer)
        if quest.result is not None or quest.failed:
            done.set()

    # Calls of others

    async def _serve(self) -> None:
        calls, answers, clock = self._parts.calls, self._answers, self._parts.clock

        async def entries(peer: PeerId, body: bytes) -> bytes:
            return messages.page.encode(answers.page(peer, messages.entries_wanted.decode(body), clock()))

        async def tips(peer: PeerId, body: bytes) -> bytes:
            return messages.tips.encode(answers.tips(peer, messages.tips_wanted.decode(body), clock()))

        async def proof(peer: PeerId, body: bytes) -> bytes:
            return messages.proof_found.encode(answers.proof(peer, messages.proof_wanted.decode(body), clock()))

        async def cosign(peer: PeerId, body: bytes) -> bytes:
            return messages.cosigned.encode(self._duty.answer(peer, messages.cosign_wanted.decode(body), clock()))

        for method, handler in ((ENTRIES, entries), (TIPS, tips), (PROOF, proof), (COSIGN, cosign)):
            await calls.answer(method, handler)

    def _stored_proofs(self) -> Iterator[tuple[bytes, ForkProof]]:
        for stored in self._parts.store.all():
            if isinstance(stored.entry.body, ForkProof):
                author = forger(stored.entry.body)
                if author is not None:
                    yield author, stored.entry.body
