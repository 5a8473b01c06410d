"""What peers say about chains: news on the topic, questions and answers by member calls. One encoding each.

Entries travel in their own encoding, so that each is decoded, checked and counted by itself: one bad entry spoils no
other.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.swarm.canonical import Canonical
from shoal.swarm.topic_envelope import MAX_BODY_BYTES
from shoal.swarm.transport import MAX_CALL_BYTES

from .bodies import MAX_ENTRY_BYTES, Count, ForkProof, Hash, Key, Witness

MAX_NEWS = 16  # entries in one message
MAX_PAGE = 256  # entries in one answer
MAX_PAGE_BYTES = MAX_CALL_BYTES - 4096
MAX_TIPS = 2000  # about 150 KB
BUCKETS = 16  # of authors, by the first four bits of their keys
DIGEST_BYTES = 8

EncodedEntry = Annotated[bytes, Meta(max_length=MAX_ENTRY_BYTES)]


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


class News(_Message, frozen=True):
    """Entries that the publisher wrote, or was shown by their author."""

    entries: Annotated[tuple[EncodedEntry, ...], Meta(max_length=MAX_NEWS)]


class EntriesWanted(_Message, frozen=True):
    """Entries [start, stop) of one author, as many as fit."""

    author: Key
    start: Count
    stop: Count


class Page(_Message, frozen=True):
    length: Count  # of the chain at whoever answers
    entries: Annotated[tuple[EncodedEntry, ...], Meta(max_length=MAX_PAGE)]


class TipsWanted(_Message, frozen=True):
    """The heads of all chains in those buckets of authors whose digest differs."""

    digests: Annotated[
        tuple[Annotated[bytes, Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)], ...],
        Meta(min_length=BUCKETS, max_length=BUCKETS),
    ]


class Tip(_Message, frozen=True):
    author: Key
    length: Count
    head: Hash
    forked: bool


class Tips(_Message, frozen=True):
    tips: Annotated[tuple[Tip, ...], Meta(max_length=MAX_TIPS)]


class ProofWanted(_Message, frozen=True):
    author: Key


class ProofFound(_Message, frozen=True):
    proof: ForkProof | None


class CosignWanted(_Message, frozen=True):
    """By an author, of a witness: sign my head. The entries are those that the witness may lack."""

    author: Key
    count: Count
    entries: Annotated[tuple[EncodedEntry, ...], Meta(max_length=MAX_PAGE)]


class Cosigned(_Message, frozen=True):
    """length: of the author's chain at the witness. witness: None when it has to see [length, count) first"""

    length: Count
    witness: Witness | None


Question = EntriesWanted | TipsWanted | ProofWanted | CosignWanted
Answer = Page | Tips | ProofFound | Cosigned

news = Canonical(News, "news of the ledger", MAX_BODY_BYTES)
entries_wanted = Canonical(EntriesWanted, "a question for entries", 128)
page = Canonical(Page, "a page of entries", MAX_CALL_BYTES)
tips_wanted = Canonical(TipsWanted, "a question for heads", 512)
tips = Canonical(Tips, "heads of chains", MAX_CALL_BYTES)
proof_wanted = Canonical(ProofWanted, "a question for a fork proof", 64)
proof_found = Canonical(ProofFound, "an answer with a fork proof", 4096)
cosign_wanted = Canonical(CosignWanted, "a question for a cosignature", MAX_CALL_BYTES)
cosigned = Canonical(Cosigned, "an answer to a question for a cosignature", 512)
