"""The shell around the gossip of the ledger: topic, member calls, clock, and the machines that decide.

Started in a node's task group; everything that it does is asked for by a machine. Questions of others are answered from
the same book, by `ledger_calls`.
"""

import random
from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, TypeVarTuple, Unpack

import anyio
from anyio.abc import TaskGroup, TaskStatus

from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import MalformedMessage, NotSpoken, ShoalError, Unavailable
from shoal.swarm.identifiers import PeerId, SwarmId
from shoal.swarm.identity import Identity
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.topic_envelope import open_sealed, seal
from shoal.swarm.topics import Topics

from . import entry as entries
from . import gossip_messages as messages
from .bodies import Count, ForkProof
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
from .gossip_messages import MAX_PAGE
from .ledger import Ledger
from .ledger_answers import LedgerAnswers
from .ledger_calls import COSIGN, ENTRIES, PROOF, TIPS, LedgerCalls
from .ledger_gossip import LedgerGossip
from .ledger_topic_name import topic_of
from .own_head import AskForOwn, OwnHead
from .rendezvous import witnesses
from .store import Store
from .witness_duty import SignedHeads, WitnessDuty
from .witness_pursuit import pursue
from .witness_quest import AskWitness, WitnessQuest
from .witnessed import WitnessedHead, head_problem

Found = TypeVar("Found")
Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

ANSWER_S = 5.0
LISTED_S = 5.0
_MOST_PAGES = 8  # asked for at once, for a session that waits
_MOST_HEARD = 256  # messages that wait to be looked at; of more the newest are dropped


@dataclass(frozen=True, slots=True)
class LedgerParts:
    """What the shell works with. members: of the swarm that live, by what the directory last said"""

    ledger: Ledger  # all access to its store goes through it, one at a time
    swarm: SwarmId
    signed: SignedHeads
    topics: Topics
    calls: MemberCalls
    members: Callable[[], Collection[PeerId]]
    clock: Callable[[], float]  # unix seconds
    report: Callable[[Fact], None] = lambda _fact: None
    options: GossipOptions = field(default_factory=GossipOptions)
    generator: random.Random = field(default_factory=random.SystemRandom)

    @property
    def identity(self) -> Identity:
        return self.ledger.identity

    @property
    def store(self) -> Store:
        return self.ledger.store


