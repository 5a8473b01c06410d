"""Which lane a session has, from the ledger: `swarm.lanes.Accounts` for a hop, and a driver's stamps."""

from collections.abc import Callable, Collection

from shoal.swarm import peer_id
from shoal.swarm.errors import MalformedMessage, Refused
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.members.stamp import Roots, StampGate, StampMaker
from shoal.swarm.sessions.lanes import Claim, Lane
from shoal.swarm.sessions.messages import Open

from .bodies import TICK_TOKENS
from .ledger import Ledger
from .store import Store

OWED_S = 60.0  # how old the view of what this node owes may become


class LedgerAccounts:
    """Paid is what the session's own OPEN covers; earned what this node owes (`favours`); all else is free.

    paid: names of the sessions that are paid, as `LedgerMetering` keeps them

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

        self._owed: dict[bytes, float] = {}  # ticks, by account
        self._owed_at = float("-inf")

    async def claim(self, driver: PeerId, request: Open) -> Claim:
        if request.session in self._paid:
            return Claim(driver, Lane.PAID)
        key = peer_id.public_key_of(driver)
        if await self._is_owed(key, request.max_tokens / TICK_TOKENS):
            return Claim(driver, Lane.EARNED)
        if self._gate is not None and not await has_contributed(self._ledger, key):
            try:
                self._gate.admit(request.stamp, key, self._clock(), self._roots())
            except MalformedMessage as error:
                raise Refused(f"the stamp cannot be read: {error}") from error
        return Claim(driver, Lane.FREE)

    async def _is_owed(self, key: bytes, ticks: float) -> bool:
        """Whether this node owes so much for work that it did not pay for; what is granted counts as given back."""
        me, now, known = self._ledger.key, self._clock(), self._owed

        def look(store: Store) -> tuple[bytes, dict[bytes, float]]:
            balances = store.balances
            if now - self._owed_at < OWED_S:
                return balances.owner(key), known
            forked = [name for name, account in balances.accounts.items() if account.forked]
            return balances.owner(key), balances.favours.owed(balances.owner(me), int(now), forked=forked)

        account, owed = await self._ledger.use(look)
        if owed is not known:
            self._owed, self._owed_at = owed, now
        if self._ledger.is_forger(key) or self._owed.get(account, 0.0) < ticks:
            return False
        self._owed[account] -= ticks
        return True


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
