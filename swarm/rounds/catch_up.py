"""Joining late, or coming back: a checkpoint from several donors, then the rounds since, until the group is reached.

Whoever is reached has the group's bits: every block was hashed, and after the checkpoint and after each round the hash
of the outer state must be the one that the peers vouch for. A bundle that leads elsewhere is left out, and the way is
planned again. Donors serve from files at a limited rate, so the round that is running does not notice.
"""

import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import anyio

from shoal.compression.errors import MalformedPayload
from shoal.swarm.errors import MalformedMessage, ShoalError, Unavailable
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.transfer.block_transfer_fetch import BlockFetcher, Progress, Threads
from shoal.swarm.transfer.block_transfer_listing import BundleId, Listing

from .catch_up_fetch import Astray, CatchUpFetch, CatchUpLimits, Fetched
from .catch_up_messages import METHOD, QUERIES, CatchUpOffer, CatchUpQuery, read_offer
from .catch_up_plan import CatchUpPlan, CheckpointSource, DeltaSource, plan_catch_up
from .delta_log import DeltaLog
from .exchange import Outcome

ASK_S = 2.0  # for a peer's offer
MOMENT_S = 0.5  # for the others once most have answered
MAX_PEERS = 16  # asked at once
AT_ONCE = 8  # rounds fetched together
BATCH_BYTES = 64 << 20
MAX_FAILURES = 8  # ways that ended too early, one after another
PAUSE_S = 0.25  # after the first of them; doubles with each


class Replica(Protocol):
    """The outer state of a run; called on a worker thread, one call at a time."""

    @property
    def state(self) -> bytes:
        """32 bytes, the hash of the outer state."""

    def load(self, folder: Path, listing: Listing) -> None:
        """Take over a checkpoint whose files lie in `folder`, which may be moved away.

        raises: MalformedMessage or ValueError when it is none, or not of this run; OutOfMemory
        """

    def apply(self, outcome: Outcome) -> None:
        """Replay a round. raises: ValueError or MalformedPayload when it does not fit; nothing has changed then"""


@dataclass(slots=True)
class CaughtUp:
    """How it went. next_round: what the group takes part in next"""

    next_round: int = 0
    checkpoint: BundleId | None = None
    rounds: int = 0
    own_rounds: int = 0  # replayed from our own log
    seconds: float = 0.0
    fetched: Fetched = field(default_factory=Fetched)
    bad_bundles: set[BundleId] = field(default_factory=set)


