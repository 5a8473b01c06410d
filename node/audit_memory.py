"""What this node has found out about others by auditing, in one SQLite file: it outlives a restart.

Suspicion of servers and of auditors, windows of refusals, links between neighbours, limits of classes, and the cases
behind verdicts. It is a memory and no ledger: losing it makes everybody a newcomer, whose work is looked at more often.
"""

import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
import structlog

from shoal.incentives.audit_threshold import Finding, Threshold
from shoal.incentives.refusals import Refusals
from shoal.incentives.sequential_test import Suspicion
from shoal.incentives.standing import FALSE_AUDITS, FALSE_LINKS, FALSE_WORK, SHOWS_NO_WORK
from shoal.incentives.work_links import is_distrusted
from shoal.swarm.errors import LocalFault

log = structlog.get_logger(__name__)
KEEP_CASES_S = 30 * 86_400
KEEP_CASES_BYTES = 256 << 20  # the oldest go first
Value = TypeVar("Value")


def _now() -> float:
    return time.time()  # noqa: TID251  the shell's clock


class AuditMemory:
    """path: None keeps all in memory. What cannot be read or written costs the memory of it and nothing else; a damaged
    file is put aside.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = _now, *, read_only: bool = False) -> None:
        """raises: LocalFault with `read_only`, when the file is damaged"""
        self._clock = clock
        self._database: sqlite3.Connection | None = None
        if path is not None and read_only:
            self._database = _read_only(path)
        else:
            try:
                self._database = _opened(path)
            except sqlite3.Error as error:
                log.warning("audit_memory_unusable", reason=str(error))
        self.servers: dict[bytes, Suspicion] = self._all("server", Suspicion)
        self.auditors: dict[bytes, Suspicion] = self._all("auditor", Suspicion)
        self.refusals: dict[bytes, Refusals] = self._all("refusals", Refusals)
        self.links: defaultdict[bytes, dict[bytes, bool]] = defaultdict(dict)
        for pair, false in self._all("link", bool).items():
            self.links[pair[:32]][pair[32:]] = false

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
        self._database = None

    # About others, by key

    def server(self, key: bytes) -> Suspicion:
        return self.servers.get(key, Suspicion())

    def auditor(self, key: bytes) -> Suspicion:
        return self.auditors.get(key, Suspicion())

    def found(self, server: bytes, finding: Finding) -> None:
        known = self.servers[server] = self.server(server).after(finding)
        self._keep("server", server, known)

    def audited(self, auditor: bytes, finding: Finding) -> None:
        """What an auditor's re-execution was worth."""
        known = self.auditors[auditor] = self.auditor(auditor).after(finding)
        self._keep("auditor", auditor, known)

    def answered(self, server: bytes, *, refused: bool) -> None:
        """Whether it showed the work that it was asked for."""
        known = self.refusals[server] = self.refusals.get(server, Refusals()).after(refused, self._clock())
        self._keep("refusals", server, known)

    def linked(self, one: bytes, other: bytes, *, false: bool) -> None:
        """What one signed as output, and the other as input: a false link is remembered."""
        for pair in ((one, other), (other, one)):
            known = self.links[pair[0]][pair[1]] = false or self.links[pair[0]].get(pair[1], False)
            self._keep("link", b"".join(pair), known)

    def why_avoided(self, key: bytes) -> str:
        """What own audits alone, without a verdict that others can check, say against a peer; "" for nothing."""
        refusals, links = self.refusals.get(key), self.links.get(key)
        if self.server(key).convicted:
            return FALSE_WORK
        if self.auditor(key).convicted:
            return FALSE_AUDITS
        if refusals is not None and refusals.is_habit:
            return SHOWS_NO_WORK
        return FALSE_LINKS if links is not None and is_distrusted(links) else ""

    def is_avoided(self, key: bytes) -> bool:
        return bool(self.why_avoided(key))

    def avoided(self) -> dict[bytes, str]:
        """Why, by key."""
        known = {*self.servers, *self.auditors, *self.refusals, *self.links}
        return {key: why for key in known if (why := self.why_avoided(key))}

    # Limits of classes

    def threshold(self, name: bytes) -> Threshold | None:
        return self._all("threshold", Threshold).get(name)

    def keep_threshold(self, name: bytes, threshold: Threshold) -> None:
        self._keep("threshold", name, threshold)

    # Cases

    def case(self, digest: bytes) -> bytes | None:
        """Encoded, as it was kept."""
        rows = self._run("SELECT value FROM memory WHERE kind = 'case' AND key = ?", digest)
        return bytes(rows[0][0]) if rows else None

    def keep_case(self, digest: bytes, data: bytes) -> None:
        self._write("case", digest, data)
        self._run("DELETE FROM memory WHERE kind = 'case' AND at < ?", self._clock() - KEEP_CASES_S)
        held = 0
        for key, size in self._run("SELECT key, length(value) FROM memory WHERE kind = 'case' ORDER BY at DESC"):
            held += size
            if held > KEEP_CASES_BYTES:
                self._run("DELETE FROM memory WHERE kind = 'case' AND key = ?", key)

    def was_reviewed(self, digest: bytes) -> bool:
        """Whether somebody else's case with this hash, or of the statement with it, was computed again here."""
        return bool(self._run("SELECT 1 FROM memory WHERE kind = 'review' AND key = ?", digest))

    def note_review(self, digest: bytes) -> None:
        self._write("review", digest, b"")
        self._run("DELETE FROM memory WHERE kind = 'review' AND at < ?", self._clock() - KEEP_CASES_S)

    # The file

    def _keep(self, kind: str, key: bytes, value: object) -> None:
        self._write(kind, key, msgspec.msgpack.encode(value))

    def _write(self, kind: str, key: bytes, data: bytes) -> None:
        self._run("INSERT OR REPLACE INTO memory VALUES (?, ?, ?, ?)", kind, key, data, self._clock())

    def _all(self, kind: str, of: type[Value]) -> dict[bytes, Value]:
        found: dict[bytes, Value] = {}
        for key, data in self._run("SELECT key, value FROM memory WHERE kind = ?", kind):
            try:
                found[key] = msgspec.msgpack.decode(data, type=of)
            except (msgspec.MsgspecError, ValueError):
                continue  # of another version
        return found

    def _run(self, query: str, *values: object) -> list[Any]:
        if self._database is None:
            return []
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            log.warning("audit_memory_unusable", reason=str(error))
            return []


