"""What a peer answers when others ask about chains. Pure: a book in, an answer out; a quota by caller before all."""

from shoal.swarm.errors import Refused
from shoal.swarm.identifiers import PeerId

from . import entry as entries
from .chain_book import ChainBook, Convicted, bucket_of, digests
from .gossip_messages import (
    MAX_PAGE,
    MAX_PAGE_BYTES,
    MAX_TIPS,
    EntriesWanted,
    Page,
    ProofFound,
    ProofWanted,
    Tip,
    Tips,
    TipsWanted,
)
from .quotas import Allowance, Quotas

QUESTIONS = Allowance(burst=64, per_s=2.0)  # of one caller


class LedgerAnswers:
    def __init__(self, book: ChainBook, convicted: Convicted, allowance: Allowance = QUESTIONS) -> None:
        self._book = book
        self._convicted = convicted
        self._quotas: Quotas[PeerId] = Quotas(allowance)

    def page(self, caller: PeerId, question: EntriesWanted, now: float) -> Page:
        """raises: Refused when the caller asks too often; as all of these"""
        self._charge(caller, now)
        stop = min(question.stop, question.start + MAX_PAGE)
        encoded: list[bytes] = []
        size = 0
        for entry in self._book.of(question.author, question.start, stop):
            data = entries.encode(entry)
            size += len(data) + 8
            if size > MAX_PAGE_BYTES:
                break
            encoded.append(data)
        return Page(self._book.chain(question.author).length, tuple(encoded))

    def tips(self, caller: PeerId, question: TipsWanted, now: float) -> Tips:
        """All that fit of the buckets that differ; the rest when these are equal."""
        self._charge(caller, now)
        own = digests(self._book, self._convicted)
        differing = {n for n, (ours, theirs) in enumerate(zip(own, question.digests, strict=True)) if ours != theirs}
        found: list[Tip] = []
        authors = sorted(self._book.chains.keys() | self._convicted.keys())
        for author in (author for author in authors if bucket_of(author) in differing):
            chain = self._book.chain(author)
            found.append(Tip(author, chain.length, chain.head, author in self._convicted))
            if len(found) == MAX_TIPS:
                break
        return Tips(tuple(found))

    def proof(self, caller: PeerId, question: ProofWanted, now: float) -> ProofFound:
        self._charge(caller, now)
        return ProofFound(self._convicted.get(question.author))

    def _charge(self, caller: PeerId, now: float) -> None:
        if not self._quotas.take(caller, now):
            raise Refused("too many questions about the ledger; ask again in a minute")
