"""The ledger of a running node, with its two sides of a session."""

import time
from dataclasses import dataclass

import anyio
import anyio.to_thread

from shoal.incentives.ledger import Ledger
from shoal.incentives.session_meter import LedgerMetering, Manifests
from shoal.incentives.session_payment import LedgerPaying
from shoal.incentives.store import Store
from shoal.swarm import peer_id
from shoal.swarm.errors import OutOfMemory
from shoal.swarm.home import Home
from shoal.swarm.identifiers import PeerId
from shoal.swarm.identity import Identity

from .node_events import Warned


def _now() -> float:
    return time.time()  # noqa: TID251  the shell's clock, passed on to the cores


@dataclass(frozen=True, slots=True)
class Books:
    ledger: Ledger

    def paying(self) -> LedgerPaying:
        return LedgerPaying(self.ledger)

    def metering(self, manifests: Manifests) -> LedgerMetering:
        return LedgerMetering(self.ledger, manifests, anyio.current_time)


def judges_of(owner: PeerId) -> frozenset[bytes]:
    return frozenset({peer_id.public_key_of(owner)})


async def open_books(home: Home, identity: Identity, owner: PeerId) -> tuple[Books | None, Warned | None]:
    """Replays all entries. None: the disk is full, and the node serves without books.

    owner: of the swarm; its verdicts create credit for training and take away what is earned by false work

    raises: UsageError, LocalFault when the file is there and is not a sound ledger
    """
    try:
        store = await anyio.to_thread.run_sync(lambda: Store(home.ledger, judges=judges_of(owner)))
    except OutOfMemory as error:
        return None, Warned(f"{error}; this node keeps no ledger until it is started again")
    warning = (
        Warned("the balances in the ledger did not fit its entries; they were made anew") if store.drifted else None
    )
    return Books(Ledger(store, identity, _now)), warning