def _opened(path: Path | None) -> sqlite3.Connection:
    """raises: sqlite3.Error"""
    try:
        return _prepared(str(path or ":memory:"))
    except sqlite3.DatabaseError as error:
        if path is None or error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise
        log.warning("audit_memory_begun_anew", reason=str(error))
    path.replace(path.with_name(f"{path.name}.damaged"))
    for more in ("-wal", "-shm"):
        path.with_name(path.name + more).unlink(missing_ok=True)
    return _prepared(str(path))


def _prepared(where: str) -> sqlite3.Connection:
    """raises: sqlite3.Error"""
    database = sqlite3.connect(where, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")  # no write waits for the disk: they are made on the event loop
        database.execute(
            "CREATE TABLE IF NOT EXISTS memory (kind TEXT, key BLOB, value BLOB NOT NULL, at REAL NOT NULL, "
            "PRIMARY KEY (kind, key)) WITHOUT ROWID"
        )
    except sqlite3.Error:
        database.close()
        raise
    return database


def _read_only(path: Path) -> sqlite3.Connection:
    """raises: LocalFault"""
    database = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None)
    try:
        database.execute("SELECT max(at) FROM memory")
    except sqlite3.Error as error:
        database.close()
        raise LocalFault(f"cannot read the audits in {path}: {error}; a node that starts begins it anew") from error
    return database
