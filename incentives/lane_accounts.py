"""Which lane a session has, from the ledger: `swarm.lanes.Accounts` for a hop, and a driver's stamps."""

from collections.abc import Callable, Collection

from shoal.swarm import peer_id
from shoal.swarm.errors import MalformedMessage, Refused
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.lanes import Claim, Lane
from shoal.swarm.messages import Open
from shoal.swarm.stamp import Roots, StampGate, StampMaker

from .ledger import Ledger
from .store import Store


class LedgerAccounts:
    """paid: names of the sessions that are paid, as `LedgerMetering` keeps them

    gate: of the free lane; None where nobody needs a stamp, as in a swarm that admits by invitation
    clock: unix seconds
    """

    def __init__(
        self,
        ledger: Ledger,
        paid: Collection[SessionId],
        gate: StampGate | None,
        clock: Callable[[], float],
        roots: Roots = tuple,
    ) -> None:
        self._ledger, self._paid, self._gate, self._clock, self._roots = ledger, paid, gate, clock, roots

    async def claim(self, driver: PeerId, request: Open) -> Claim:
        if request.session in self._paid:
            return Claim(driver, Lane.PAID)
        key = peer_id.public_key_of(driver)
        if await has_contributed(self._ledger, key):
            return Claim(driver, Lane.EARNED)
        if self._gate is not None:
            try:
                self._gate.admit(request.stamp, key, self._clock(), self._roots())
            except MalformedMessage as error:
                raise Refused(f"the stamp cannot be read: {error}") from error
        return Claim(driver, Lane.FREE)


class LedgerStamping:
    """`swarm.lanes.Stamping` of a node that keeps books: it stamps until it has contributed."""

    def __init__(self, ledger: Ledger, maker: StampMaker) -> None:
        self._ledger, self._maker = ledger, maker

    async def stamp(self) -> bytes:
        return b"" if await has_contributed(self._ledger, self._ledger.key) else await self._maker.stamp()


async def has_contributed(ledger: Ledger, key: bytes) -> bool:
    """And has not signed two histories since."""

    def look(store: Store) -> bool:
        account = store.balances.accounts.get(store.balances.owner(key))
        return account is not None and account.contributed > 0 and not account.forked

    return not ledger.is_forger(key) and await ledger.use(look)
