"""The owner's book of invites and members, in SQLite.

Every change is one transaction that takes the write lock first, so of two processes that redeem one invite at the same
time exactly one wins, and a kill -9 leaves the state before or after a change, never between.
"""

import hmac
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shoal.swarm import private_file
from shoal.swarm.errors import Refused, UsageError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.identity import Identity

from .invite import (
    DEFAULT_TTL_S,
    SECRET_BYTES,
    JoinAnswer,
    JoinRequest,
    RenewRequest,
    answers,
    invite_id,
    prove,
    requests,
    write_invite,
)
from .membership import MAX_NAME_LENGTH, Swarm, check_certificate, issue
from .revocation import Revocations, sign_list

_SCHEMA = """
CREATE TABLE IF NOT EXISTS invites(
  id TEXT PRIMARY KEY, secret BLOB NOT NULL, created_at REAL NOT NULL, expires_at REAL NOT NULL,
  revoked_at REAL, used_by TEXT, used_at REAL, standing INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE IF NOT EXISTS members(
  peer TEXT PRIMARY KEY, name TEXT NOT NULL, serial TEXT NOT NULL, certificate BLOB NOT NULL,
  admitted_at REAL NOT NULL, revoked_at REAL) STRICT;
CREATE TABLE IF NOT EXISTS revocations(
  one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL, list BLOB NOT NULL) STRICT;
"""
_BUSY_S = 10.0
STANDING_LEFT_S = 86400.0  # the least that an invite on a start screen is still good for
InviteState = Literal["open", "used", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class InviteEntry:
    id: str
    created_at: float
    expires_at: float
    state: InviteState
    used_by: PeerId | None


@dataclass(frozen=True, slots=True)
class Member:
    peer: PeerId
    name: str
    admitted_at: float
    revoked_at: float | None


class InviteStore:
    """Safe to open from several processes; not from several threads.

    owner: the identity that owns the swarm
    raises: UsageError when the file is not such a store or belongs to somebody else
    """

    def __init__(self, path: Path, owner: Identity, swarm: Swarm) -> None:
        if swarm.owner != owner.peer_id:
            raise UsageError(f"only the owner of the swarm {swarm.name} can invite and revoke")
        self._owner = owner
        self._swarm = swarm
        private_file.make_folder(path.parent)
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            self._add_missing_column()
        except (sqlite3.Error, OSError) as error:
            raise UsageError(f"cannot open the invites in {path}: {error}") from error

    def _add_missing_column(self) -> None:
        """Stores of the first version know no standing invites."""
        with self._change() as db:
            columns = {row[1] for row in db.execute("PRAGMA table_info(invites)")}
            if "standing" not in columns:
                db.execute("ALTER TABLE invites ADD COLUMN standing INTEGER NOT NULL DEFAULT 0")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def create(self, bootstrap: tuple[str, ...], now: float, ttl_s: float = DEFAULT_TTL_S) -> str:
        """A new line to copy. In a public swarm it is not single-use and nothing is stored.

        bootstrap: multiaddrs with /p2p/, the owner's among them
        raises: UsageError
        """
        if not 0 < ttl_s < float("inf"):
            raise UsageError("an invite's lifetime must be greater than 0")
        secret = b"" if self._swarm.public else secrets.token_bytes(SECRET_BYTES)
        line = write_invite(self._owner, self._swarm, bootstrap, now + ttl_s, secret)
        if secret:
            with self._change() as db:
                _insert(db, secret, now, now + ttl_s, standing=False)
        return line

    def standing(self, bootstrap: tuple[str, ...], now: float) -> str:
        """The line of the start screen: the one of an earlier start, with the addresses of today, while nobody has
        used or revoked it and it is good for STANDING_LEFT_S; else a new one.

        raises: UsageError
        """
        if self._swarm.public:
            return self.create(bootstrap, now)
        with self._change() as db:
            row = db.execute(
                "SELECT secret, expires_at FROM invites WHERE standing = 1 AND used_by IS NULL AND revoked_at IS NULL"
                " AND expires_at >= ? ORDER BY expires_at DESC LIMIT 1",
                (now + STANDING_LEFT_S,),
            ).fetchone()
            secret, expires_at = row or (secrets.token_bytes(SECRET_BYTES), now + DEFAULT_TTL_S)
            line = write_invite(self._owner, self._swarm, bootstrap, expires_at, secret)
            if row is None:
                _insert(db, secret, now, expires_at, standing=True)
        return line

    def invites(self, now: float) -> list[InviteEntry]:
        """Newest first."""
        rows = self._db.execute(
            "SELECT id, created_at, expires_at, revoked_at, used_by FROM invites ORDER BY created_at DESC, id"
        )
        entries = []
        for id_, created_at, expires_at, revoked_at, used_by in rows:
            state: InviteState = "open"
            if used_by is not None:
                state = "used"
            elif revoked_at is not None:
                state = "revoked"
            elif expires_at <= now:
                state = "expired"
            entries.append(InviteEntry(id_, created_at, expires_at, state, used_by and PeerId(used_by)))
        return entries

    def revoke_invite(self, id_: str, now: float) -> None:
        """raises: UsageError when it is unknown or was used already"""
        with self._change() as db:
            row = db.execute("SELECT used_by FROM invites WHERE id = ?", (id_,)).fetchone()
            if row is None:
                raise UsageError(f"no invite {id_}; `shoal invite list` shows them")
            if row[0] is not None:
                raise UsageError(f"the invite {id_} was used by {row[0]}; revoke that peer instead")
            db.execute("UPDATE invites SET revoked_at = coalesce(revoked_at, ?), secret = x'' WHERE id = ?", (now, id_))

    def answer(self, peer: PeerId, data: bytes, now: float) -> bytes:
        """Answer a call of `JOIN_METHOD`.

        peer: the caller, authenticated by the transport
        raises: MalformedMessage, Refused (each cause with its own line)
        """
        request = requests.decode(data)
        match request:
            case JoinRequest():
                certificate = self.redeem(peer, request, now)
            case RenewRequest():
                certificate = self.renew(peer, request, now)
        return answers.encode(JoinAnswer(certificate, self.revocations()))

    def redeem(self, peer: PeerId, request: JoinRequest, now: float) -> bytes:
        """The certificate. Asking again with one's own used invite gives the same one (the answer may have been lost).

        raises: Refused
        """
        if not request.name.isprintable() or len(request.name) > MAX_NAME_LENGTH:
            raise Refused("the node's name is not printable or too long")
        with self._change() as db:
            row = db.execute(
                "SELECT secret, expires_at, revoked_at, used_by FROM invites WHERE id = ?", (request.invite,)
            ).fetchone()
            if row is None:
                raise Refused(f"the swarm {self._swarm.name} knows no such invite: it is forged or of another swarm")
            secret, expires_at, revoked_at, used_by = row
            if revoked_at is not None:
                raise Refused("the invite was revoked by the owner of the swarm")
            if not hmac.compare_digest(prove(secret, peer), request.proof):
                raise Refused("the invite is forged: its secret is wrong")
            member = db.execute("SELECT certificate, revoked_at FROM members WHERE peer = ?", (peer,)).fetchone()
            if member is not None and member[1] is not None:
                raise Refused(f"peer {peer} was revoked by the owner of the swarm {self._swarm.name}")
            if used_by is not None:
                if used_by != peer or member is None:
                    raise Refused("the invite was already used; an invite lets in one machine, ask for a new one")
                return bytes(member[0])
            if expires_at <= now:
                raise Refused("the invite has expired; ask for a new one")
            serial = secrets.token_hex(8)
            certificate = issue(self._owner, self._swarm, peer, serial, now)
            db.execute("UPDATE invites SET used_by = ?, used_at = ? WHERE id = ?", (peer, now, request.invite))
            db.execute(
                "INSERT OR REPLACE INTO members(peer, name, serial, certificate, admitted_at) VALUES (?, ?, ?, ?, ?)",
                (peer, request.name, serial, certificate, now),
            )
        return certificate

    def renew(self, peer: PeerId, request: RenewRequest, now: float) -> bytes:
        """A fresh certificate for a member whose own is still good. raises: Refused"""
        with self._change() as db:
            row = db.execute("SELECT revoked_at FROM members WHERE peer = ?", (peer,)).fetchone()
            if row is None:
                raise Refused(f"peer {peer} is not a member of the swarm {self._swarm.name}")
            reason = check_certificate(request.certificate, self._swarm, peer, now, self._known())
            if reason or row[0] is not None:
                raise Refused(reason or f"peer {peer} was revoked")
            serial = secrets.token_hex(8)
            certificate = issue(self._owner, self._swarm, peer, serial, now)
            db.execute("UPDATE members SET serial = ?, certificate = ? WHERE peer = ?", (serial, certificate, peer))
        return certificate

    def members(self) -> list[Member]:
        rows = self._db.execute("SELECT peer, name, admitted_at, revoked_at FROM members ORDER BY admitted_at, peer")
        return [Member(PeerId(peer), name, admitted_at, revoked_at) for peer, name, admitted_at, revoked_at in rows]

    def revoke_peer(self, peer: PeerId, now: float) -> bytes:
        """The new revocation list, signed, to be published. In a public swarm any peer can be revoked.

        raises: UsageError when the peer is unknown, or is the owner
        """
        if peer == self._owner.peer_id:
            raise UsageError("the owner cannot be revoked from its own swarm")
        with self._change() as db:
            row = db.execute("SELECT revoked_at FROM members WHERE peer = ?", (peer,)).fetchone()
            if row is None and not self._swarm.public:
                raise UsageError(f"{peer} is not a member; `shoal invite list` shows the members")
            if row is None:
                db.execute(
                    "INSERT INTO members(peer, name, serial, certificate, admitted_at) VALUES (?, '', '', x'', ?)",
                    (peer, now),
                )
            db.execute("UPDATE members SET revoked_at = coalesce(revoked_at, ?) WHERE peer = ?", (now, peer))
            return self._publish(db)

    def readmit_peer(self, peer: PeerId) -> bytes:
        """Take a peer off the list again. raises: UsageError when it is not on it"""
        with self._change() as db:
            changed = db.execute(
                "UPDATE members SET revoked_at = NULL WHERE peer = ? AND revoked_at IS NOT NULL", (peer,)
            )
            if not changed.rowcount:
                raise UsageError(f"{peer} is not revoked")
            return self._publish(db)

    def revocations(self) -> bytes:
        """The newest signed list, b"" when nobody was ever revoked."""
        row = self._db.execute("SELECT list FROM revocations").fetchone()
        return b"" if row is None else bytes(row[0])

    def _publish(self, db: sqlite3.Connection) -> bytes:
        peers = frozenset(
            PeerId(peer) for (peer,) in db.execute("SELECT peer FROM members WHERE revoked_at IS NOT NULL")
        )
        row = db.execute("SELECT version FROM revocations").fetchone()
        version = 1 if row is None else row[0] + 1
        try:
            data = sign_list(self._owner, self._swarm.id, version, peers)
        except ValueError as error:
            raise UsageError(f"{error}; found a new swarm and invite the members that should stay") from error
        db.execute("INSERT OR REPLACE INTO revocations(one, version, list) VALUES (1, ?, ?)", (version, data))
        return data

    def _known(self) -> Revocations:
        revocations = Revocations(self._swarm.id, self._swarm.owner)
        revocations.merge(self.revocations())
        return revocations


def _insert(db: sqlite3.Connection, secret: bytes, now: float, expires_at: float, *, standing: bool) -> None:
    db.execute(
        "INSERT INTO invites(id, secret, created_at, expires_at, standing) VALUES (?, ?, ?, ?, ?)",
        (invite_id(secret), secret, now, expires_at, int(standing)),
    )
