"""A replica of a stage: it lets drivers in, works on their microbatches, and says when an inner step is complete.

The shell around `StepBook`. Whoever trains calls `gather` for each inner step, follows the gradient, then `advance`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import anyio.abc

from shoal.swarm.errors import BadActivation, MalformedMessage, StreamBroken
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.handshake import Gate, receive_greeting
from shoal.swarm.transport import Stream, Transport

from . import messages
from .messages import AnyMessage, Attach, Away, Beat, Begin, Begun, Ended, Enter, Finish, Move, Opened, Weighed, Work
from .stage_compute import Count, Microbatch, StageCompute
from .stage_plan import StagePlan
from .step_book import StepBook
from .work_frames import WorkFrames, checksum
from .work_links import WorkLinks, WorkUndone, next_work
from .work_server import serve_work

MAX_TENSOR_BYTES = 1 << 30
IDLE_S = 3.0


@dataclass(frozen=True, slots=True)
class Gathered:
    """One inner step. sequences: behind the gradient, 0 for none; norm: over all stages; loss: nats a token

    A norm or loss that is not finite says that the step is to be left out everywhere.
    """

    step: int
    sequences: int
    norm: float
    loss: float


@dataclass(slots=True, eq=False)
class _Client:
    """A driver's control stream."""

    peer: PeerId
    stream: Stream
    told: list[AnyMessage] = field(default_factory=list)
    more: anyio.Event = field(default_factory=anyio.Event)

    def tell(self, message: AnyMessage) -> None:
        self.told.append(message)
        self.more.set()


