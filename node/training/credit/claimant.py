"""A trainer that wants credit: it hashes its states while it works, and writes a TRAIN of each round that happened.

Only rounds whose whole work stands between two states of the outer parameters can be claimed. What went into a round
that was lost, or began in the middle, is not: it counts for the model, and for no credit.
"""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import structlog

from shoal.incentives import entry as entries
from shoal.incentives import step_statement
from shoal.incentives.bodies import Train
from shoal.incentives.ledger import Ledger
from shoal.incentives.step_statement import StepStatement
from shoal.node.training.strategies.settings import StrategySettings
from shoal.node.training.update_audit import StepLog, intervals_of, state_now
from shoal.node.training.worker import Applied, WorkerParts
from shoal.node.training.worker_processes import processes
from shoal.swarm import peer_id
from shoal.swarm.errors import Refused, ShoalError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.rounds.commitments import Commitment
from shoal.swarm.rounds.run_identity import run_id

from . import messages
from .behind import Behind
from .kept_work import KEPT_ROUNDS, NOTHING, KeptWork, residual_digest
from .messages import PIECE_BYTES, Claim, Piece

log = structlog.get_logger(__name__)


def can_be_claimed(settings: StrategySettings) -> bool:
    """Whether the work of a round goes from one state of the outer parameters to the next, in this one process."""
    whole = (settings.fragments, settings.delay, settings.merge) == (1, 0, 0)
    return settings.update == "pseudo-gradient" and whole and processes() == 1


@dataclass(slots=True, eq=False)
class _Work:
    """Of one round. first: inner steps before it; residual: digest of the error feedback that it begins with"""

    round: int
    first: int
    log: StepLog
    residual: bytes
    failure: OSError | None = None  # of what was to be kept


class Claimant:
    """`worker.StepWatcher`. folder: for the states of the last rounds; judges: keys that may ask for them"""

    def __init__(self, ledger: Ledger, parts: WorkerParts, folder: Path, judges: frozenset[bytes]) -> None:
        self.run = bytes.fromhex(run_id(parts.strategy.spec))
        self.claims: dict[int, Claim] = {}
        self._ledger, self._parts, self._judges = ledger, parts, judges
        self._kept = KeptWork(folder)
        self._behind = Behind()
        self._work: _Work | None = None
        self._spoilt = False  # the work of this round cannot be claimed any more

    # While it works, on the thread of the inner steps

    def before_step(self) -> None:
        parts, strategy = self._parts, self._parts.strategy
        if self._work is not None or self._spoilt:
            return
        start = state_now(parts.steps, parts.parameters)
        if not np.array_equal(start.parameters, strategy.beginning()):
            self._spoilt = True  # resumed in the middle
            return
        steps, residual = strategy.settings.interval, strategy.residual(0)
        digest = residual_digest(residual)
        steps_log = StepLog(start, steps // intervals_of(steps), self._behind.do)
        work = self._work = _Work(strategy.round, strategy.step, steps_log, digest)
        kept = None if residual is None or digest == NOTHING else residual.copy()
        self._keep(work, lambda: self._kept.begin(work.round, kept))
        self._keep(work, lambda: self._kept.keep_state(work.round, 0, start))

    def after_step(self) -> None:
        work = self._work
        if work is None:
            return
        state = work.log.stepped(self._parts.steps, self._parts.parameters)
        if state is not None:
            number = work.log.steps // work.log.every
            self._keep(work, lambda: self._kept.keep_state(work.round, number, state))

    def _keep(self, work: _Work, write: Callable[[], None]) -> None:
        def kept() -> None:
            try:
                if work.failure is None:
                    write()
            except OSError as error:
                work.failure = error

        self._behind.do(kept)

    # Between rounds, on the event loop

    def restart(self) -> None:
        """Work begins at the outer parameters again."""
        self._work, self._spoilt = None, False

    def spoil(self) -> None:
        """A round was lost, and its work goes into the next one."""
        self._work, self._spoilt = None, True

    def applied(self, applied: Applied) -> Callable[[], Coroutine[Any, Any, None]] | None:
        """What is to be done to claim the round; None when it cannot be claimed."""
        work, outcome, me = self._work, applied.outcome, self._parts.me
        self.restart()
        if work is None or work.round != outcome.round or all(peer != me for peer, _ in outcome.contributors):
            return None
        if work.log.steps != self._parts.strategy.settings.interval:
            return None
        residuals = work.residual, residual_digest(self._parts.strategy.residual(0))
        return partial(self._claim, work, applied, residuals)

    async def _claim(self, work: _Work, applied: Applied, residuals: tuple[bytes, bytes]) -> None:
        offer, round_, run = applied.offer, work.round, run_id(self._parts.strategy.spec)

        def prepared() -> StepStatement:
            self._behind.settle()
            if work.failure is not None:
                raise work.failure
            self._kept.keep_payloads(round_, offer.payloads)
            root = Commitment(run, round_, offer.fragment, self._parts.me, offer.payloads).root
            blank = work.log.statement(self.run, round_, applied.before, work.first, root, residuals)
            return step_statement.signed(self._ledger.identity, blank)

        try:
            statement = await anyio.to_thread.run_sync(prepared)
            named = statement.update, applied.after, step_statement.hash_of(statement)
            entry = await self._ledger.append(Train(self.run, round_, offer.tokens, *named))
        except (ShoalError, OSError) as error:
            log.warning("round_not_claimed", round=round_, reason=str(error))
            return
        encoded = step_statement.encode(statement)
        self.claims[round_] = Claim(entries.encode(entry), encoded, tuple(work.log.marks), residuals)
        for old in sorted(self.claims)[:-KEPT_ROUNDS]:
            del self.claims[old]

    # Of a judge

    async def serve(self, calls: MemberCalls) -> None:
        async def claimed(peer: PeerId, body: bytes) -> bytes:
            wanted = messages.claim_wanted.decode(body)
            self._refuse_others(peer)
            found = self.claims.get(wanted.round) if wanted.run == self.run else None
            return messages.claim.encode(found) if found is not None else b""

        async def shown(peer: PeerId, body: bytes) -> bytes:
            wanted = messages.piece_wanted.decode(body)
            self._refuse_others(peer)
            if wanted.run != self.run:
                raise Refused("another run is trained here")
            read = self._kept.read
            found = await anyio.to_thread.run_sync(read, wanted.round, wanted.name, wanted.offset, PIECE_BYTES)
            if found is None:
                raise Refused(f"{wanted.name} of round {wanted.round} is not kept here")
            return messages.piece.encode(Piece(*found))

        await calls.answer(messages.CLAIM, claimed)
        await calls.answer(messages.PIECE, shown)

    def _refuse_others(self, peer: PeerId) -> None:
        if peer_id.public_key_of(peer) not in self._judges:
            raise Refused("states of inner steps are shown to judges only")

    def close(self) -> None:
        self._behind.close()
        self._kept.close()
