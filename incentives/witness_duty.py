"""Being a witness: signing heads of the chains that one was appointed to, never two for one place.

What was signed is on the disk before a signature leaves: the entries may be lost with the last second before a power
cut, and the author then has to show them again; that a head was signed may not.
"""

import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path

from shoal.swarm.errors import MalformedMessage, OutOfMemory, Unavailable, UsageError
from shoal.swarm.errors import Refused as CallRefused
from shoal.swarm.identifiers import PeerId
from shoal.swarm.identity import Identity

from . import entry as entries
from .bodies import ForkProof
from .chain import Forked
from .chain_book import ChainBook
from .entry_tree import Frontier
from .gossip_messages import Cosigned, CosignWanted
from .quotas import Allowance, Quotas
from .rendezvous import witnesses
from .witnessed import Head, cosign

COSIGNATURES = Allowance(burst=64, per_s=4.0)  # for one author
_MOST_FRONTIERS = 1024


class SignedHeads:
    """The longest head that this witness has signed for each author, in a file of its own."""

    def __init__(self, path: Path | None) -> None:
        """path: None keeps it in memory. raises: UsageError"""
        try:
            self._database = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS signed"
                " (author BLOB PRIMARY KEY, count INTEGER NOT NULL, last BLOB NOT NULL) WITHOUT ROWID"
            )
        except sqlite3.Error as error:
            raise UsageError(f"cannot use the witness's file {path}: {error}") from error

    def close(self) -> None:
        self._database.close()

    def longest(self, author: bytes) -> tuple[int, bytes] | None:
        """Count and last hash."""
        found = self._database.execute("SELECT count, last FROM signed WHERE author = ?", (author,)).fetchone()
        return (found[0], found[1]) if found else None

    def keep(self, author: bytes, count: int, last: bytes) -> None:
        """On the disk when this returns. raises: OutOfMemory (disk full)"""
        try:
            self._database.execute("INSERT OR REPLACE INTO signed VALUES (?, ?, ?)", (author, count, last))
        except sqlite3.Error as error:
            raise OutOfMemory(f"the witness's file cannot be written: {error}") from error


class WitnessDuty:
    """caught: takes the proof when an author shows a second branch
    ready: whether this node has caught up since it started; a witness back from a backup must hear what it missed first
    """

    def __init__(
        self,
        identity: Identity,
        book: ChainBook,
        signed: SignedHeads,
        members: Callable[[], Collection[PeerId]],
        convicted: Callable[[bytes], bool],
        caught: Callable[[ForkProof], None],
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self._identity = identity
        self._book = book
        self._signed = signed
        self._members = members
        self._convicted = convicted
        self._caught = caught
        self._ready = ready
        self._quotas: Quotas[PeerId] = Quotas(COSIGNATURES)
        self._frontiers: OrderedDict[bytes, Frontier] = OrderedDict()

    def answer(self, caller: PeerId, wanted: CosignWanted, now: float) -> Cosigned:
        """raises: swarm.errors.Refused with the reason, Unavailable while this node is not ready, MalformedMessage,
        OutOfMemory"""
        if not self._quotas.take(caller, now):
            raise CallRefused("too many heads to sign; ask again in a minute")
        if entries.peer_of(wanted.author) != caller:
            raise CallRefused("only the author itself may ask for witnesses of its chain")
        if not self._ready():
            raise Unavailable("this witness has just started and hears first what it missed")
        if self._identity.peer_id not in witnesses(wanted.author, self._members()):
            raise CallRefused("this peer is no witness of that chain, by the members that it knows")
        self._receive(wanted, now)
        length = self._book.chain(wanted.author).length
        if wanted.count == 0 or length < wanted.count:
            return Cosigned(length, None)
        head = self._head(wanted.author, wanted.count)
        self._never_twice(head)
        return Cosigned(length, cosign(self._identity, head))

    def _receive(self, wanted: CosignWanted, now: float) -> None:
        several = [entries.decode(data) for data in wanted.entries]
        if any(entry.author != wanted.author for entry in several):
            raise MalformedMessage("entries of another chain than the head to sign")
        if several:
            for verdict in self._book.receive_all(several, int(now)):
                if isinstance(verdict, Forked):
                    self._caught(verdict.proof)
        if self._convicted(wanted.author) or self._book.chain(wanted.author).forked:
            raise CallRefused("this chain has forked")

    def _head(self, author: bytes, count: int) -> Head:
        frontier = self._frontiers.pop(author, Frontier())
        if frontier.count > count:
            frontier = Frontier()
        frontier = frontier.grown(entries.hash_of(entry) for entry in self._book.of(author, frontier.count, count))
        self._frontiers[author] = frontier
        if len(self._frontiers) > _MOST_FRONTIERS:
            self._frontiers.popitem(last=False)
        last = self._book.find(author, count - 1)
        assert last is not None
        return Head(author, count, entries.hash_of(last), frontier.root)

    def _never_twice(self, head: Head) -> None:
        """The head continues, or is part of, what was signed before."""
        before = self._signed.longest(head.author)
        if before is not None:
            count, last = before
            known = self._book.find(head.author, count - 1)
            if known is None:
                raise CallRefused(f"this witness has signed a head of {count} entries; show these first")
            if entries.hash_of(known) != last:
                raise CallRefused("this witness has signed the head of another branch")
        if before is None or before[0] < head.count:
            self._signed.keep(head.author, head.count, head.last)
