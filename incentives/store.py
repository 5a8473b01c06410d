"""All entries that a node has, in one SQLite file, with the balances that follow from them.

Append only. An entry and what it changes are one transaction, so that a process killed at any instant leaves both or
neither. An own entry is on the disk (synchronous=FULL) before its signature leaves this object: the own chain never
forks, whatever happens to the process. One thread at a time.

While the disk is full, what others wrote counts all the same and waits in memory, within a bound; own entries are
refused until there is room.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from shoal.swarm.errors import LocalFault, MalformedMessage, OutOfMemory, ShoalError, UsageError
from shoal.swarm.identity import Identity

from . import entry as entries
from . import projection
from .balances import Balances, Movement
from .bodies import AnyBody, Close, Rotate
from .chain import Accepted, Chain, Forked, Refused, judge
from .entry import Entry

FORMAT = 3
KEPT_ROOTS = 4
MOST_WAITING = 4096  # entries of others that wait for a disk with room
_AUTHOR_AT = 3  # of an encoded entry: array head, bin head, length; then the author's 32 bytes, kept once in `peers`
_AUTHOR_END = _AUTHOR_AT + 32
# What SQLite makes of a quota or a limit on a file's size, beside SQLITE_FULL
_NO_ROOM = {sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_TRUNCATE, sqlite3.SQLITE_IOERR_FSYNC}
_SCHEMA = """
CREATE TABLE peers (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE);
CREATE TABLE entries (
    id INTEGER PRIMARY KEY, peer INTEGER NOT NULL, seq INTEGER NOT NULL, received INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE UNIQUE INDEX places ON entries (peer, seq);
CREATE TABLE projection (kind TEXT, key BLOB, value BLOB NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE TABLE owed (open BLOB PRIMARY KEY, ticks INTEGER NOT NULL, word BLOB NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """An entry that is in the store."""

    number: int  # in the order in which they came
    received: int  # unix seconds
    entry: Entry

    @property
    def at(self) -> int:
        """When it counts."""
        return min(self.received, self.entry.time)


@dataclass(frozen=True, slots=True)
class Owed:
    """The best word of a session that is not settled yet."""

    open: bytes
    ticks: int
    word: bytes


class Store:
    """Every method raises, beside what it says, LocalFault when the file was damaged since it was opened.

    drifted: whether the balances on the disk were not those that the entries give; they are now"""

    def __init__(self, path: Path | None, *, read_only: bool = False, judges: frozenset[bytes] = frozenset()) -> None:
        """path: None keeps all in memory. read_only: beside a node that runs. judges: see `Balances`.

        raises: UsageError, OutOfMemory (disk full), LocalFault (the file is not what was written)
        """
        self.judges = judges
        self.balances = Balances(judges)
        self.chains: dict[bytes, Chain] = {}
        self.drifted = False
        self.is_full = False  # the last write found no room
        self._waiting: dict[tuple[bytes, int], tuple[Entry, int]] = {}  # taken in, and not on the disk; when it came
        self._roots: tuple[tuple[int, bytes], ...] = ()  # of judges: hour and hash of the last entry in it, newest last
        self._peers: dict[bytes, int] = {}
        self._successors: dict[bytes, bytes] = {}  # hash of a ROTATE -> its author
        self._path = path
        self._read_only = read_only
        mode = "ro" if read_only else "rwc"
        where = f"file:{quote(str(path))}?mode={mode}" if path else "file::memory:"
        try:
            self._database = sqlite3.connect(where, isolation_level=None, check_same_thread=False, uri=True)
        except sqlite3.Error as error:
            raise self._told(error) from error
        try:
            self._prepare()
            self._replay()
        except sqlite3.Error as error:
            self._database.close()
            raise self._told(error) from error
        except (LocalFault, MalformedMessage) as error:
            self._database.close()
            raise self._damaged(error) from error
        except ShoalError:
            self._database.close()
            raise

    def close(self) -> None:
        self._database.close()

    def _prepare(self) -> None:
        run = self._database.execute
        run("PRAGMA busy_timeout = 5000")
        if not self._read_only:
            run("PRAGMA journal_mode = WAL")
            run("BEGIN IMMEDIATE")
        version = run("PRAGMA user_version").fetchone()[0]
        if version == 0 and not self._read_only:
            for statement in _SCHEMA.split(";"):
                run(statement)
            run(f"PRAGMA user_version = {FORMAT}")
        if not self._read_only:
            run("COMMIT")
        if version not in (0, FORMAT):
            raise UsageError(f"the ledger has format {version}, this version of shoal reads {FORMAT}")

    def _replay(self) -> None:
        """Rebuild chains and balances from the entries, and compare."""
        self.balances = Balances(self.judges)
        self.chains.clear()
        self._roots = ()
        self._peers.clear()
        self._successors.clear()
        run = self._database.execute
        run("BEGIN")  # what a node writes meanwhile is seen whole or not at all
        try:
            for number, key in run("SELECT id, key FROM peers"):
                self._peers[key] = number
            for stored in self.all():
                self._take(stored)
            kept = {(kind, key): value for kind, key, value in run("SELECT * FROM projection")}
        finally:
            run("COMMIT")
        self.balances.changed.clear()
        rebuilt = projection.rows(self.balances)
        if kept == rebuilt or (not kept and not self.chains):
            return
        self.drifted = True
        if self._read_only:
            return
        with _Transaction(self._database, durable=True) as run:
            run("DELETE FROM projection")
            for (kind, key), value in rebuilt.items():
                run("INSERT INTO projection VALUES (?, ?, ?)", (kind, key, value))

    def _take(self, stored: Stored) -> list[Movement]:
        """Into the chains and the balances, without asking whether it is right: it was when it came."""
        entry = stored.entry
        chain = self.chain(entry.author)
        if entry.seq != chain.length or (chain.length and entry.prev != chain.head):
            raise LocalFault(f"entry {entry.seq} of {entries.peer_of(entry.author)} does not follow the one before it")
        digest = entries.hash_of(entry)
        successor = entry.body.new_key if isinstance(entry.body, Rotate) else b""
        if successor:
            self._successors[digest] = entry.author
        if entry.author in self.judges:
            hour = entry.time // 3600
            kept = tuple(root for root in self._roots if root[0] < hour)
            self._roots = (*kept[-KEPT_ROOTS:], (hour, digest))
        self.chains[entry.author] = Chain(
            entry.author, entry.seq + 1, digest, entry.time, entry.signature, stored.received, successor
        )
        return self.balances.apply(entry.author, entry.body, digest, stored.at)

    # Reading

    def roots(self, now: float) -> tuple[bytes, ...]:
        """Hashes of what judges last signed in hours before this one, the newest first, at most two. `stamp.Roots`"""
        known = [digest for hour, digest in self._roots if hour < int(now) // 3600]
        return tuple(reversed(known[-2:]))

    def chain(self, author: bytes) -> Chain:
        found = self.chains.get(author) or Chain(author)
        account = self.balances.accounts.get(self.balances.owner(author))
        if account is not None and account.forked:
            return Chain(author, found.length, found.head, found.time, found.signature, found.received, forked=True)
        return found

    def find(self, author: bytes, seq: int) -> Entry | None:
        if (author, seq) in self._waiting:
            return self._waiting[author, seq][0]
        rows = self._rows("WHERE e.peer = ? AND e.seq = ?", (self._peers.get(author, -1), seq))
        return next((stored.entry for stored in rows), None)

    def of(self, author: bytes, start: int = 0, stop: int = 2**32) -> list[Entry]:
        """Entries [start, stop) of one author, in order."""
        where = "WHERE e.peer = ? AND e.seq >= ? AND e.seq < ? ORDER BY e.seq"
        written = [stored.entry for stored in self._rows(where, (self._peers.get(author, -1), start, stop))]
        waiting = sorted(seq for who, seq in self._waiting if who == author and start <= seq < stop)
        return written + [self._waiting[author, seq][0] for seq in waiting]

    def all(self) -> Iterator[Stored]:
        """In the order in which they came."""
        return self._rows("ORDER BY e.id", ())

    def after(self, number: int) -> list[Stored]:
        """Entries that came behind this one."""
        return list(self._rows("WHERE e.id > ? ORDER BY e.id", (number,)))

    def last(self) -> int:
        """Number of the entry that came last, 0 before the first."""
        return int(self._read("SELECT coalesce(max(id), 0) FROM entries")[0][0])

    def _rows(self, where: str, values: Sequence[int]) -> Iterator[Stored]:
        query = f"SELECT e.id, p.key, e.received, e.data FROM entries e JOIN peers p ON p.id = e.peer {where}"  # noqa: S608  ours
        try:
            for number, key, received, data in self._database.execute(query, values):
                yield Stored(number, received, entries.decode(data[:_AUTHOR_AT] + key + data[_AUTHOR_AT:]))
        except sqlite3.Error as error:
            raise self._told(error) from error

    def _read(self, query: str, values: Sequence[bytes] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._told(error) from error

    # Writing

    def append_own(self, author: Identity, bodies: Sequence[AnyBody], now: int) -> list[Entry]:
        """Sign the next entries of the own chain. They are on the disk when this returns.

        raises: OutOfMemory (disk full), LocalFault (the own key was rotated away, or has forked)
        """
        if self.is_full:
            self.write_waiting()
        chain = self.chain(author.public_key)
        if chain.successor or chain.forked:
            raise LocalFault("this key may not sign entries any more")
        written: list[Entry] = []
        seq, prev, time = chain.length, chain.head, max(now, chain.time)
        for body in bodies:
            entry = entries.write(author, seq, prev, time, body)
            written.append(entry)
            seq, prev = seq + 1, entries.hash_of(entry)
        self._insert([(entry, now) for entry in written])
        return written

    def receive(self, entry: Entry, now: int) -> Accepted | Refused | Forked:
        """Judge somebody's entry and keep it when it is right. A fork is returned, not kept: who sees it writes a
        FORKPROOF, which convicts."""
        return self.receive_all([entry], now)[0]

    def receive_all(self, several: Sequence[Entry], now: int) -> list[Accepted | Refused | Forked]:
        """As `receive`, in one transaction."""
        verdicts: list[Accepted | Refused | Forked] = []
        ahead: dict[bytes, Chain] = {}
        fresh: dict[tuple[bytes, int], Entry] = {}
        for entry in several:
            chain = ahead.get(entry.author) or self.chain(entry.author)
            known = None
            if entry.seq < chain.length:
                known = fresh.get((entry.author, entry.seq)) or self.find(entry.author, entry.seq)
            predecessor = self.chains.get(self._successors.get(entry.prev, b""))
            verdict = judge(entry, chain, known, predecessor, now)
            if isinstance(verdict, Accepted):
                ahead[entry.author] = verdict.chain
                fresh[entry.author, entry.seq] = entry
            verdicts.append(verdict)
        self._keep([(entry, now) for entry in fresh.values()])
        return verdicts

    def _keep(self, several: list[tuple[Entry, int]]) -> None:
        """What others wrote: it counts at once, and is written when there is room."""
        if len(self._waiting) + len(several) > MOST_WAITING:
            self.write_waiting()
        for entry, now in several:
            self._take(Stored(0, now, entry))
            self._waiting[entry.author, entry.seq] = entry, now
        if self.is_full or not several:
            return
        try:
            self.write_waiting()
        except OutOfMemory:
            return
        except ShoalError:
            for entry, _ in several:
                del self._waiting[entry.author, entry.seq]
            self._back_to_the_disk()
            raise

    def write_waiting(self) -> None:
        """Write what waits for room, if anything does. raises: OutOfMemory"""
        if not self._waiting and not self.is_full:
            return
        changed = {*self.balances.changed, ("totals", b"")}  # which shows whether there is room when nothing waits
        try:
            with _Transaction(self._database, durable=False):
                for entry, now in self._waiting.values():
                    self._insert_one(entry, now)
                self.balances.changed |= changed
                self._write_rows()
        except sqlite3.Error as error:
            self.balances.changed |= changed
            self._peers = {key: number for number, key in self._read("SELECT id, key FROM peers")}
            raise self._told(error) from error
        self._waiting.clear()
        self.is_full = False

    def _back_to_the_disk(self) -> None:
        """What is in memory goes back to what is on the disk, and what waits for it. raises: LocalFault, OutOfMemory"""
        try:
            self._replay()
        except sqlite3.Error as error:
            raise self._told(error) from error
        for entry, now in self._waiting.values():
            self._take(Stored(0, now, entry))

    def _insert(self, several: list[tuple[Entry, int]]) -> None:
        try:
            with _Transaction(self._database, durable=True):
                for entry, now in several:
                    self._insert_one(entry, now)
                    self._take(Stored(0, now, entry))
                self._write_rows()
        except sqlite3.Error as error:
            self._back_to_the_disk()
            raise self._told(error) from error
        self.is_full = False

    def _insert_one(self, entry: Entry, now: int) -> None:
        data, run = entries.encode(entry), self._database.execute
        run(
            "INSERT INTO entries (peer, seq, received, data) VALUES (?, ?, ?, ?)",
            (self._peer(entry.author), entry.seq, now, data[:_AUTHOR_AT] + data[_AUTHOR_END:]),
        )
        if isinstance(entry.body, Close):
            run("DELETE FROM owed WHERE open = ?", (entry.body.open,))

    def _peer(self, key: bytes) -> int:
        number = self._peers.get(key)
        if number is None:
            row = self._database.execute("INSERT INTO peers (key) VALUES (?)", (key,))
            number = self._peers[key] = row.lastrowid or 0
        return number

    def _write_rows(self) -> None:
        run = self._database.execute
        for kind, key in self.balances.changed:
            value = projection.row(self.balances, kind, key)
            if value is None:
                run("DELETE FROM projection WHERE kind = ? AND key = ?", (kind, key))
            else:
                run("INSERT OR REPLACE INTO projection VALUES (?, ?, ?)", (kind, key, value))
        self.balances.changed.clear()

    # Sessions that run

    def owe_all(self, several: Sequence[Owed]) -> None:
        """Keep the best words of sessions, so that a killed server can still settle. raises: OutOfMemory"""
        if not several:
            return
        try:
            with _Transaction(self._database, durable=False) as run:
                for owed in several:
                    run("INSERT OR REPLACE INTO owed VALUES (?, ?, ?)", (owed.open, owed.ticks, owed.word))
        except sqlite3.Error as error:
            raise self._told(error) from error

    def is_owed(self, opened: bytes) -> bool:
        """Whether words of a session with this OPEN are kept."""
        return bool(self._read("SELECT 1 FROM owed WHERE open = ?", (opened,)))

    def owed(self) -> list[Owed]:
        return [Owed(*row) for row in self._read("SELECT open, ticks, word FROM owed")]

    def _told(self, error: sqlite3.Error) -> ShoalError:
        code = getattr(error, "sqlite_errorcode", 0)
        no_room = code in _NO_ROOM
        code &= 0xFF  # without what SQLite adds to it
        if code == sqlite3.SQLITE_FULL or no_room:
            self.is_full = True
            return OutOfMemory(f"the disk is full: the ledger {self._path} cannot be written")
        if code == sqlite3.SQLITE_CANTOPEN:
            return UsageError(f"there is no ledger at {self._path}")
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return self._damaged(error)
        return UsageError(f"cannot use the ledger {self._path}: {error}")

    def _damaged(self, why: Exception) -> LocalFault:
        return LocalFault(
            f"cannot use the ledger {self._path}, it is damaged: {why}; move it away, with its -wal and -shm, "
            "and the node gets its own entries back from the others when it starts"
        )

    def size_bytes(self) -> int:
        """Of the database without its write-ahead log."""
        pages, free, size = (
            self._read(f"PRAGMA {name}")[0][0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)


class _Transaction:
    """All or nothing, on the disk when it ends if `durable`."""

    def __init__(self, database: sqlite3.Connection, *, durable: bool) -> None:
        self._database = database
        self._durable = durable

    def __enter__(self) -> Callable[..., sqlite3.Cursor]:
        self._database.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'NORMAL'}")
        self._database.execute("BEGIN IMMEDIATE")
        return self._database.execute

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None:
            try:
                self._database.execute("COMMIT")
            except sqlite3.Error:
                self._roll_back()
                raise
        else:
            self._roll_back()

    def _roll_back(self) -> None:
        if self._database.in_transaction:  # a full disk may have ended it already
            self._database.execute("ROLLBACK")