class StageServer:
    """pipeline: hash of all that drivers and replicas agree on; protocol: of the run's streams"""

    def __init__(
        self,
        transport: Transport,
        gate: Gate,
        plan: StagePlan,
        stage: int,
        pipeline: str,
        protocol: str,
        compute: StageCompute,
        links: WorkLinks,
    ) -> None:
        self.book = StepBook()
        self.redone = 0  # microbatches that came again
        self.ended = ""  # why, as the last driver that left in order has said
        self._transport, self._gate, self._plan, self._stage = transport, gate, plan, stage
        self._pipeline, self._protocol, self._compute, self._links = pipeline, protocol, compute, links
        self._clients: dict[PeerId, _Client] = {}
        self._away = "it is not ready yet"
        self._final = False
        self._ready = False
        self._counting = 0
        self._move: Move | None = None
        self._changed = anyio.Event()

    async def serve(self) -> None:
        await self._transport.serve(self._protocol, self._listen)

    def away(self, reason: str, *, final: bool = False) -> None:
        """Let the drivers go on without this replica, until the next `gather` or for ever."""
        self._away, self._final, self._ready = reason, final, False
        for client in self._clients.values():
            client.tell(Away(reason, final))
            self.book.leave(client.peer)
        self._notify()

    async def gather(self, on_idle: Callable[[bool], None] = lambda _: None) -> Gathered | None:
        """One inner step, from the first microbatch to the drivers' word to move; None when the run is over.

        on_idle: told when no driver wants anything for a while, and when one does again
        """
        self._away, self._ready, self._move = "", True, None
        self._tell_all(Opened(self.book.step, True))
        while not self.book.full:
            if self.ended and not self._clients:
                return None
            with anyio.move_on_after(IDLE_S) as waited:
                await self._change()
            if waited.cancelled_caught or self.book.drivers:
                on_idle(not self.book.drivers)
        self._ready = False
        total = self.book.close()
        while self._counting:
            await self._change()
        square, sequences = 0.0, total.sequences
        if sequences:
            square = await self._compute.square(sequences)
        else:
            await self._compute.discard()
        self._tell_all(Weighed(self.book.step, square, sequences, total.first_square))
        move = await self._moved()
        if move is None:  # all of them died at this moment: nobody knows how the step would have ended
            await self._compute.discard()
            return Gathered(self.book.step, 0, 0.0, float("nan"))
        return Gathered(self.book.step, sequences, move.norm, move.loss)

    async def _moved(self) -> Move | None:
        """The first driver's word; None when they are all gone."""
        while self._move is None and self.book.drivers:
            await self._change()
        return self._move

    def advance(self) -> None:
        """The step is over, whatever became of it. Drivers hear of the next one from `gather`."""
        self.book.advance()

    async def _listen(self, stream: Stream) -> None:
        """raises: MalformedMessage, Refused"""
        await receive_greeting(stream, self._gate)
        frames = WorkFrames(stream)
        try:
            first, _ = await frames.receive(0)
        except StreamBroken:
            return
        if not isinstance(first, Attach | Enter):
            raise MalformedMessage(f"{stream.peer} began with {type(first).__name__}")
        problem = self._problem(first)
        if problem is not None:
            await frames.send(problem)
            await stream.close()
        elif isinstance(first, Enter):
            await serve_work(frames, self._transport.me, MAX_TENSOR_BYTES, self._work)
        else:
            await self._attend(stream)

    def _problem(self, first: Attach | Enter) -> Away | None:
        if first.pipeline != self._pipeline:
            return Away("it trains another pipeline by this name: model, stages or settings are others", True)
        if isinstance(first, Enter):
            return None
        if first.stage != self._stage:
            return Away(f"it holds stage {self._stage}", True)
        return Away(self._away, True) if self._final else None

    async def _attend(self, stream: Stream) -> None:
        """A driver's control stream, until it ends."""
        client = _Client(stream.peer, stream)
        before = self._clients.get(client.peer)
        if before is not None:
            before.stream.abort()
            self.book.leave(client.peer)
        self._clients[client.peer] = client
        client.tell(Opened(self.book.step, self._ready))
        if self._away:
            client.tell(Away(self._away, False))
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._speak, client, tasks.cancel_scope)
                await self._hear(client)
                tasks.cancel_scope.cancel()
        finally:
            if self._clients.get(client.peer) is client:
                del self._clients[client.peer]
                self.book.leave(client.peer)
                self._notify()

    async def _speak(self, client: _Client, scope: anyio.CancelScope) -> None:
        try:
            while True:
                while client.told:
                    message = client.told.pop(0)
                    await client.stream.send(messages.encode(message))
                    if isinstance(message, Away) and message.final:
                        await client.stream.close()
                        scope.cancel()
                client.more = anyio.Event()
                await client.more.wait()
        except StreamBroken:
            scope.cancel()

    async def _hear(self, client: _Client) -> None:
        """raises: MalformedMessage"""
        while True:
            try:
                frame = await client.stream.receive()
            except StreamBroken:
                return
            if frame is None:
                await client.stream.close()
                return
            match messages.decode(frame):
                case Beat() as beat:
                    client.tell(beat)
                case Begin(step):
                    client.tell(Begun(self.book.join(client.peer, step)))
                case Finish() as finish:
                    self.book.finish(client.peer, finish)
                case Move() as move:
                    if move.step == self.book.step and self.book.closed and self._move is None:
                        self._move = move
                case Ended(reason):
                    self.ended = reason
                case other:
                    raise MalformedMessage(f"{client.peer} sent {type(other).__name__} to a replica")
            self._notify()

    async def _work(self, work: Work, tensor: bytes) -> tuple[float, bytes]:
        """raises: WorkUndone, BadActivation"""
        self._check(work, tensor)
        piece = Microbatch(
            work.driver, work.step, work.microbatch, work.sequences, work.learns, work.targets, work.positions
        )
        if not work.route:
            with self._counted(work) as count, anyio.CancelScope(shield=True):
                loss, back = await self._compute.loss(piece, tensor, count)
            return loss, back
        out = await self._compute.forward(piece, tensor)
        share = len(work.route) / (len(work.route) + 1)
        hop, after = next_work(work, share, len(out), checksum(out))
        loss, gradient = await self._links.ask(hop, after, out)
        if not work.learns:
            return loss, b""
        with self._counted(work) as count, anyio.CancelScope(shield=True):
            back = await self._compute.backward(piece, tensor, gradient, count)
        return loss, back

    def _check(self, work: Work, tensor: bytes) -> None:
        """raises: WorkUndone for another step, BadActivation for what was not agreed on"""
        if not self._ready or not self.book.admits(work.driver, work.step):
            raise self._late(work)
        hops = self._plan.count - 1 - self._stage + int(self._plan.head_at_home)
        if len(work.route) != hops or len(tensor) != self._compute.tensor_bytes(work.sequences):
            raise BadActivation(f"{len(tensor)} bytes and {len(work.route)} more hops are not what was agreed on")

    def _late(self, work: Work) -> WorkUndone:
        me = self._transport.me
        return WorkUndone("late", f"{me} is at step {self.book.step}, not taking work for {work.step}", me)

    def _counted(self, work: Work) -> "_Counted":
        """raises: WorkUndone"""
        if not work.learns:
            return _Counted(self, Count(False))
        verdict = self.book.verdict(work.driver, work.step, work.microbatch)
        if verdict == "late":
            raise self._late(work)
        if verdict == "repeat":
            self.redone += 1
            return _Counted(self, Count(False))
        self.book.note(work.driver, work.microbatch, work.sequences)
        fresh, self.book.stale = self.book.stale, False
        return _Counted(self, Count(True, fresh))

    def _tell_all(self, message: AnyMessage) -> None:
        for client in self._clients.values():
            client.tell(message)

    async def _change(self) -> None:
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def counting(self, more: int) -> None:
        self._counting += more
        self._notify()


class _Counted:
    """While a gradient is on its way into the sum, the sum is not read; and whoever asked for it may die meanwhile."""

    def __init__(self, server: StageServer, count: Count) -> None:
        self._server, self._count = server, count

    def __enter__(self) -> Count:
        self._server.counting(1)
        return self._count

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._count.adds:
            self._server.book.void = True  # noted, and perhaps not added
        self._server.counting(-1)
