"""A running node looks now and then at what the swarm lacks, and changes its layers when that is worth it."""

import random
from typing import TYPE_CHECKING

import anyio
import structlog

from shoal.swarm.errors import ShoalError
from shoal.swarm.routing.mover import Claim, Drop, Go, Mover, MoveTiming
from shoal.swarm.routing.moves import Stay, relied_on
from shoal.swarm.routing.placement import Placement
from shoal.swarm.units import Span, describe

from .hosting import Hosting
from .node_events import Warned

if TYPE_CHECKING:
    from shoal.swarm.records import NodeRecord

    from .hosting import Report
    from .model_loading import Loader
    from .node import Node

log = structlog.get_logger(__name__)
ANSWER_S = 2.0
MOST_ASKED = 64


class Rebalancing:
    """`swarm.routing.mover` carried out. Only where the layers were not named, and do not follow a training run."""

    def __init__(self, node: "Node", hosting: Hosting, report: "Report", timing: MoveTiming | None = None) -> None:
        self._node, self._hosting, self._report = node, hosting, report
        self._timing = timing
        self._scope = anyio.CancelScope()
        self._said = ""

    @property
    def is_wanted(self) -> bool:
        options = self._node.options
        named = options.layers is not None or options.follow is not None
        return options.rebalance and not named and self._hosting.loader is not None

    def stop(self) -> None:
        """The node leaves: what goes on is left as it is."""
        self._scope.cancel()

    async def run(self) -> None:
        """Until it is stopped."""
        loader = self._hosting.loader
        if not self.is_wanted or loader is None:
            return
        node = self._node
        me, model = node.transport.me, loader.model.model_id
        mover = Mover(me, model, loader.dtype, random.Random(f"{me} {node.started_at}"), self._timing)
        with self._scope:
            while True:
                await anyio.sleep(mover.next_look_s(anyio.current_time()))
                await self._look(mover)

    async def _look(self, mover: Mover) -> None:
        hosting, node = self._hosting, self._node
        loader, held = hosting.loader, hosting.held
        assert loader is not None
        now, records = anyio.current_time(), node.known()
        if held is None:  # neither new nor old layers could be loaded
            if mover.may_try(now):
                await self._go(mover, loader.place(None, records, node.transport.me))
            return
        verdict = mover.look(records, loader.budget_now(held.span), held.span, now)
        span = held.span
        del held  # or these layers stay in memory while others are loaded
        match verdict:
            case Claim(placement):
                log.info("layers_claimed", layers=describe(placement.span, loader.budget.layers), why=placement.reason)
                await hosting.say_coming(placement.span)
            case Drop(reason):
                log.info("claim_dropped", reason=reason)
                await hosting.say_coming(None)
            case Go(placement):
                if await self._others_answer(loader, records, span, placement.span):
                    await self._go(mover, placement)
                else:
                    log.info("claim_dropped", reason="who else holds these layers does not answer")
                    mover.failed(now)
                    await hosting.say_coming(None)
            case Stay(reason):
                if reason != self._said:
                    log.info("layers_kept", layers=describe(span, loader.budget.layers), reason=reason)
                self._said = reason

    async def _others_answer(self, loader: "Loader", records: "list[NodeRecord]", own: Span, span: Span) -> bool:
        """Whether somebody who holds it is there for each unit that would be left: records outlive their nodes."""
        node = self._node
        relied = relied_on(records, loader.model.model_id, own, span, node.transport.me, loader.dtype)
        asked = {peer for peers in relied.values() for peer in peers}
        there = await node.pinger.answering([r for r in records if r.peer in asked][:MOST_ASKED], ANSWER_S)
        return all(not there.isdisjoint(peers) for peers in relied.values())

    async def _go(self, mover: Mover, placement: Placement) -> None:
        try:
            await self._hosting.move_to(placement)
        except ShoalError as error:
            await self._failed(mover, str(error))
        except Exception as error:  # a bug of ours: it serves on with what it has
            log.exception("move_failed")
            await self._failed(mover, f"{type(error).__name__}: {error}")
        else:
            mover.moved(anyio.current_time())

    async def _failed(self, mover: Mover, reason: str) -> None:
        mover.failed(anyio.current_time())
        held = self._hosting.held
        kept = f"this node keeps {held.layers_text}" if held else "this node holds nothing now, and tries again"
        self._report(Warned(f"other layers could not be loaded ({reason}); {kept}"))
        await self._node.loops.announce()