class LedgerTopic:
    """`await LedgerTopic.start(parts, tasks)`; its tasks end with `stop`, or with the task group.

    The ledger tells it of what is written and shown, and may sign once others have told what they have of its chain.
    """

    def __init__(self, parts: LedgerParts, convicted: dict[bytes, ForkProof]) -> None:
        self._parts = parts
        self._tasks: TaskGroup | None = None  # None: not started, or stopped
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._found: list[ForkProof] = []  # by a witness, while the store was in use
        self._topic = topic_of(parts.swarm)
        me = parts.identity
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
            self._found.append,
            lambda: self.own_head.may_sign,
        )
        self._give, self._take = anyio.create_memory_object_stream[Heard](_MOST_HEARD)

    @classmethod
    async def start(cls, parts: LedgerParts, tasks: TaskGroup) -> "LedgerTopic":
        """raises: DaemonDied"""
        topic = cls(parts, await parts.ledger.use(_stored_proofs))
        await tasks.start(topic._run)
        await LedgerCalls(topic._answers, topic._duty, topic._use, parts.clock, topic._tell_found).serve(parts.calls)
        await parts.topics.listen(topic._topic, topic._heard)
        ledger = parts.ledger
        ledger.is_forger = topic.is_forger
        ledger.on_written.append(lambda written: topic._soon(Kept(written)))
        ledger.on_shown.append(lambda shown: topic._soon(Kept(shown)))
        ledger.on_caught.append(topic.caught)
        topic._start(topic._read)
        topic._start(topic._beat)
        return topic

    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        try:
            with self._scope:
                async with anyio.create_task_group() as self._tasks:
                    task_status.started()
                    await anyio.sleep_forever()
        finally:
            self._tasks = None
            self._ended.set()

    async def stop(self) -> None:
        """Before the ledger is closed."""
        self._scope.cancel()
        await self._ended.wait()

    def _start(self, work: Callable[[Unpack[Arguments]], Coroutine[Any, Any, None]], *arguments: *Arguments) -> None:
        if self._tasks is not None:
            self._tasks.start_soon(work, *arguments)

    def _soon(self, event: Event) -> None:
        self._start(self._handle, event)

    async def _use(self, work: Callable[[], Result]) -> Result:
        """Something that reads or writes the store, when nobody else does."""
        return await self._parts.ledger.use(lambda _: work(), brief=True)

    # For sessions, training and the command line

    def is_forger(self, author: bytes) -> bool:
        """Whether this author has lost its standing."""
        return author in self.gossip.convicted

    async def until_it_may_sign(self) -> None:
        """Return once this node knows that its own chain is all that the others have of it."""
        await self._may_sign.wait()

    def caught(self, proof: ForkProof) -> None:
        """An author showed us an entry that forks his chain."""
        self._soon(Caught(proof))

    async def fetch(self, peer: PeerId, author: bytes, start: Count, stop: Count) -> list[Entry]:
        """Entries [start, stop) of an author as a peer has them, or the first of them: for a session that waits.

        raises: ShoalError
        """
        found: list[Entry] = []
        with anyio.move_on_after(ANSWER_S):
            for _ in range(_MOST_PAGES):
                at = start + len(found)
                question = messages.EntriesWanted(author, at, min(stop, at + MAX_PAGE))
                page = await self._exchange(peer, ENTRIES, messages.entries_wanted.encode(question), messages.page)
                several = [entries.decode(data) for data in page.entries]
                if [(e.author, e.seq) for e in several] != [(author, at + n) for n in range(len(several))]:
                    raise MalformedMessage("entries that were not asked for")
                found += several
                if not several or start + len(found) >= stop:
                    break
        return found

    async def witnessed_head(self, needed: int | None = None) -> WitnessedHead:
        """The signatures of our witnesses under our chain as it stands. raises: Unavailable, ValueError (no entries)"""
        parts = self._parts
        author = parts.identity.public_key
        appointed, store = witnesses(author, parts.members()), parts.store
        quest = await self._use(lambda: WitnessQuest(author, store.chain(author).length, store, appointed, needed))
        await pursue(quest, self._cosigned)
        if quest.result is None:
            reasons = "; ".join(sorted(set(quest.refusals.values()))) or "no answer"
            raise Unavailable(f"too few witnesses signed the head of this node's chain: {reasons}")
        return quest.result

    def head_problem(self, witnessed: WitnessedHead, entry: Entry, needed: int | None = None) -> str:
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
            await self._handle(heard)
            await anyio.lowlevel.checkpoint()  # sessions go on between two messages

    async def _beat(self) -> None:
        parts = self._parts
        listed_at = -LISTED_S
        while True:
            now = parts.clock()
            if abs(now - listed_at) >= LISTED_S or not self._may_sign.is_set():
                listed_at = now
                members = parts.members()
                await self._handle(Listed(members))
                if set(members) - {parts.identity.peer_id}:  # alone it has nothing to sign, and cannot know more
                    await self._ask_for_own(partial(self.own_head.listed, members, now))
            await self._handle(Ticked())
            await self._ask_for_own(partial(self.own_head.ticked, now))
            await anyio.sleep(parts.options.beat_s)

    async def _handle(self, event: Event) -> None:
        try:
            effects = await self._use(lambda: self.gossip.handle(event, self._parts.clock()))
        except ShoalError as error:  # a full disk does not stop the node; what was missed is found by comparing
            self._parts.ledger.failed(error)
            return
        for effect in effects:
            match effect:
                case Publish(body):
                    self._start(self._publish, body)
                case Ask():
                    self._start(self._ask, effect)
                case Convict(proof):
                    self._start(self._convict, proof)
                case Report(fact):
                    self._parts.report(fact)

    async def _publish(self, body: bytes) -> None:
        try:
            await self._parts.topics.publish(self._topic, seal(self._parts.identity, self._topic, body))
        except Unavailable:
            return  # the daemon died; the node ends

    async def _convict(self, proof: ForkProof) -> None:
        await self._may_sign.wait()
        try:
            await self._parts.ledger.append(proof)
        except ShoalError:
            return  # others tell of it, and whoever compares heads with us hears it

    # Calls of ours

    async def _ask(self, ask: Ask) -> None:
        try:
            answer = await self._question(ask.peer, ask.question)
        except ShoalError:
            await self._handle(Unanswered(ask.peer, ask.question))
        else:
            await self._handle(Answered(ask.peer, ask.question, answer))

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

    async def _ask_for_own(self, step: Callable[[], Iterable[AskForOwn]]) -> None:
        """step: what the machine does with the store, and whom it asks then"""
        try:
            asks = await self._use(lambda: list(step()))
        except ShoalError as error:
            self._parts.ledger.failed(error)
            return
        for ask in asks:
            self._start(self._fetch_own, ask)
        if self.own_head.may_sign and not self._may_sign.is_set():
            self._parts.ledger.allow()
            self._may_sign.set()

    async def _fetch_own(self, ask: AskForOwn) -> None:
        try:
            wanted = messages.entries_wanted.encode(ask.question)
            answer = await self._exchange(ask.peer, ENTRIES, wanted, messages.page)
        except ShoalError as error:
            await self._ask_for_own(partial(self._no_answer, ask.peer, keeps_none=isinstance(error, NotSpoken)))
            return
        await self._ask_for_own(partial(self.own_head.answered, ask.peer, answer, self._parts.clock()))
        if self.own_head.forked is not None:
            await self._handle(Caught(self.own_head.forked))

    def _no_answer(self, peer: PeerId, *, keeps_none: bool) -> Iterable[AskForOwn]:
        self.own_head.unanswered(peer, self._parts.clock(), keeps_none=keeps_none)
        return ()

    async def _cosigned(self, ask: AskWitness) -> messages.Cosigned:
        """raises: ShoalError"""
        return await self._exchange(ask.peer, COSIGN, messages.cosign_wanted.encode(ask.question), messages.cosigned)

    async def _tell_found(self) -> None:
        found, self._found[:] = list(self._found), []
        for proof in found:
            self.caught(proof)


def _stored_proofs(store: Store) -> dict[bytes, ForkProof]:
    """By forger."""
    bodies = (stored.entry.body for stored in store.all())
    proofs = ((forger(body), body) for body in bodies if isinstance(body, ForkProof))
    return {author: proof for author, proof in proofs if author is not None}
