"""The replicas of all other stages as a driver knows them: found again and again, each with a link that is kept."""

from collections.abc import Awaitable, Callable, Sequence

import anyio
import anyio.abc
import structlog

from shoal.swarm.errors import Unavailable
from shoal.swarm.members.handshake import Gate
from shoal.swarm.rounds.meeting import Attendee
from shoal.swarm.transport import Transport

from .replica_link import ReplicaLink
from .route_choice import lacking
from .stage_plan import StagePlan

log = structlog.get_logger(__name__)
LOOK_S = 5.0
EAGER_LOOK_S = 0.5  # while a stage has no replica
TOLD_AFTER_S = 3.0

Finder = Callable[[int], Awaitable[Sequence[Attendee]]]  # who holds a stage; raises: Unavailable


class RollCall:
    """protocol: of the pipeline's streams; on_waiting: hears which stage lacks a replica, "" when none does"""

    def __init__(
        self,
        transport: Transport,
        gate: Gate,
        plan: StagePlan,
        pipeline: str,
        protocol: str,
        finder: Finder,
        on_waiting: Callable[[str], None],
    ) -> None:
        self.plan = plan
        self.links: dict[str, ReplicaLink] = {}
        self._transport, self._gate, self._pipeline = transport, gate, pipeline
        self._protocol, self._finder, self._on_waiting = protocol, finder, on_waiting
        self._changed = anyio.Event()
        self._told = ""

    @property
    def alive(self) -> list[ReplicaLink]:
        return [link for link in self.links.values() if link.alive]

    def notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, reached: Callable[[], bool], lacks: Callable[[], str]) -> None:
        """Wait for it; after a while say what is lacking."""
        began = anyio.current_time()
        while not reached():
            changed = self._changed
            with anyio.move_on_after(1.0):
                await changed.wait()
            if anyio.current_time() - began > TOLD_AFTER_S and not reached():
                self._tell(lacks())
        self._tell("")

    async def run(self, tasks: anyio.abc.TaskGroup) -> None:
        """Look for replicas for ever."""
        stages = range(1, self.plan.count)
        while True:
            for stage in stages:
                try:
                    found = await self._finder(stage)
                except Unavailable:
                    continue  # the next look may get through
                for attendee in found:
                    self._attach(attendee, stage, tasks)
            pause = EAGER_LOOK_S if lacking(self.alive, stages) else LOOK_S
            changed = self._changed
            with anyio.move_on_after(pause):
                while not lacking(self.alive, stages):  # a stage that loses its last replica wants a look at once
                    await changed.wait()
                    changed = self._changed
                await anyio.sleep(EAGER_LOOK_S)

    def _attach(self, attendee: Attendee, stage: int, tasks: anyio.abc.TaskGroup) -> None:
        known = self.links.get(attendee.peer)
        if attendee.peer == self._transport.me or (known is not None and not known.ended):
            return
        link = self.links[attendee.peer] = ReplicaLink(attendee, stage, self.notify)
        if known is not None:
            link.shunned, link.refusal = known.shunned, known.refusal
        tasks.start_soon(self._keep, link)

    async def _keep(self, link: ReplicaLink) -> None:
        await link.run(self._transport, self._gate, self._protocol, self._pipeline)
        log.info("replica_lost", peer=link.peer, stage=link.stage, reason=link.reason)

    def _tell(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._on_waiting(text)
