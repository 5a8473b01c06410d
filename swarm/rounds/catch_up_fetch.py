"""Checkpoints and rounds from the peers that hold them, checked against what was offered and against our own limits."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from shoal.swarm.errors import MalformedMessage, ShoalError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.transfer.block_transfer_fetch import BlockFetcher, Progress, Threads
from shoal.swarm.transfer.block_transfer_folder import BlockFolder
from shoal.swarm.transfer.block_transfer_listing import BundleId, Listing

from .catch_up_plan import CheckpointSource, DeltaSource
from .delta_entry import PAYLOADS, outcome_of, read_about
from .exchange import Outcome, RunSpec

_SLACK_BYTES = 4 << 20
_PREFIX = "incoming-"
_LISTING_SHARE = 1024  # a listing has a 32-byte hash for each block, and blocks are larger than 64 KiB


@dataclass(frozen=True, slots=True)
class CatchUpLimits:
    """More than this is not fetched, whatever is offered."""

    checkpoint_bytes: int
    delta_bytes: int

    @classmethod
    def of(cls, spec: RunSpec) -> "CatchUpLimits":
        """float32 parameters with two moments; a round of float32 with some frame."""
        count = sum(spec.fragments)
        return cls(12 * count + _SLACK_BYTES, 4 * count + _SLACK_BYTES)


@dataclass(slots=True)
class Fetched:
    """What came, for the report."""

    fetched_bytes: int = 0
    kept_bytes: int = 0  # were here from an earlier attempt
    faulty: set[PeerId] = field(default_factory=set)  # sent what no honest peer sends


class Astray(Exception):
    """A bundle did not hold what was promised. lost: our own state may have moved"""

    def __init__(self, bundle: BundleId, reason: str, *, lost: bool = False) -> None:
        super().__init__(reason)
        self.bundle, self.lost = bundle, lost


class CatchUpFetch:
    """incoming: what is on its way lies there in a folder for each bundle, over restarts too"""

    def __init__(
        self,
        fetcher: BlockFetcher,
        run: str,
        incoming: Path,
        limits: CatchUpLimits,
        threads: Threads,
        progress: Progress | None = None,
    ) -> None:
        self._fetcher, self._run, self._incoming, self._limits = fetcher, run, incoming, limits
        self._threads, self._progress = threads, progress
        self.fetched = Fetched()
        self.doubtful: set[PeerId] = set()  # did not answer; asked only where nobody else has it

    async def checkpoint(self, source: CheckpointSource) -> tuple[Listing, Path]:
        """The files of a checkpoint, in a folder that is now the caller's. raises: Astray, Unavailable, OutOfMemory"""
        return await self._bring(source, self._limits.checkpoint_bytes)

    async def outcomes(self, sources: Sequence[DeltaSource]) -> list[Outcome]:
        """Fetched together. raises: Astray, Unavailable, OutOfMemory"""
        outcomes: dict[int, Outcome] = {}
        errors: list[ShoalError | Astray] = []

        async def fetch(index: int) -> None:
            try:
                outcomes[index] = await self._outcome(sources[index])
            except (ShoalError, Astray) as error:
                errors.append(error)

        async with anyio.create_task_group() as tasks:
            for index in range(len(sources)):
                tasks.start_soon(fetch, index)
        if errors:
            raise errors[0]
        return [outcomes[index] for index in range(len(sources))]

    def sweep(self) -> None:
        """The group is reached: what other attempts left behind is of no use any more."""
        for left in self._incoming.glob(_PREFIX + "*"):
            shutil.rmtree(left, ignore_errors=True)

    async def _outcome(self, source: DeltaSource) -> Outcome:
        offer = source.offer
        listing, folder = await self._bring(source, self._limits.delta_bytes)
        try:
            about = read_about(listing)
            outcome = outcome_of(about, await self._threads.run((folder / PAYLOADS).read_bytes))
        except (MalformedMessage, OSError) as error:
            raise Astray(offer.bundle, f"round {offer.round}: {error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if (about.run, about.round, about.before, about.after) != (self._run, offer.round, offer.before, offer.after):
            raise Astray(offer.bundle, f"round {offer.round} is not what was offered")
        return outcome

    async def _bring(self, source: CheckpointSource | DeltaSource, max_bytes: int) -> tuple[Listing, Path]:
        offer = source.offer
        if offer.total_bytes > max_bytes:
            raise Astray(offer.bundle, f"{offer.total_bytes} bytes are offered where {max_bytes} are the most there is")
        room = offer.total_bytes // _LISTING_SHARE + _SLACK_BYTES
        holders = self._order(source.holders, offer.round)
        listing = await self._fetcher.listing(offer.bundle, holders, room)
        if listing.total_bytes != offer.total_bytes:
            raise Astray(offer.bundle, f"{listing.total_bytes} bytes where {offer.total_bytes} were offered")
        folder = self._incoming / f"{_PREFIX}{offer.bundle[:32]}"
        into = BlockFolder(folder, listing)
        transferred = await self._fetcher.bring(offer.bundle, listing, holders, into, self._progress)
        self.doubtful |= transferred.late | set(transferred.dropped)
        self.fetched.faulty |= set(transferred.faulty)
        self.fetched.fetched_bytes += transferred.total_bytes - transferred.kept_bytes
        self.fetched.kept_bytes += transferred.kept_bytes
        return listing, folder

    def _order(self, holders: Sequence[PeerId], number: int) -> list[PeerId]:
        """Another one first each time, and nobody who is doubtful while others have it."""
        good = [peer for peer in holders if peer not in self.doubtful] or list(holders)
        return [*good[number % len(good) :], *good[: number % len(good)]]
