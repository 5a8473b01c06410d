"""A trainer that wants credit: it hashes its states while it works, and writes a TRAIN of each round that happened.

Only rounds whose whole work stands between two states of the outer parameters can be claimed. What went into a round
that was lost, or began in the middle, is not: it counts for the model, and for no credit.
"""

from collections.abc import Callable, Coroutine
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
from shoal.swarm.member_calls import MemberCalls
from shoal.swarm.rounds.commitments import Commitment
from shoal.swarm.rounds.run_identity import run_id

from . import messages
from .kept_work import KEPT_ROUNDS, NOTHING, KeptWork, residual_digest
from .messages import PIECE_BYTES, Claim, Piece

log = structlog.get_logger(__name__)


def can_be_claimed(settings: StrategySettings) -> bool:
    """Whether the work of a round goes from one state of the outer parameters to the next, in this one process."""
    whole = (settings.fragments, settings.delay, settings.merge) == (1, 0, 0)
    return settings.update == "pseudo-gradient" and whole and processes() == 1


class Claimant:
    """folder: for the states of the last rounds. judges: keys that may ask for them"""

    def __init__(self, ledger: Ledger, parts: WorkerParts, folder: Path, judges: frozenset[bytes]) -> None:
        self.run = bytes.fromhex(run_id(parts.strategy.spec))
        self.claims: dict[int, Claim] = {}
        self._ledger, self._parts, self._judges = ledger, parts, judges
        self._kept = KeptWork(folder)
        self._log: StepLog | None = None
        self._round = self._first = -1
        self._residual = NOTHING
        self._broken = False  # the work of this round cannot be claimed any more

    # While it works, on the thread of the inner steps

    def before_step(self) -> None:
        parts, strategy = self._parts, self._parts.strategy
        if self._log is not None or self._broken:
            return
        start = state_now(parts.steps, parts.parameters)
        if not np.array_equal(start.parameters, strategy.outer.values):
            self._broken = True  # resumed in the middle
            return
        steps = strategy.settings.interval
        self._round, self._first = strategy.round, strategy.step
        self._log = StepLog(start, steps // intervals_of(steps))
        residual = strategy.residual(0)
        self._residual = residual_digest(residual)
        try:
            self._kept.begin(self._round)
            self._kept.keep_state(self._round, 0, start)
            if residual is not None and self._residual != NOTHING:
                self._kept.keep_residual(self._round, residual)
        except OSError as error:
            self._give_up(error)

    def after_step(self) -> None:
        if self._log is None:
            return
        state = self._log.stepped(self._parts.steps, self._parts.parameters)
        if state is not None:
            try:
                self._kept.keep_state(self._round, len(self._log.marks) - 1, state)
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.warning("round_not_claimed", round=self._round, reason=f"its states cannot be kept: {error.strerror}")
        self._log, self._broken = None, True

    # Between rounds, on the event loop

    def restart(self) -> None:
        """Work begins at the outer parameters again."""
        self._log, self._broken = None, False

    def spoil(self) -> None:
        """A round was lost, and its work goes into the next one."""
        self._log, self._broken = None, True

    def applied(self, applied: Applied) -> Callable[[], Coroutine[Any, Any, None]] | None:
        """What is to be done to claim the round; None when it cannot be claimed."""
        done, round_ = self._log, self._round
        self.restart()
        outcome, me = applied.outcome, self._parts.me
        whole = done is not None and done.steps == self._parts.strategy.settings.interval
        if done is None or not whole or round_ != outcome.round or all(peer != me for peer, _ in outcome.contributors):
            return None
        residuals = self._residual, residual_digest(self._parts.strategy.residual(0))
        first = self._first

        async def claim() -> None:
            await self._claim(done, first, applied, residuals)

        return claim

    async def _claim(self, done: StepLog, first: int, applied: Applied, residuals: tuple[bytes, bytes]) -> None:
        offer, round_ = applied.offer, applied.outcome.round
        run = run_id(self._parts.strategy.spec)

        def prepared() -> StepStatement:
            self._kept.keep_payloads(round_, offer.payloads)
            root = Commitment(run, round_, offer.fragment, self._parts.me, offer.payloads).root
            blank = done.statement(self.run, round_, applied.before, first, root, residuals)
            return step_statement.signed(self._ledger.identity, blank)

        try:
            statement = await anyio.to_thread.run_sync(prepared)
            body = Train(
                self.run,
                round_,
                offer.tokens,
                statement.update,
                applied.after,
                step_statement.hash_of(statement),
            )
            entry = await self._ledger.append(body)
        except (ShoalError, OSError) as error:
            log.warning("round_not_claimed", round=round_, reason=str(error))
            return
        encoded = step_statement.encode(statement)
        self.claims[round_] = Claim(entries.encode(entry), encoded, tuple(done.marks), residuals)
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
        self._kept.close()
