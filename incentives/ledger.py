"""The shell around a node's store: one caller at a time, on a thread of its own, several entries in one write.

What a session needs an answer to is awaited; words and settlements are handed over and written behind its back, in the
order in which they came.

Whoever writes own entries goes through here: nothing is signed before `allow`, when the node keeps a ledger that others
may know better. Until then an entry that is awaited is refused, and what is settled waits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import anyio
import anyio.to_thread
import structlog

from shoal.swarm.errors import ShoalError, Unavailable
from shoal.swarm.identity import Identity

from .bodies import Ack, AnyBody, Close, ForkProof
from .chain import Accepted, Chain, Forked, Refused
from .entry import Entry, hash_of
from .store import Owed, Store

TOGETHER_S = 1.0  # sessions that end within this time are settled in one write
BRIEF_ENTRIES = 4
MOST_UNWRITTEN = 4096  # settlements, and words, that wait for a disk with room
RETRY_S = 10.0  # until they are tried again

log = structlog.get_logger(__name__)

Result = TypeVar("Result")
Settled = Callable[[Entry], None]
Told = Callable[[Sequence[Entry]], None]


@dataclass(slots=True)
class _Wanted:
    body: AnyBody
    entry: Entry | None = None
    error: ShoalError | None = None


class Ledger:
    """clock: unix seconds. in_thread: False runs the store in the caller's own thread, for virtual time.
    may_sign: False for a node that first asks the others what they have of its own chain, until `allow`
    """

    def __init__(
        self,
        store: Store,
        identity: Identity,
        clock: Callable[[], float],
        *,
        in_thread: bool = True,
        may_sign: bool = True,
    ) -> None:
        self.store = store
        self.identity = identity
        self.may_sign = may_sign
        self.on_settled: list[Settled] = []  # called with each CLOSE of ours
        self.on_written: list[Told] = []  # called with own entries
        self.on_shown: list[Told] = []  # called with entries that their author showed us
        self.on_caught: list[Callable[[ForkProof], None]] = []
        self.is_forger: Callable[[bytes], bool] = lambda _author: False  # known before a FORKPROOF stands in the store
        self.failure: ShoalError | None = None  # of the last write behind a session's back
        self._clock = clock
        self._one = anyio.CapacityLimiter(1) if in_thread else None
        self._wanted: list[_Wanted] = []
        self._flushing = anyio.Lock()
        self._words: dict[bytes, Owed] = {}
        self._closes: list[Close] = []
        self._left: set[bytes] = set()  # OPENs of sessions that a process before this one left unsettled
        self._more = anyio.Event()
        self._closed = False

    @property
    def key(self) -> bytes:
        return self.identity.public_key

    def now(self) -> int:
        return int(self._clock())

    async def use(self, work: Callable[[Store], Result], *, brief: bool = False) -> Result:
        """Run something on the store.

        brief: it takes well under a millisecond and waits for no disk; a thread would cost more than the work
        raises: ShoalError, and what `work` raises
        """
        if self._closed:
            raise Unavailable("the ledger is closed")
        if self._one is None or (brief and not self._one.borrowed_tokens):
            return work(self.store)
        results: list[Result] = []
        with anyio.CancelScope(shield=True):  # a write that has begun ends before the store is closed
            results.append(await anyio.to_thread.run_sync(work, self.store, limiter=self._one))
        return results[0]

    async def append(self, body: AnyBody) -> Entry:
        """The next entry of the own chain, on the disk. Calls at the same time share one write.

        raises: Unavailable before `allow`, ShoalError
        """
        if not self.may_sign:
            raise Unavailable("this node asks the others for its own entries first; it may not sign yet")
        wanted = _Wanted(body)
        self._wanted.append(wanted)
        async with self._flushing:
            if wanted.entry is None and wanted.error is None:
                await self._flush()
        if wanted.error is not None:
            raise wanted.error
        assert wanted.entry is not None
        return wanted.entry

    async def _flush(self) -> None:
        taken, self._wanted = self._wanted, []
        now = self.now()
        try:
            entries = await self.use(lambda store: store.append_own(self.identity, [w.body for w in taken], now))
        except ShoalError as error:
            for wanted in taken:
                wanted.error = error
            return
        for wanted, entry in zip(taken, entries, strict=True):
            wanted.entry = entry
        self._tell(self.on_written, entries)

    def failed(self, error: ShoalError) -> None:
        """What no session may wait for or die of. Told once, until a write succeeds or something else fails."""
        if str(error) != str(self.failure) and not isinstance(error, Unavailable):
            log.warning("ledger_failed", reason=str(error))
        self.failure = error

    def allow(self) -> None:
        """This node knows all that it has ever signed: from now on it may sign."""
        self.may_sign = True
        self._more.set()

    @staticmethod
    def _tell(listeners: Sequence[Told], several: Sequence[Entry]) -> None:
        if several:
            for tell in listeners:
                tell(several)

    async def receive(self, entries: Sequence[Entry]) -> list[Accepted | Refused | Forked]:
        """Judge and keep what others wrote; whoever forks is convicted in the own chain. raises: ShoalError"""
        now = self.now()
        brief = len(entries) <= BRIEF_ENTRIES
        verdicts = await self.use(lambda store: store.receive_all(entries, now), brief=brief)
        pairs = zip(entries, verdicts, strict=True)
        self._tell(self.on_shown, [entry for entry, verdict in pairs if isinstance(verdict, Accepted)])
        for verdict in verdicts:
            if isinstance(verdict, Forked) and verdict.chain.author != self.key:
                for tell in self.on_caught:
                    tell(verdict.proof)
                if self.may_sign:
                    await self.append(verdict.proof)
        return verdicts

    async def acknowledge(self, close: Entry, complaint: int = 0) -> Entry:
        """Our last word on somebody's CLOSE of an OPEN of ours. complaint: an index in `COMPLAINTS`

        raises: ShoalError
        """
        return await self.append(Ack(hash_of(close), complaint))

    async def chain(self, author: bytes) -> Chain:
        return await self.use(lambda store: store.chain(author), brief=True)

    async def spendable(self, key: bytes) -> int:
        """Credits that an account could set aside now."""
        now = self.now()

        def look(store: Store) -> int:
            list(store.balances.advance(key, now))
            return store.balances.account(key).spendable

        return await self.use(look, brief=True)

    def glance(self, key: bytes) -> int:
        """As `spendable`, without waiting: while a write goes on, what was known before it."""
        balances = self.store.balances
        if self._one is None or not self._one.borrowed_tokens:
            list(balances.advance(key, self.now()))
        account = balances.accounts.get(balances.owner(key))
        return account.spendable if account is not None else 0

    # Behind a session's back

    def owe(self, opened: bytes, ticks: int, word: bytes) -> None:
        """Keep the best word of a session, so that it can be settled after a crash."""
        owed = Owed(opened, ticks, word)
        if not self._closed and (self._one is None or not self._one.borrowed_tokens):
            try:
                self.store.owe_all([owed])  # 20 us; a thread would take longer to be asked
            except ShoalError as error:
                self.failed(error)
                if len(self._words) < MOST_UNWRITTEN:
                    self._words[opened] = owed
            else:
                self._words.pop(opened, None)
            return
        self._words[opened] = owed
        self._more.set()

    def settle(self, close: Close) -> None:
        self._words.pop(close.open, None)
        self._closes.append(close)
        self._more.set()

    async def run(self) -> None:
        """Write what sessions handed over, for ever; first what a process before this one left unsettled."""
        try:
            self._left = {owed.open for owed in await self.use(Store.owed)}
        except ShoalError as error:
            self.failed(error)
        self._more.set()
        while True:
            with anyio.move_on_after(RETRY_S if self._waits else None):
                await self._more.wait()
            self._more = anyio.Event()
            await anyio.sleep(TOGETHER_S)
            await self.flush()

    @property
    def _waits(self) -> bool:
        """Whether something could not be written."""
        return bool(self._closes or self._words or self._left or self.store.is_full)

    async def flush(self) -> None:
        """Write what was handed over until now. What cannot be written waits for the next, as far as there is room."""
        words, self._words = self._words, {}
        closes, now = self._closes, self.now()
        if not self.may_sign:  # then they wait here, and on the disk as what is owed
            late = [Owed(close.open, close.ticks, close.word) for close in closes if close.ticks]
            try:
                await self.use(lambda store: store.owe_all([*words.values(), *late]))
            except ShoalError as error:
                self.failed(error)
            return
        self._closes = []
        left, self._left = self._left, set()

        def write(store: Store) -> list[Entry]:
            store.write_waiting()
            store.owe_all(list(words.values()))
            # of a process that was killed: its sessions are over, unless our own chain settles them
            late = (
                [Close(owed.open, owed.ticks, owed.word) for owed in store.owed() if owed.open in left] if left else []
            )
            return store.append_own(self.identity, [*closes, *late], now) if closes or late else []

        try:
            settled = await self.use(write)
        except ShoalError as error:
            self.failed(error)
            self._closes = [*closes, *self._closes][:MOST_UNWRITTEN]
            self._left |= left
            settled_now = {close.open for close in self._closes}
            self._words = {open_: owed for open_, owed in {**words, **self._words}.items() if open_ not in settled_now}
            return
        self.failure = None
        self._tell(self.on_written, settled)
        for entry in settled:
            for tell in self.on_settled:
                tell(entry)

    async def close(self) -> None:
        """After the last session. Own words that cannot be settled now are settled at the next start."""
        with anyio.CancelScope(shield=True):
            await self.flush()
            await self.use(Store.close)
            self._closed = True
