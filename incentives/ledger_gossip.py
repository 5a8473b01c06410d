"""The gossip of the ledger as a machine without I/O: `handle(event, now)` returns what is to be done.

Every peer publishes the entries that it writes, and those that their authors show it, such as the OPEN of a session. So
two branches of one chain that were shown to two peers meet at all others, and whoever holds two entries for one place
holds the proof. Of those that found a fork few tell: each waits for a random time and is silent when another was
faster. What the topic lost is found by comparing heads with a random peer now and then.

Nothing that comes is believed: entries and proofs are signed and are checked by the chain's own rules; a peer has a
quota of messages, an author one of entries; what no honest peer publishes mutes it.

source: suppression of equal reports by exponentially distributed timers, Nonnenmacher and Biersack, Scalable feedback
for large groups, 1999; comparing now and then, Demers et al., Epidemic algorithms, 1987
"""

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import assert_never

from shoal.swarm.errors import MalformedMessage
from shoal.swarm.identifiers import PeerId

from . import entry as entries
from .bodies import ForkProof
from .catch_up import CatchUp
from .chain import Accepted, Forked, Refused, forger
from .chain_book import ChainBook, digests
from .entry import Entry
from .gossip_events import (
    Adopted,
    Answered,
    Ask,
    Asked,
    Caught,
    Convict,
    Effect,
    Event,
    Forger,
    GossipOptions,
    Heard,
    Kept,
    Listed,
    Muted,
    Publish,
    Report,
    Ticked,
    Unanswered,
)
from .gossip_messages import (
    MAX_NEWS,
    Answer,
    EntriesWanted,
    News,
    Page,
    ProofFound,
    ProofWanted,
    Tips,
    TipsWanted,
    news,
)
from .quotas import Quotas

Opener = Callable[[PeerId, bytes], bytes]  # the body of a sealed message, or MalformedMessage
_NEWS_BYTES = news.max_bytes - 64
_MOST_NEWS = 512  # entries that wait to be published; of more the oldest are left to the others' catching up
_MOST_PROOFS_ASKED = 8  # of one peer in one comparison
_STEEPNESS = 7.0  # of the timers: about the logarithm of the number of peers that find a fork at once


