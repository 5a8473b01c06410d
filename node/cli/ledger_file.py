"""The ledger of a home, as the commands beside a node read it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.incentives import entry as entries
from shoal.incentives.store import Store
from shoal.node.audit_memory import AuditMemory
from shoal.node.books import judges_of
from shoal.swarm import peer_id
from shoal.swarm.errors import MalformedMessage, UsageError
from shoal.swarm.home import Home
from shoal.swarm.identifiers import PeerId
from shoal.swarm.identity import Identity
from shoal.swarm.members import membership_file


@contextmanager
def opened_ledger(folder: Path | None, peer: str | None = None) -> Iterator[tuple[Store, bytes]]:
    """The store, and the key that is asked about: this node's own, or that of `peer`, a PeerID or its end.

    raises: UsageError
    """
    home = Home.find(folder)
    identity = Identity.load(home.identity) if home.ledger.exists() else None
    if identity is None:
        raise UsageError(
            f"there is no ledger at {home.ledger}; a node that is started with it makes it: shoal up --ledger"
        )
    membership = membership_file.load(home.swarm)
    judges = judges_of(membership.swarm.owner) if membership else frozenset[bytes]()
    store = Store(home.ledger, read_only=True, judges=judges)
    try:
        yield store, identity.public_key if peer is None else _key(store, peer)
    finally:
        store.close()


@contextmanager
def kept_cases(folder: Path | None) -> Iterator[Callable[[bytes], bytes | None]]:
    """Evidence behind verdicts, by its hash, as far as this node keeps it. raises: LocalFault"""
    home = Home.find(folder)
    if not home.audits.exists():
        yield lambda _: None
        return
    memory = AuditMemory(home.audits, read_only=True)
    try:
        yield memory.case
    finally:
        memory.close()


def _key(store: Store, peer: str) -> bytes:
    known = [key for key in {*store.chains, *store.balances.accounts} if entries.peer_of(key).endswith(peer)]
    if len(known) == 1:
        return known[0]
    try:
        return peer_id.public_key_of(PeerId(peer))
    except MalformedMessage:
        found = f"{len(known)} peers" if known else "no peer"
        raise UsageError(f"the ledger knows {found} whose PeerID ends in {peer!r}; give all of it") from None


def now_s() -> int:
    return int(time.time())  # noqa: TID251  the shell's clock


def moment(unix_s: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))
