"""A trainer's rounds over its node's network: found by the run's name in the swarm's directory."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import assert_never

import anyio
import structlog

from shoal.node.node import Node
from shoal.swarm.rounds.events import AuditPassed, Fact, LiarNamed, RoundOptions, Status, UpdateRefused
from shoal.swarm.rounds.exchange import OutOfStep, RunSpec
from shoal.swarm.rounds.meeting import DirectoryMeeting
from shoal.swarm.rounds.round_exchange import RoundExchange
from shoal.swarm.rounds.run_identity import run_key

from . import events
from .limits_transport import ThrottledTransport
from .worker_exchange import AttentiveExchange

TELL_AFTER_S = 3.0
log = structlog.get_logger(__name__)


class FactTeller:
    """Tells the user what the rounds say: that peers are missing, once for each change; and who misbehaves.

    Every round begins with peers missing, for a moment: that is not worth a line.
    """

    def __init__(
        self, report: Callable[[events.TrainingEvent], None], clock: Callable[[], float] = anyio.current_time
    ) -> None:
        self._report, self._clock = report, clock
        self._lacks_since = math.inf
        self._waiting = ""
        self._logged = ""

    def exchange_ended(self) -> None:
        """However it ended: nobody is waited for until the next exchange says so."""
        self._lacks_since = math.inf
        self._wait("")

    def lacks_peers(self) -> bool:
        return self._lacks_since < math.inf

    def tell(self, fact: Fact) -> None:
        match fact:
            case Status():
                self._status(fact)
            case UpdateRefused(round_, shard, peer, reason):
                log.warning("update_refused", round=round_, shard=shard, peer=peer, reason=reason)
                self._report(events.Noticed(f"round {round_}: the update of {peer} was left out: {reason}"))
            case LiarNamed(round_, shard, peer, lied, reason):
                log.warning("reducer_accused", round=round_, shard=shard, peer=peer, lied=lied, reason=reason)
                what = "lied as a reducer" if lied else "does not show its work as a reducer"
                self._report(events.Noticed(f"round {round_}: {peer} {what}: {reason}"))
            case AuditPassed(round_, shard, owner):
                log.debug("audit_passed", round=round_, shard=shard, owner=owner)
            case _:
                assert_never(fact)

    def _status(self, status: Status) -> None:
        if status.text != self._logged:
            self._logged = status.text
            log.info("round_status", round=status.round, stage=status.stage, text=status.text)
        lacks = status.stage == "gathering" and status.ready < status.needed
        self._lacks_since = min(self._lacks_since, self._clock()) if lacks else math.inf
        text = f"{status.text}; Ctrl-C stops" if self._clock() - self._lacks_since >= TELL_AFTER_S else ""
        self._wait(text)

    def _wait(self, text: str) -> None:
        if text != self._waiting:
            self._waiting = text
            self._report(events.Waiting(text))


@asynccontextmanager
async def running_rounds(
    node: Node,
    transport: ThrottledTransport,
    spec: RunSpec,
    first_round: int,
    report: Callable[[events.TrainingEvent], None],
    behind: Callable[[], Awaitable[OutOfStep | None]],
    options: RoundOptions | None = None,
) -> AsyncIterator[AttentiveExchange]:
    """Others find this trainer from now on, until the context is left.

    behind: asks the other trainers whether they are further than we are
    raises: ValueError for a run that cannot be
    """
    key = run_key(spec.name)
    node.runs.add(key)
    try:
        await node.loops.announce()
        meeting = DirectoryMeeting(node.directory, key, node.record, announces=False)
        teller = FactTeller(report)
        async with RoundExchange(
            transport, node.setup.gate, meeting, spec, first_round=first_round, options=options, on_fact=teller.tell
        ) as exchange:
            yield AttentiveExchange(exchange, teller.lacks_peers, behind, teller.exchange_ended, exchange.committed)
    finally:
        node.runs.discard(key)
