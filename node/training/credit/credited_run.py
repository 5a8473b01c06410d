"""A training for credit: what a node with a ledger puts around its worker and its keeper.

A trainer claims its rounds; where the node is the swarm owner's, it judges those of the others, too. Without a ledger,
or with a strategy whose rounds cannot be claimed, nothing of this is there.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import structlog

from shoal.node.books import judges_of
from shoal.node.node import Node
from shoal.node.training.evaluation import HeldOut
from shoal.node.training.strategies.outer_loop import OuterLoop
from shoal.node.training.worker import Applied, Keeper, Worker, WorkerParts
from shoal.node.training.worker_exchange import AttentiveExchange
from shoal.swarm.errors import ShoalError
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.rounds.exchange import OutOfStep

from .claimant import Claimant, can_be_claimed
from .judge import Judge

WORK, JUDGEMENTS = "steps", "judgements.jsonl"
log = structlog.get_logger(__name__)


class CreditedKeeper:
    """`worker.Keeper` that tells claimant and judge of rounds before the keeper behind it is asked for more."""

    def __init__(
        self,
        keeper: Keeper,
        claimant: Claimant,
        judge: Judge | None,
        exchange: AttentiveExchange,
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self._keeper, self._claimant, self._judge, self._exchange, self._tasks = (
            keeper,
            claimant,
            judge,
            exchange,
            tasks,
        )

    def applied(self, worker: Worker, applied: Applied) -> None:
        """raises: OutOfMemory"""
        self._keeper.applied(worker, applied)
        claim = self._claimant.applied(applied)
        if claim is not None:
            self._tasks.start_soon(claim)
        if self._judge is not None:
            self._judge.applied(applied, self._exchange.committed(applied.outcome.round))

    def lost(self, round_: int) -> None:
        self._keeper.lost(round_)
        self._claimant.spoil()

    def evaluated(self, worker: Worker, round_: int, found: HeldOut) -> None:
        self._keeper.evaluated(worker, round_, found)

    async def rounds_done(self, worker: Worker) -> None:
        await self._keeper.rounds_done(worker)
        await self.judge()

    async def judge(self, *, to_the_end: bool = False) -> None:
        """What was shown, judged. A judge that fails does not stop its training."""
        if self._judge is None:
            return
        try:
            await (self._judge.to_the_end() if to_the_end else self._judge.between_rounds())
        except ShoalError as error:
            log.warning("not_judged", reason=str(error))

    async def catch_up(self, worker: Worker, loop: OuterLoop, missed: OutOfStep) -> str:
        """raises: Unavailable, OutOfMemory"""
        source = await self._keeper.catch_up(worker, loop, missed)
        self._claimant.restart()
        if self._judge is not None:
            self._judge.restart()
        return source


@asynccontextmanager
async def credited(
    node: Node, calls: MemberCalls, parts: WorkerParts, exchange: AttentiveExchange, keeper: Keeper, folder: Path
) -> AsyncIterator[tuple[Keeper, Claimant | None]]:
    """The keeper that the worker shall have, and who watches its steps; judged to the end when the context is left."""
    books = node.books
    if books is None or not can_be_claimed(parts.strategy.settings):
        yield keeper, None
        return
    ledger, judges = books.ledger, judges_of(node.setup.swarm.owner)
    claimant = Claimant(ledger, parts, folder / WORK, judges)
    try:
        async with anyio.create_task_group() as tasks:
            await claimant.serve(calls)
            judge = None
            if ledger.key in judges:
                judge = Judge(ledger, parts, calls, books.catch_up, tasks, folder / JUDGEMENTS)
            around = CreditedKeeper(keeper, claimant, judge, exchange, tasks)
            yield around, claimant
            await around.judge(to_the_end=True)
            tasks.cancel_scope.cancel()
    finally:
        claimant.close()