class LedgerGossip:
    """convicted: who has lost its standing, with the proof. counts: what came and what became of it"""

    def __init__(
        self,
        me: PeerId,
        book: ChainBook,
        opened: Opener,
        options: GossipOptions | None = None,
        generator: random.Random | None = None,
        convicted: dict[bytes, ForkProof] | None = None,
    ) -> None:
        self.options = options or GossipOptions()
        self.convicted: dict[bytes, ForkProof] = dict(convicted or {})
        self.counts: Counter[str] = Counter()
        self._me = me
        self._book = book
        self._opened = opened
        self._random = generator or random.Random()
        self._members: frozenset[PeerId] = frozenset()
        self._news: deque[bytes] = deque(maxlen=_MOST_NEWS)
        self._shown: dict[bytes, tuple[float, bytes]] = {}  # entries of others that their authors did not publish yet
        self._untold: dict[bytes, float] = {}  # forger -> when we tell of it
        self._catch_up = CatchUp(book, self.options.pages)
        self._messages: Quotas[PeerId] = Quotas(self.options.messages)
        self._strangers: Quotas[None] = Quotas(self.options.strangers)
        self._entries: Quotas[bytes] = Quotas(self.options.entries)
        self._faults: Counter[PeerId] = Counter()
        self._muted: dict[PeerId, float] = {}
        self._sync_at = -math.inf
        self._now = 0.0
        self._effects: list[Effect] = []

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """now: unix seconds"""
        self._now, self._effects = now, []
        match event:
            case Heard(origin, data):
                self._heard(origin, data)
            case Kept(kept):
                self._keep(kept)
            case Caught(proof):
                self._convict(proof, first_hand=True, tell_at=now)
            case Answered(peer, question, answer):
                self._answered(peer, question, answer)
            case Unanswered(peer, question):
                if isinstance(question, EntriesWanted):
                    self._catch_up.failed(peer, question)
            case Listed(peers):
                self._members = frozenset(peers) - {self._me}
            case Ticked():
                self._tick()
            case _:
                assert_never(event)
        self._effects += self._catch_up.questions(now)
        return self._effects

    @property
    def is_catching_up(self) -> bool:
        return bool(len(self._catch_up))

    # What others publish

    def _heard(self, origin: PeerId, data: bytes) -> None:
        if origin == self._me:
            return
        self.counts["heard"] += 1
        if not self._may_speak(origin):
            self.counts["dropped"] += 1
            return
        try:
            message = news.decode(self._opened(origin, data))
            several = [entries.decode(each) for each in message.entries]
        except MalformedMessage as error:
            self._fault(origin, str(error))
            return
        self._take(origin, [entry for entry in several if self._entries.take(entry.author, self._now)])

    def _may_speak(self, origin: PeerId) -> bool:
        """Before anything is decoded. Strangers are those that the directory has not listed; they share one quota, so
        that keys made by the thousand are worth no more than one."""
        if self._muted.get(origin, -math.inf) > self._now:
            return False
        if origin not in self._members and not self._strangers.take(None, self._now):
            return False
        return self._messages.take(origin, self._now)

    def _fault(self, peer: PeerId, reason: str) -> None:
        self.counts["faults"] += 1
        self._faults[peer] += 1
        if self._faults[peer] < self.options.faults:
            return
        del self._faults[peer]
        if len(self._muted) > 1024:
            self._muted = {each: until for each, until in self._muted.items() if until > self._now}
        self._muted[peer] = self._now + self.options.mute_s
        self._effects.append(Report(Muted(peer, reason)))

    # Entries, from wherever

    def _take(self, source: PeerId, several: Sequence[Entry]) -> int:
        """returns: how many were new"""
        if not several:
            return 0
        adopted: list[Entry] = []
        if self._shown:
            for entry in several:
                self._shown.pop(entries.hash_of(entry), None)
        for entry, verdict in zip(several, self._book.receive_all(several, int(self._now)), strict=True):
            if isinstance(entry.body, ForkProof):
                self._told(entry.body)
            match verdict:
                case Accepted():
                    adopted.append(entry)
                case Forked(_, proof):
                    self._convict(proof, first_hand=True, tell_at=self._now + self._patience_s())
                case Refused("unsigned"):
                    self._fault(source, "an entry that its author did not sign")
                case Refused("gap" | "wrong_prev"):
                    if entry.author not in self.convicted and entries.is_signed(entry):
                        self._catch_up.want(entry.author, entry.seq + 1, source)
                case Refused():
                    pass
        if adopted:
            self.counts["adopted"] += len(adopted)
            self._effects.append(Report(Adopted(adopted)))
        return len(adopted)

    # Forks

    def _told(self, proof: ForkProof) -> None:
        """Somebody's FORKPROOF: it convicts by itself, wherever it stands. Our own need not be told any more."""
        author = self._convict(proof, first_hand=False, tell_at=math.inf)
        if author is not None:
            self._untold.pop(author, None)

    def _convict(self, proof: ForkProof, *, first_hand: bool, tell_at: float) -> bytes | None:
        """The forger, or None when the proof proves nothing."""
        author = forger(proof)
        if author is None:
            self.counts["worthless proofs"] += 1
            return None
        if author not in self.convicted:
            self.convicted[author] = proof
            self._catch_up.forget(author)
            self._effects.append(Report(Forger(author, proof, first_hand)))
            if tell_at < math.inf:
                self._untold[author] = tell_at
        return author

    def _patience_s(self) -> float:
        """Most of those who find a fork at once wait nearly `tell_s`, a few hardly at all."""
        draw = self._random.random()
        return self.options.tell_s / _STEEPNESS * math.log1p(draw * math.expm1(_STEEPNESS))

    # What we say and ask

    def _keep(self, kept: Sequence[Entry]) -> None:
        """What others wrote waits a little: an honest author publishes it himself."""
        for entry in kept:
            if entries.peer_of(entry.author) == self._me:
                self._news.append(entries.encode(entry))
            elif len(self._shown) < _MOST_NEWS:
                self._shown[entries.hash_of(entry)] = (self._now + self.options.shown_s, entries.encode(entry))
            if isinstance(entry.body, ForkProof):
                self._told(entry.body)

    def _tick(self) -> None:
        for author in [author for author, due in self._untold.items() if due <= self._now]:
            del self._untold[author]
            self._effects.append(Convict(self.convicted[author]))
        for digest in [digest for digest, (due, _) in self._shown.items() if due <= self._now]:
            self._news.append(self._shown.pop(digest)[1])
        if self._news:
            self._publish()
        if self._now >= self._sync_at:
            if self._members and self._sync_at > -math.inf:
                peer = self._random.choice(sorted(self._members))
                self._effects.append(Ask(peer, TipsWanted(digests(self._book, self.convicted))))
            self._sync_at = self._now + self.options.sync_s * self._random.uniform(0.5, 1.5)

    def _publish(self) -> None:
        """One message a beat, of our own quota at others."""
        taken: list[bytes] = []
        size = 0
        while self._news and len(taken) < MAX_NEWS and size + len(self._news[0]) + 8 <= _NEWS_BYTES:
            taken.append(self._news.popleft())
            size += len(taken[-1]) + 8
        self._effects.append(Publish(news.encode(News(tuple(taken)))))

    # Answers to what we asked

    def _answered(self, peer: PeerId, question: Asked, answer: Answer) -> None:
        match question, answer:
            case EntriesWanted(), Page():
                self._page(peer, question, answer)
            case TipsWanted(), Tips():
                self._compare(peer, answer)
            case ProofWanted(author), ProofFound(proof):
                if proof is not None and self._convict(proof, first_hand=False, tell_at=math.inf) != author:
                    self._fault(peer, "a proof against another than was asked for")
            case _:
                self._fault(peer, "an answer to another question")
                if isinstance(question, EntriesWanted):
                    self._catch_up.failed(peer, question)

    def _page(self, peer: PeerId, question: EntriesWanted, page: Page) -> None:
        try:
            several = [entries.decode(each) for each in page.entries]
        except MalformedMessage as error:
            self._fault(peer, str(error))
            self._catch_up.failed(peer, question)
            return
        places = [(entry.author, entry.seq) for entry in several]
        if places != [(question.author, question.start + n) for n in range(len(places))]:
            self._fault(peer, "entries that were not asked for")
            self._catch_up.failed(peer, question)
            return
        self.counts["pages"] += 1
        self._catch_up.came(peer, question, new=bool(self._take(peer, several)))

    def _compare(self, peer: PeerId, answer: Tips) -> None:
        asked = 0
        for tip in answer.tips:
            if tip.author in self.convicted:
                continue
            if tip.forked:
                if asked < _MOST_PROOFS_ASKED:
                    self._effects.append(Ask(peer, ProofWanted(tip.author)))
                    asked += 1
            elif tip.length and not self._holds(tip.author, tip.length, tip.head):
                self._catch_up.want(tip.author, tip.length, peer)

    def _holds(self, author: bytes, length: int, head: bytes) -> bool:
        chain = self._book.chain(author)
        if length == chain.length:
            return head == chain.head
        known = self._book.find(author, length - 1) if length < chain.length else None
        return known is not None and entries.hash_of(known) == head
