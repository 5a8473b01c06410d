"""Bringing a bundle here over member calls: the shell around `BlockTransfer`."""

import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from shoal.swarm.errors import OutOfMemory, RemoteFault, ShoalError, Unavailable
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.member_calls import MemberCalls

from .block_transfer import (
    HEDGE_S,
    MAX_PIECE_BYTES,
    Arrived,
    Ask,
    Block,
    BlockTransfer,
    Dropped,
    Effect,
    Event,
    Failed,
    Joined,
    Postponed,
    Store,
    Tick,
)
from .block_transfer_folder import BlockFolder
from .block_transfer_listing import MAX_LISTING_BYTES, BundleId, Listing, read_listing
from .block_transfer_messages import ANSWERS, LISTING, METHOD, REQUESTS, BlockAnswer, BlockRequest

PATIENCE_S = 5.0  # for one piece; a block that hangs is asked of another donor long before
MAX_DONORS = 8  # asked at once
SEARCH_PERIOD_S = 5.0  # between two looks for more donors
STUCK_PERIOD_S = 1.0  # the same while nobody is left
FORGIVEN_S = 15.0  # a donor that was dropped without a fault may come again
_LISTING_WAITS = 40

Result = TypeVar("Result")
Progress = Callable[[int, int], None]  # bytes here, bytes in all
Holders = Mapping[PeerId, frozenset[Block] | None]  # what each donor has; None: everything


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nobody is left who has what is missing."""

    reason: str


Told = Callable[[Dropped | Waiting], None]


@dataclass(frozen=True, slots=True)
class Search:
    """Donors that may come while a transfer runs. wait_s: how long it waits for one when none is left"""

    holders: Callable[[], Awaitable[Holders]]
    wait_s: float


@dataclass(slots=True)
class Transferred:
    """What a transfer took."""

    total_bytes: int
    kept_bytes: int  # were here before
    seconds: float = 0.0
    dropped: dict[PeerId, str] = field(default_factory=dict)
    dropped_at: dict[PeerId, float] = field(default_factory=dict)
    late: set[PeerId] = field(default_factory=set)  # owed an answer at the end
    faulty: tuple[PeerId, ...] = ()  # sent what no honest donor sends
    given_bytes: dict[PeerId, int] = field(default_factory=dict)


_GIVEN_UP = Failed(PeerId(""), -1, "nobody came", "silent")


def _reasons(report: Transferred) -> str:
    return "; ".join(f"{peer[-8:]}: {why}" for peer, why in list(report.dropped.items())[:3]) or "none was known"


class Threads:
    """Disk and hashing beside the event loop; a test in virtual time does them at once."""

    async def run(self, work: Callable[[], Result]) -> Result:
        return await anyio.to_thread.run_sync(work)


class BlockFetcher:
    def __init__(
        self,
        calls: MemberCalls,
        clock: Callable[[], float] = anyio.current_time,
        threads: Threads | None = None,
        patience_s: float = PATIENCE_S,
        method: str = METHOD,
    ) -> None:
        self._method = method
        self._calls, self._clock, self._threads, self._patience_s = calls, clock, threads or Threads(), patience_s

    async def listing(self, bundle: BundleId, donors: Sequence[PeerId], max_bytes: int = MAX_LISTING_BYTES) -> Listing:
        """The listing of a bundle from the first donor that has the right one.

        Another donor is asked when one has failed, or has not answered for a while.
        raises: Unavailable
        """
        reasons: list[str] = []
        found: list[Listing] = []

        async def ask(donor: PeerId, failed: anyio.Event) -> None:
            try:
                data = await self._listing_of(bundle, donor, min(max_bytes, MAX_LISTING_BYTES))
                found.append(read_listing(data, bundle))
                tasks.cancel_scope.cancel()
            except ShoalError as error:
                reasons.append(f"{donor[-8:]}: {error}")
                failed.set()

        async with anyio.create_task_group() as tasks:
            for donor in donors:
                failed = anyio.Event()
                tasks.start_soon(ask, donor, failed)
                with anyio.move_on_after(HEDGE_S / 2):
                    await failed.wait()
        if found:
            return found[0]
        raise Unavailable(f"nobody gave the listing of {bundle[:12]} ({'; '.join(reasons[:3]) or 'no donor known'})")

    async def bring(
        self,
        bundle: BundleId,
        listing: Listing,
        donors: Collection[PeerId] | Holders,
        folder: BlockFolder,
        progress: Progress | None = None,
        search: Search | None = None,
        told: Told | None = None,
        order: random.Random | None = None,
    ) -> Transferred:
        """Every wanted block into the folder, going on where an earlier attempt stopped.

        raises: Unavailable when no donor is left (what has come is kept), OutOfMemory
        """
        began = self._clock()
        transfer = BlockTransfer(listing, await self._threads.run(folder.prepare), folder.wanted, order)
        report = Transferred(transfer.total_bytes, transfer.kept_bytes)
        holders = donors if isinstance(donors, Mapping) else dict.fromkeys(donors)
        error = await self._move(transfer, bundle, holders, folder, report, progress, search, told)
        report.seconds = self._clock() - began
        report.late = transfer.late_donors(self._clock())
        if error is not None:
            raise error
        if transfer.stuck:
            here = f"{transfer.stored_bytes} of {transfer.total_bytes} bytes are here"
            raise Unavailable(f"no donor of {bundle[:12]} is left ({_reasons(report)}); {here}")
        await self._threads.run(folder.finish)
        return report

    async def _move(
        self,
        transfer: BlockTransfer,
        bundle: BundleId,
        holders: Holders,
        folder: BlockFolder,
        report: Transferred,
        progress: Progress | None,
        search: Search | None,
        told: Told | None,
    ) -> OutOfMemory | None:
        """Until the transfer is done or stuck. returns: what the disk said, if it failed"""
        give, take = anyio.create_memory_object_stream[Event](256)
        error: OutOfMemory | None = None
        waiting: list[Event] = [Joined(donor, have) for donor, have in holders.items()]
        async with give, take, anyio.create_task_group() as tasks:
            if search is not None and not transfer.done:
                tasks.start_soon(self._search, search, transfer, report, give, told)
            while error is None and not transfer.done and (waiting or not transfer.stuck or search is not None):
                events: list[Event] = []
                while waiting and len(transfer.donors) + len(events) < MAX_DONORS:
                    events.append(waiting.pop(0))
                if not events:
                    events.append(await self._next(transfer, take, report))
                if events[0] == _GIVEN_UP:
                    break
                effects = [effect for event in events for effect in transfer.handle(event, self._clock())]
                for ask in effects:
                    if isinstance(ask, Ask):
                        tasks.start_soon(self._ask, ask, bundle, give)
                error = await self._settle(effects, folder, report, told)
                if progress is not None:
                    progress(transfer.stored_bytes, transfer.total_bytes)
            tasks.cancel_scope.cancel()
        return error

    async def _search(
        self,
        search: Search,
        transfer: BlockTransfer,
        report: Transferred,
        give: MemoryObjectSendStream[Event],
        told: Told | None,
    ) -> None:
        """Tell of donors that have come, and of what those that are known have got since."""
        stuck_since: float | None = None
        looked_at = self._clock()
        while True:
            await anyio.sleep(STUCK_PERIOD_S if stuck_since is not None else STUCK_PERIOD_S / 4)
            now = self._clock()
            if not transfer.stuck:
                stuck_since = None
            elif stuck_since is None:
                stuck_since = now
                if told is not None:
                    told(Waiting(_reasons(report)))
            elif now - stuck_since > search.wait_s:
                await give.send(_GIVEN_UP)
                return
            if now - looked_at < (STUCK_PERIOD_S if stuck_since is not None else SEARCH_PERIOD_S):
                continue
            looked_at = now
            for donor, have in (await search.holders()).items():
                known = donor in transfer.donors
                forgiven = report.dropped_at.get(donor, -FORGIVEN_S) + FORGIVEN_S <= now
                room = len(transfer.donors) < MAX_DONORS
                if donor not in report.faulty and (known or (forgiven and room)):
                    await give.send(Joined(donor, have))

    async def _settle(
        self, effects: list[Effect], folder: BlockFolder, report: Transferred, told: Told | None
    ) -> OutOfMemory | None:
        """Write verified blocks and note who was dropped."""
        for effect in effects:
            match effect:
                case Store(file, offset, data):
                    try:
                        await self._threads.run(partial(folder.store, file, offset, data))
                    except OutOfMemory as error:
                        return error
                case Dropped(donor, reason, fault):
                    report.dropped[donor] = reason
                    report.dropped_at[donor] = self._clock()
                    report.faulty += (donor,) if fault else ()
                    if told is not None:
                        told(effect)
                case Ask():
                    pass  # under way
        return None

    async def _next(
        self, transfer: BlockTransfer, take: MemoryObjectReceiveStream[Event], report: Transferred
    ) -> Event:
        now = self._clock()
        wake_at = transfer.wake_at(now)
        event: Event = Tick()
        with anyio.move_on_after(None if wake_at is None else wake_at - now):
            event = await take.receive()
        if isinstance(event, Arrived):
            report.given_bytes[event.donor] = report.given_bytes.get(event.donor, 0) + len(event.data)
        return event

    async def _ask(self, ask: Ask, bundle: BundleId, give: MemoryObjectSendStream[Event]) -> None:
        event: Event
        try:
            answer = await self._call(ask.donor, BlockRequest(bundle, ask.file, ask.offset, ask.length))
            event = (
                Postponed(ask.donor, ask.ask, answer.wait_s)
                if answer.wait_s > 0
                else Arrived(ask.donor, ask.ask, answer.data)
            )
        except Unavailable as error:
            event = Failed(ask.donor, ask.ask, str(error), "silent")
        except RemoteFault as error:
            event = Failed(ask.donor, ask.ask, str(error), "lying")
        except ShoalError as error:
            event = Failed(ask.donor, ask.ask, str(error), "refused")
        await give.send(event)

    async def _call(self, donor: PeerId, request: BlockRequest) -> BlockAnswer:
        return ANSWERS.decode(await self._calls.call(donor, self._method, REQUESTS.encode(request), self._patience_s))

    async def _listing_of(self, bundle: BundleId, donor: PeerId, max_bytes: int) -> bytes:
        data, waits = bytearray(), 0
        while True:
            answer = await self._call(donor, BlockRequest(bundle, LISTING, len(data), MAX_PIECE_BYTES))
            if answer.wait_s > 0:
                waits += 1
                if waits > _LISTING_WAITS:
                    raise Unavailable("the donor is at its limit all the time")
                await anyio.sleep(min(answer.wait_s, 1.0))
                continue
            if answer.total_bytes > max_bytes or len(data) + len(answer.data) > answer.total_bytes:
                raise RemoteFault(f"a listing of {answer.total_bytes} bytes, more than was agreed on")
            data += answer.data
            if len(data) == answer.total_bytes:
                return bytes(data)
            if not answer.data:
                raise RemoteFault("a listing that stops in the middle")
