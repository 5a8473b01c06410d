"""What a trainer leaves behind: the open record, the log of outcomes, checkpoints; and how it catches up."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from shoal.swarm.errors import Unavailable, UsageError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.rounds.catch_up import CatchUp
from shoal.swarm.rounds.catch_up_fetch import CatchUpLimits
from shoal.swarm.rounds.catch_up_messages import CheckpointOffer
from shoal.swarm.rounds.delta_log import DeltaLog
from shoal.swarm.rounds.exchange import Outcome, OutOfStep, RunSpec
from shoal.swarm.rounds.run_identity import differences

from . import events
from .checkpoints.reader import latest
from .checkpoints.retention import Retention
from .checkpoints.snapshot import Snapshot, Value
from .checkpoints.store import CheckpointStore
from .config import OutputSettings
from .evaluation import HeldOut
from .run_record import EvaluationLine, RunLine, RunRecord, round_line
from .strategies.outer_loop import OuterLoop
from .worker import Applied, Report, Worker, WorkerParts
from .worker_inner_state import inner_state, restore_inner
from .worker_progress import packed
from .worker_replica import ROSTER, WorkerReplica

SPEC = "run.json"
RECORD, CHECKPOINTS, LOG, INCOMING = "record.jsonl", "checkpoints", "rounds", "incoming"
UPDATES = "updates"  # a log, too: of what this peer alone offered
IDLE_TRIES, IDLE_PAUSE_S = 8, 0.5
Peers = Callable[[], Awaitable[Sequence[PeerId]]]


@dataclass(frozen=True, slots=True)
class RunPlace:
    """folder: of this run on this machine; spec, run: what peers agree on and its hash"""

    folder: Path
    spec: RunSpec
    run: str

    def claim(self) -> None:
        """One folder is of one run. raises: UsageError when it holds another one, or cannot be used"""
        path = self.folder / SPEC
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(msgspec.json.format(msgspec.json.encode(self.spec), indent=1) + b"\n")
            found = msgspec.json.decode(path.read_bytes(), type=RunSpec)
        except OSError as error:
            raise UsageError(f"cannot use the folder {self.folder}: {error.strerror}") from error
        except msgspec.MsgspecError as error:
            raise UsageError(f"{path} is damaged ({error}); choose another output.folder") from error
        if found != self.spec:
            what = differences(self.spec, found)
            raise UsageError(f"{self.folder} holds another run ({what}); choose another name or output.folder")


class RunKeeper:
    """`worker.Keeper` on disk. peers: those of the run that are there now"""

    def __init__(
        self,
        place: RunPlace,
        parts: WorkerParts,
        settings: OutputSettings,
        report: Report,
        calls: MemberCalls,
        peers: Peers,
    ) -> None:
        """raises: UsageError (of another run), OutOfMemory when the folder cannot be used"""
        place.claim()
        self.place, self._parts, self._settings, self._report = place, parts, settings, report
        self._calls, self._peers = calls, peers
        self.store = CheckpointStore(place.folder / CHECKPOINTS, Retention(last=settings.keep))
        self.log = DeltaLog(place.folder / LOG, place.run)
        self.updates = DeltaLog(place.folder / UPDATES, place.run) if settings.updates else None
        self.record = RunRecord(place.folder / RECORD)
        self._replica = WorkerReplica(parts, self.store, place.run)
        self._saved_at = parts.strategy.outer.rounds
        self._idle_tries = 0  # to catch up, in a row, that brought nothing
        self._standing = parts.strategy.outer.hash(), parts.strategy.round  # kept, as a thread may be changing both

    @property
    def unsaved(self) -> bool:
        """Rounds were applied since the last checkpoint."""
        return self._parts.strategy.outer.rounds > self._saved_at

    def refuse_older(self) -> None:
        """For a start that does not resume. raises: UsageError when the folder holds rounds already"""
        if self.log.last is not None or self.store.offers():
            raise UsageError(
                f"{self.place.folder} holds this run already; go on with --resume, or choose another output.folder"
            )

    def begin(self, agreed: Mapping[str, Any], versions: Mapping[str, str]) -> None:
        """The record's first line. raises: OutOfMemory"""
        progress = self._parts.progress
        self.record.add(RunLine(self.place.spec, progress.order, progress.lag, dict(agreed), dict(versions)))

    async def resume(self) -> int | None:
        """Go on from the newest whole checkpoint and the own log. returns: the next round, None for a fresh start

        raises: UsageError when checkpoints are there and none can be used, or they are of another run
        """
        found = await anyio.to_thread.run_sync(latest, self.store.folder)
        strategy = self._parts.strategy
        if found is not None:
            for line in found.refused:
                self._report(events.Noticed(f"{line}; the one before it is used"))
            snapshot = found.snapshot
            try:
                self._replica.take(snapshot)
                if snapshot.is_own:
                    strategy.restore(snapshot.strategy_state)
                    restore_inner(self._parts.steps.optimizer, snapshot.inner)
                    self._parts.progress.restore(dict(snapshot.position))
            except ValueError as error:
                raise UsageError(f"checkpoint {found.checkpoint.name} cannot be used: {error}") from error
        replayed = await self._catch_up().replay_own_log()
        self._record_replayed()
        self._parts.parameters.write(0, strategy.beginning())
        self._saved_at = strategy.outer.rounds
        return strategy.round if found is not None or replayed else None

    def applied(self, worker: Worker, applied: Applied) -> None:
        """raises: OutOfMemory"""
        last = self.log.last
        if last is not None and last.about.after != applied.before:
            self.log.restart()
        self.log.append(applied.outcome, applied.before, applied.after)
        self._keep_update(applied)
        roster = self._parts.progress.roster
        self.record.add(round_line(applied.outcome, applied.before, applied.after, roster, applied.loss, _now()))
        self._stand()

    def lost(self, round_: int) -> None:
        """Nothing was learned that others have: nothing is kept."""

    def _keep_update(self, applied: Applied) -> None:
        """The own offer, as an outcome of this peer alone; none when the round went without it."""
        me = self._parts.me
        if self.updates is None or all(peer != me for peer, _ in applied.outcome.contributors):
            return
        offer, last = applied.offer, self.updates.last
        if last is not None and last.about.after != applied.before:
            self.updates.restart()
        own = Outcome(offer.round, offer.fragment, offer.payloads, ((me, offer.tokens),))
        self.updates.append(own, applied.before, applied.after)

    def evaluated(self, worker: Worker, round_: int, found: HeldOut) -> None:
        state = self._parts.strategy.outer.hash().hex()
        digest = self._parts.data.held_out_digest
        self.record.add(EvaluationLine(round_, state, digest, found.sequences, found.loss))

    async def rounds_done(self, worker: Worker) -> None:
        rounds, every = self._parts.strategy.outer.rounds, self._settings.checkpoint_every
        if every and rounds - self._saved_at >= every:
            await self.save()

    async def save(self) -> Path:
        """raises: OutOfMemory, with the old checkpoints as they were"""
        snapshot = self.snapshot()
        saved = await anyio.to_thread.run_sync(self.store.save, snapshot)
        self._saved_at = self._parts.strategy.outer.rounds
        self._report(events.Saved(snapshot.round, str(saved.folder)))
        return saved.folder

    def snapshot(self) -> Snapshot:
        strategy, progress = self._parts.strategy, self._parts.progress
        state: dict[str, Value] = {**strategy.state(), ROSTER: packed(progress.roster)}
        return Snapshot.of(
            self.place.run,
            progress.roster.round,
            strategy.outer.hash(),
            self._parts.layout,
            state,
            inner_state(self._parts.steps.optimizer),
            progress.position(),
        )

    async def catch_up(self, worker: Worker, loop: OuterLoop, missed: OutOfStep) -> str:
        """raises: Unavailable, OutOfMemory"""

        async def peers() -> list[PeerId]:
            named = dict.fromkeys([*missed.holders, *await self._peers()])
            return [peer for peer in named if peer != self._parts.me]

        caught = await self._catch_up().run(peers)
        self._record_replayed()
        self._idle_tries = 0 if caught.checkpoint or caught.rounds else self._idle_tries + 1
        if self._idle_tries >= IDLE_TRIES:
            raise Unavailable(f"{missed}, and the peers that answer stand where this one stands")
        await anyio.sleep(IDLE_PAUSE_S * self._idle_tries)
        loop.catch_up((), max(caught.next_round, missed.round, self._parts.progress.roster.round + 1))
        source = "a checkpoint and " if caught.checkpoint else ""
        return f"{source}{caught.rounds} rounds, {caught.fetched.fetched_bytes / 1e6:.1f} MB in {caught.seconds:.1f} s"

    def checkpoints(self) -> list[CheckpointOffer]:
        """What joiners are offered."""
        offers = [(bundle, about, size) for bundle, about, size in self.store.offers() if about.run == self.place.run]
        return [CheckpointOffer(bundle, about.round, about.state, size) for bundle, about, size in offers]

    def standing(self) -> tuple[bytes, int]:
        """For joiners: the outer state's hash, and the round that this peer takes part in next."""
        return self._standing

    def _catch_up(self) -> CatchUp:
        limits = CatchUpLimits.of(self.place.spec)
        return CatchUp(self._calls, self.place.run, self._replica, self.log, self.place.folder / INCOMING, limits)

    def _record_replayed(self) -> None:
        for each in self._replica.replayed:
            self.record.add(round_line(each.outcome, each.before, each.after, each.roster, None, _now()))
        self._replica.replayed.clear()
        self._stand()

    def _stand(self) -> None:
        pending = self._parts.strategy.pending
        round_ = self._parts.strategy.round if pending is None else pending.offer.round
        self._standing = self._parts.strategy.outer.hash(), round_

    def close(self) -> None:
        self.record.close()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
