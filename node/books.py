"""The ledger of a running node, with its two sides of a session."""

import time
from dataclasses import dataclass

import anyio
import anyio.to_thread

from shoal.incentives.lane_accounts import LedgerAccounts, LedgerStamping
from shoal.incentives.ledger import Ledger
from shoal.incentives.session_meter import LedgerMetering, Manifests
from shoal.incentives.session_payment import LedgerPaying
from shoal.incentives.standing import Standings
from shoal.incentives.standing_view import view_of
from shoal.incentives.store import Store
from shoal.swarm import peer_id
from shoal.swarm.errors import OutOfMemory
from shoal.swarm.home import Home
from shoal.swarm.identifiers import PeerId
from shoal.swarm.identity import Identity
from shoal.swarm.membership import Swarm
from shoal.swarm.stamp import StampGate, StampMaker

from .node_events import Warned


def _now() -> float:
    return time.time()  # noqa: TID251  the shell's clock, passed on to the cores


@dataclass(frozen=True, slots=True)
class Books:
    """In a public swarm newcomers have to show a stamp; in a private one they were invited."""

    ledger: Ledger

    def paying(self) -> LedgerPaying:
        return LedgerPaying(self.ledger)

    def metering(self, manifests: Manifests) -> LedgerMetering:
        return LedgerMetering(self.ledger, manifests, anyio.current_time)

    def accounts(self, metering: LedgerMetering, swarm: Swarm) -> LedgerAccounts:
        gate = StampGate(swarm.id) if swarm.public else None
        return LedgerAccounts(self.ledger, metering.paid, gate, _now)

    def stamping(self, swarm: Swarm) -> LedgerStamping | None:
        return LedgerStamping(self.ledger, StampMaker(swarm.id, self.ledger.key, _now)) if swarm.public else None

    async def standings(self) -> Standings:
        """What this node thinks of others now; reads all entries. raises: ShoalError"""
        key = self.ledger.key
        return await self.ledger.use(lambda store: view_of(key, store))


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
