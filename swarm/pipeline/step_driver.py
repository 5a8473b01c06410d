"""One driver's inner steps: its microbatches on their way through the stages and back, each until it has come through.

A replica that dies or does not answer is left out, and the microbatches that it held go through another one: nothing of
the step is lost but their time. The gradient of a step is followed by all stages at once, scaled by one norm over all
of them, as if the model were in one place.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import anyio
import anyio.abc

from shoal.swarm.errors import BadActivation
from shoal.swarm.identifiers import PeerId

from .messages import Ended, Finish, Hop, Move, Work
from .replica_link import ReplicaLink
from .roll_call import RollCall
from .route_choice import best_of, lacking
from .stage_compute import Count, Microbatch, StageCompute
from .work_frames import checksum
from .work_links import NotFinite, WorkLinks, WorkUndone

MAX_TRIES = 16  # of one microbatch
GRACE_S = 2.0  # for a replica that is still in its round when another of its stage is ready


class HomeCompute(StageCompute, Protocol):
    """Stage 0, and the head where that is at home."""

    async def embedded(self, work: Microbatch) -> bytes:
        """Stage 0 from the ids of the microbatch, which it knows by its number, to what the next stage gets."""

    async def taken_back(self, work: Microbatch, gradient: bytes) -> None:
        """The gradient of what `embedded` gave: into the sum of the step."""

    async def whole(self, work: Microbatch) -> float:
        """A model of one stage: loss and gradient at once."""


@dataclass(frozen=True, slots=True)
class Redone:
    """A microbatch that was sent again. pause_s: from its first sending until it had come through"""

    step: int
    microbatch: int
    culprit: PeerId
    stage: int
    reason: str
    pause_s: float


@dataclass(frozen=True, slots=True)
class Stepped:
    """norm, loss: over all stages; a gradient of `sequences` of this driver lies ready at home"""

    step: int
    norm: float
    loss: float
    sequences: int


class StepDriver:
    """deadline_s: for a microbatch at one stage; in_flight: microbatches on their way at once"""

    def __init__(
        self,
        me: Hop,
        roll: RollCall,
        links: WorkLinks,
        home: HomeCompute,
        deadline_s: float,
        in_flight: int,
        on_redone: Callable[[Redone], None],
    ) -> None:
        self.step = 0
        self.redone = 0
        self._me, self._roll, self._links, self._home = me, roll, links, home
        self._deadline_s, self._in_flight, self._on_redone = deadline_s, in_flight, on_redone
        self._late_since = 0.0
        self._headed: set[int] = set()  # microbatches of the step whose head's gradient is in the sum
        self._routes: dict[int, list[ReplicaLink]] = {}  # of microbatches that have come through

    async def learn(self, works: Sequence[Microbatch]) -> Stepped:
        """All microbatches of a step. `works` are numbered from 0; their step is set here.

        raises: WorkUndone after many tries
        """
        await self._together()
        self._headed.clear()
        self._routes.clear()
        await self._home.discard()
        losses = await self._all_through([_at(work, self.step) for work in works])
        sequences = sum(work.sequences for work in works)
        loss = math.fsum(x * work.sequences for x, work in zip(losses, works, strict=True)) / max(1, sequences)
        square = await self._home.square(sequences)
        norm = await self._end(square, sequences, loss)
        return Stepped(self.step - 1, norm, loss, sequences)

    async def measure(self, work: Microbatch) -> float:
        """The loss alone. raises: as `learn`"""
        await self._together()
        (loss,) = await self._all_through([_at(work, self.step)])
        return loss

    async def head(self, work: Work, tensor: bytes) -> tuple[float, bytes]:
        """For a head that is at home: the last stage's output has come. raises: WorkUndone, BadActivation"""
        if work.driver != self._me.peer or work.step != self.step or work.route:
            raise WorkUndone("late", f"the driver is at step {self.step}", self._me.peer)
        if len(tensor) != self._home.tensor_bytes(work.sequences):
            raise BadActivation(f"{len(tensor)} bytes are not what was agreed on")
        piece = Microbatch(work.driver, work.step, work.microbatch, work.sequences, work.learns, b"", work.positions)
        adds = work.learns and work.microbatch not in self._headed
        if adds:
            self._headed.add(work.microbatch)
        with anyio.CancelScope(shield=True):
            loss, back = await self._home.loss(piece, tensor, Count(adds))
        return loss, back

    async def _together(self) -> None:
        """Until every stage is ready for the same step, and we take part in it."""
        while self._stages:
            self._late_since = anyio.current_time()
            await self._roll.until(self._gathered, self._missing)
            self.step = self._newest()
            await self._join([link for link in self._roll.alive if self._joinable(link)])
            if self._newest() > self.step:
                self._routes.clear()  # others have gone on: be done with this step where we have joined it
                await self._end(0.0, 0, 0.0)
            elif not lacking([link for link in self._roll.alive if self._usable(link)], self._stages):
                return

    async def _join(self, links: Sequence[ReplicaLink]) -> None:
        for link in links:
            await link.join(self.step)
        await self._roll.until(lambda: all(link.begun is not None or not link.alive for link in links), self._missing)

    def _joinable(self, link: ReplicaLink) -> bool:
        return link.alive and link.ready and not link.joined and link.step <= self.step

    async def end(self, reason: str) -> None:
        """The run is over for us; replicas that no other driver needs end too."""
        for link in self._roll.alive:
            await link.tell(Ended(reason))

    def leave(self, reason: str) -> None:
        """Others need not wait for us until the next step that we ask for."""
        for link in self._roll.alive:
            link.drop(reason)

    def _newest(self) -> int:
        return max([self.step, *(link.step for link in self._roll.alive)])

    def _gathered(self) -> bool:
        """All that take part are ready; one that is late is left behind when its stage has another that is ready.

        It must be: its round may wait for that other one, which waits for work.
        """
        newest, alive, now = self._newest(), self._roll.alive, anyio.current_time()
        late = [link for link in alive if link.joined and not (link.ready and link.step == newest)]
        usable = [link for link in alive if link.ready]
        if lacking(usable, self._stages):
            self._late_since = now
            return False
        if late and now - self._late_since < GRACE_S:
            return False
        for link in late:
            link.joined = False
        return True

    @property
    def _stages(self) -> range:
        return range(1, self._roll.plan.count)

    def _missing(self) -> str:
        none = lacking(self._roll.alive, self._stages)
        if none:
            reasons = [link.refusal for link in self._roll.links.values() if link.stage == none[0] and link.refusal]
            why = f" ({reasons[-1]})" if reasons else ""
            return f"no replica of {self._roll.plan.named(none[0])} answers{why}; Ctrl-C stops"
        behind = sorted(link.stage for link in self._roll.alive if not link.ready)
        if not behind:
            return ""
        said = [link.refusal for link in self._roll.alive if link.stage == behind[0] and link.refusal]
        why = f" ({said[0]})" if said else ""
        return f"{self._roll.plan.named(behind[0])} is not ready yet{why}; Ctrl-C stops"

    async def _all_through(self, works: Sequence[Microbatch]) -> list[float]:
        losses = [math.nan] * len(works)
        slots = anyio.Semaphore(max(1, self._in_flight))

        async def carry(index: int, work: Microbatch) -> None:
            try:
                losses[index] = await self._through(work)
            finally:
                slots.release()

        async with anyio.create_task_group() as tasks:
            for index, work in enumerate(works):
                await slots.acquire()
                tasks.start_soon(carry, index, work)
        return losses

    async def _through(self, work: Microbatch) -> float:
        """The loss of one microbatch, its gradient counted at every stage if it learns."""
        if not self._stages:
            return await self._home.whole(work)
        try:
            tensor = await self._home.embedded(work)
        except NotFinite:
            return math.nan
        route: list[ReplicaLink] = []
        began = anyio.current_time()
        failed: list[tuple[WorkUndone, int]] = []
        while len(failed) < MAX_TRIES:
            route = await self._route(route)
            for link in route:
                link.outstanding += 1
            try:
                loss, gradient = await self._links.ask(route[0].hop, self._asked(work, route, tensor), tensor)
                break
            except WorkUndone as undone:
                if undone.kind == "broken":
                    return math.nan
                failed.append((undone, self._leave_out(undone, route)))
            finally:
                for link in route:
                    link.outstanding -= 1
        else:
            raise failed[-1][0]
        for failure, stage in failed:
            self.redone += 1
            pause_s = anyio.current_time() - began
            self._on_redone(Redone(work.step, work.number, failure.culprit, stage, str(failure), pause_s))
        if work.learns:
            self._routes[work.number] = route
            await self._home.taken_back(work, gradient)
        return loss

    def _asked(self, work: Microbatch, route: Sequence[ReplicaLink], tensor: bytes) -> Work:
        hops = [link.hop for link in route[1:]]
        if self._roll.plan.head_at_home:
            hops.append(self._me)
        targets = b"" if self._roll.plan.head_at_home else work.targets
        patience_s = self._deadline_s * (len(hops) + 1)
        return Work(
            0,
            work.driver,
            work.step,
            work.number,
            work.sequences,
            work.learns,
            tuple(hops),
            patience_s,
            targets,
            work.positions,
            len(tensor),
            checksum(tensor),
        )

    async def _route(self, before: Sequence[ReplicaLink]) -> list[ReplicaLink]:
        """One replica a stage; those of the try before stay, as they may have counted the microbatch already."""
        route = []
        for stage in self._stages:
            kept = next((link for link in before if link.stage == stage and self._usable(link)), None)
            if kept is None:
                kept = await self._found(stage)
            route.append(kept)
        return route

    async def _found(self, stage: int) -> ReplicaLink:
        """One that came within this step joins it when the stage has no other."""
        while True:
            best = self._best(stage)
            if best is not None:
                return best
            new = [link for link in self._roll.alive if link.stage == stage and self._joinable(link)]
            if new:
                await self._join(new)
            else:
                await self._roll.until(
                    lambda: self._best(stage) is not None or self._any_joinable(stage), self._missing
                )

    def _any_joinable(self, stage: int) -> bool:
        return any(link.stage == stage and self._joinable(link) for link in self._roll.alive)

    def _best(self, stage: int) -> ReplicaLink | None:
        return best_of([link for link in self._roll.alive if self._usable(link)], stage)

    def _usable(self, link: ReplicaLink) -> bool:
        return link.alive and link.ready and link.joined and link.step == self.step and link.shunned != self.step

    def _leave_out(self, undone: WorkUndone, route: Sequence[ReplicaLink]) -> int:
        """Who is to blame gets no more work in this step. returns: its stage

        A stage that has nobody else is asked again: what it has counted already it does not count twice.
        """
        blamed = next((link for link in route if link.peer == undone.culprit), route[-1])
        others = [link for link in self._roll.alive if link is not blamed and self._usable(link)]
        if best_of(others, blamed.stage) is None:
            blamed.drop(str(undone))  # a new link to it begins afresh
        else:
            blamed.shunned = self.step
        return blamed.stage

    async def _end(self, square: float, sequences: int, loss: float) -> float:
        """Finish the step at all replicas that take part. returns: the norm over all stages"""
        mine = [link for link in self._roll.alive if link.joined and link.step == self.step]
        counted = {link.peer: tuple(sorted(n for n, route in self._routes.items() if link in route)) for link in mine}
        for link in mine:
            link.weighed = None
            await link.tell(Finish(self.step, counted[link.peer], square, sequences))
        await self._roll.until(
            lambda: all(link.weighed is not None or not link.alive for link in mine), self._unfinished
        )
        norm = math.sqrt(max(0.0, self._square(mine, square))) if math.isfinite(square) else math.nan
        for link in mine:
            link.ready = False
            await link.tell(Move(self.step, norm, loss))
        self.step += 1
        return norm

    def _square(self, mine: Sequence[ReplicaLink], own: float) -> float:
        """Of the norm over all stages: at each stage the mean of its replicas."""
        told = [(link.stage, link.weighed) for link in mine if link.weighed is not None]
        parts = [told[0][1].first_square if told else own]
        for stage in self._stages:
            weighed = [each for number, each in told if number == stage and each.sequences]
            weight = sum(each.sequences for each in weighed)
            if weight:
                parts.append(math.fsum(each.square * each.sequences for each in weighed) / weight)
        return math.fsum(parts) if all(map(math.isfinite, parts)) else math.nan

    def _unfinished(self) -> str:
        waiting = sorted({link.stage for link in self._roll.alive if link.joined and link.weighed is None})
        if not waiting:
            return ""
        return f"other drivers of {self._roll.plan.named(waiting[0])} have not finished the step; Ctrl-C stops"


def _at(work: Microbatch, step: int) -> Microbatch:
    return Microbatch(work.driver, step, work.number, work.sequences, work.learns, work.targets, work.positions)