class CatchUp:
    """One replica's way to where its group is."""

    def __init__(
        self,
        calls: MemberCalls,
        run: str,
        replica: Replica,
        log: DeltaLog,
        incoming: Path,
        limits: CatchUpLimits,
        *,
        progress: Progress | None = None,
        clock: Callable[[], float] = anyio.current_time,
        threads: Threads | None = None,
    ) -> None:
        self._calls, self._run, self._replica, self._log = calls, run, replica, log
        self._clock, self._threads = clock, threads or Threads()
        fetcher = BlockFetcher(calls, clock, self._threads)
        self._fetch = CatchUpFetch(fetcher, run, incoming, limits, self._threads, progress)
        self._lost = False  # our state is nobody's: only a checkpoint helps
        self.report = CaughtUp(fetched=self._fetch.fetched)

    async def replay_own_log(self) -> int:
        """Rounds that our own log holds beyond our state, as after a kill. returns: how many were applied

        raises: OutOfMemory
        """
        for entry in tuple(self._log.since(self._replica.state)):
            try:
                outcome = await self._threads.run(partial(self._log.read, entry))
                await self._threads.run(partial(self._replica.apply, outcome))
            except (MalformedMessage, MalformedPayload, ValueError):
                break  # damaged: others have it too
            if self._replica.state != entry.about.after:
                self._lost = True
                await self._threads.run(self._log.restart)
                break
            self.report.own_rounds += 1
            self.report.next_round = max(self.report.next_round, entry.round + 1)
        return self.report.own_rounds

    async def run(self, peers: Callable[[], Awaitable[Sequence[PeerId]]]) -> CaughtUp:
        """Until the replica stands where its peers do. peers: those of the run, asked again each time

        raises: Unavailable (nobody answers, or what they offer does not lead to where they are), OutOfMemory
        """
        began = self._clock()
        await self.replay_own_log()
        failures, reason = 0, "nobody answered"
        while failures < MAX_FAILURES:
            offers = await self._offers([peer for peer in await peers() if peer not in self.report.fetched.faulty])
            mine = b"" if self._lost else self._replica.state
            history = () if self._lost else self._log.history(mine)
            plan = plan_catch_up(mine, offers, self.report.bad_bundles, history)
            if plan is not None and plan.checkpoint is None and not plan.deltas:
                self.report.next_round = max(self.report.next_round, plan.next_round)
                self.report.seconds = self._clock() - began
                await self._threads.run(self._fetch.sweep)
                return self.report
            failures += 1
            try:
                if plan is not None:
                    await self._follow(plan)
                    failures = 0
                    continue
                if offers and not self.report.bad_bundles:
                    reason = f"none of {len(offers)} peers that answered has what leads from here to where they are"
            except Astray as error:
                reason = str(error)
                self._lost = self._lost or error.lost
                self.report.bad_bundles.add(error.bundle)
            except Unavailable as error:
                reason = str(error)  # donors died: others may be there, and what has come is kept
            await anyio.sleep(PAUSE_S * 2 ** min(failures - 1, 3))
        raise Unavailable(f"the group was not reached: {reason}")

    async def _offers(self, peers: Sequence[PeerId]) -> dict[PeerId, CatchUpOffer]:
        offers: dict[PeerId, CatchUpOffer] = {}
        query = QUERIES.encode(CatchUpQuery(self._run, self._replica.state))

        async def ask(peer: PeerId) -> None:
            try:
                offers[peer] = read_offer(await self._calls.call(peer, METHOD, query, ASK_S))
            except MalformedMessage:
                self.report.fetched.faulty.add(peer)
            except ShoalError:
                self._fetch.doubtful.add(peer)
            waiting.discard(peer)
            if not waiting - self._fetch.doubtful:
                tasks.cancel_scope.cancel()

        waiting = set(list(dict.fromkeys(peers))[:MAX_PEERS])
        async with anyio.create_task_group() as tasks:
            for peer in sorted(waiting):
                tasks.start_soon(ask, peer)
            await anyio.sleep(MOMENT_S)
            if len(offers) <= len(waiting):
                await anyio.sleep(ASK_S - MOMENT_S)
            tasks.cancel_scope.cancel()
        self._fetch.doubtful |= waiting
        return offers

    async def _follow(self, plan: CatchUpPlan) -> None:
        """Load, then replay; while some rounds are applied the next ones come.

        raises: Astray, Unavailable, OutOfMemory
        """
        if plan.checkpoint is not None:
            await self._load(plan.checkpoint)
        batches = _batches(plan.deltas)
        ready = await self._fetch.outcomes(batches[0]) if batches else []
        for index, batch in enumerate(batches):
            following = batches[index + 1] if index + 1 < len(batches) else ()
            come: list[Outcome] = []
            errors: list[Exception] = []
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._fetch_into, following, come, errors)
                try:
                    for source, outcome in zip(batch, ready, strict=True):
                        await self._apply(source, outcome)
                except (ShoalError, Astray) as error:
                    errors.insert(0, error)
                    tasks.cancel_scope.cancel()
            if errors:
                raise errors[0]
            ready = come

    async def _fetch_into(self, sources: Sequence[DeltaSource], come: list[Outcome], errors: list[Exception]) -> None:
        try:
            come += await self._fetch.outcomes(sources)
        except (ShoalError, Astray) as error:
            errors.append(error)

    async def _load(self, source: CheckpointSource) -> None:
        offer, name = source.offer, f"checkpoint {source.offer.bundle[:12]}"
        listing, folder = await self._fetch.checkpoint(source)
        try:
            await self._threads.run(partial(self._replica.load, folder, listing))
        except (MalformedMessage, ValueError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise Astray(offer.bundle, f"{name}: {error}") from error
        if self._replica.state != offer.state:
            raise Astray(offer.bundle, f"{name} holds another state than it says", lost=True)
        self._lost = False
        self.report.checkpoint = offer.bundle
        self.report.next_round = max(self.report.next_round, offer.round + 1)
        await self._continue_log_from(offer.state)

    async def _apply(self, source: DeltaSource, outcome: Outcome) -> None:
        offer, before = source.offer, self._replica.state
        if before != offer.before:
            raise Astray(offer.bundle, f"round {outcome.round} does not start from where we are")
        try:
            await self._threads.run(partial(self._replica.apply, outcome))
        except (ValueError, MalformedPayload) as error:
            raise Astray(offer.bundle, f"round {outcome.round} cannot be applied: {error}") from error
        if self._replica.state != offer.after:
            raise Astray(offer.bundle, f"round {outcome.round} leads to another state than it says", lost=True)
        await self._continue_log_from(before)
        await self._threads.run(partial(self._log.append, outcome, before, offer.after))
        self.report.rounds += 1
        self.report.next_round = max(self.report.next_round, outcome.round + 1)

    async def _continue_log_from(self, state: bytes) -> None:
        last = self._log.last
        if last is not None and last.about.after != state:
            await self._threads.run(self._log.restart)


def _batches(deltas: Sequence[DeltaSource]) -> list[tuple[DeltaSource, ...]]:
    """At most AT_ONCE together, and no more bytes than BATCH_BYTES, except for one that is larger alone."""
    batches: list[tuple[DeltaSource, ...]] = []
    for delta in deltas:
        last = batches[-1] if batches else ()
        held = sum(source.offer.total_bytes for source in last)
        if last and len(last) < AT_ONCE and held + delta.offer.total_bytes <= BATCH_BYTES:
            batches[-1] = (*last, delta)
        else:
            batches.append((delta,))
    return batches
