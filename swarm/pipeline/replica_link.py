"""A driver's control stream to one replica of another stage, and what is known of that replica."""

from collections.abc import Callable

import anyio

from shoal.swarm.errors import MalformedMessage, ShoalError, StreamBroken
from shoal.swarm.members.handshake import Gate, greet, read_welcome
from shoal.swarm.rounds.meeting import Attendee
from shoal.swarm.transport import Stream, Transport

from . import messages
from .messages import AnyMessage, Attach, Away, Beat, Begin, Begun, Hop, Opened, Weighed

DIAL_TIMEOUT_S = 8.0
BEAT_S = 2.0
SILENCE_S = 10.0  # after which a peer whose stream is open counts as gone


class ReplicaLink:
    """step: that the replica is at; ready: it takes work for it; joined: the driver takes part there

    shunned: a step in which it gets no more work

    outstanding: microbatches on their way through it
    """

    def __init__(self, attendee: Attendee, stage: int, changed: Callable[[], None]) -> None:
        self.peer = attendee.peer
        self.hop = Hop(attendee.peer, tuple(attendee.addresses))
        self.stage = stage
        self.alive = False
        self.ended = False
        self.reason = ""  # why it ended
        self.refusal = ""  # what the replica said itself
        self.step = 0
        self.ready = False
        self.joined = False
        self.begun: int | None = None  # the answer to the last Begin
        self.shunned = -1
        self.weighed: Weighed | None = None
        self.outstanding = 0
        self.rtt_s = 0.0
        self._changed = changed
        self._stream: Stream | None = None
        self._asked = -1
        self._beat = 0
        self._beat_at = 0.0
        self._heard_at = 0.0
        self._scope = anyio.CancelScope()

    async def run(self, transport: Transport, gate: Gate, protocol: str, pipeline: str) -> None:
        """Until the replica is gone, away or `drop`ped; `reason` says why."""
        with self._scope:
            try:
                stream = await self._open(transport, gate, protocol, pipeline)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._beat_often, stream)
                    await self._hear(stream)
                    tasks.cancel_scope.cancel()
            except ShoalError as error:
                self.reason = str(error)
            except BaseExceptionGroup as errors:
                if errors.split(ShoalError)[1] is not None:
                    raise
                self.reason = str(errors.exceptions[0])
            finally:
                self.alive, self.ready, self.ended = False, False, True
                if self._stream is not None:
                    self._stream.abort()
                self._changed()

    async def join(self, step: int) -> None:
        """Ask to take part from this step on; `begun` tells the answer, until then it is None."""
        self.begun, self._asked = None, step
        await self.tell(Begin(step))

    async def tell(self, message: AnyMessage) -> None:
        """Never raises: a stream that broke ends the link."""
        if self._stream is None or self.ended:
            return
        try:
            await self._stream.send(messages.encode(message))
        except ShoalError as error:
            self.drop(str(error))

    def drop(self, reason: str) -> None:
        """It is not there any more, or of no use."""
        self.alive, self.ready, self.ended = False, False, True
        self.reason = self.reason or reason
        self._scope.cancel()
        self._changed()

    async def _open(self, transport: Transport, gate: Gate, protocol: str, pipeline: str) -> Stream:
        """raises: ShoalError"""
        try:
            with anyio.fail_after(DIAL_TIMEOUT_S):
                if self.hop.addresses:
                    await transport.connect(self.peer, self.hop.addresses, DIAL_TIMEOUT_S)
                stream = self._stream = await transport.open(self.peer, protocol, DIAL_TIMEOUT_S)
                await greet(stream, gate)
                await stream.send(messages.encode(Attach(pipeline, self.stage)))
                await read_welcome(stream, gate)
        except TimeoutError as error:
            raise StreamBroken(f"{self.peer} did not answer the greeting") from error
        return stream

    async def _hear(self, stream: Stream) -> None:
        """raises: ShoalError"""
        while True:
            frame = await stream.receive()
            self._heard_at = anyio.current_time()
            if frame is None:
                return
            match messages.decode(frame):
                case Opened(step, ready):
                    self.alive, self.begun = True, None
                    self.step, self.ready = step, ready
                    self.refusal = "" if ready else self.refusal
                case Begun(step):
                    self.begun, self.joined, self.step = step, step == self._asked, step
                    self.ready = self.ready and self.joined
                case Weighed() as weighed:
                    self.weighed = weighed
                case Beat(number):
                    if number == self._beat:
                        self.rtt_s = self._heard_at - self._beat_at
                case Away(reason, final):
                    self.refusal, self.ready, self.joined = f"{self.peer}: {reason}", False, False
                    if final:
                        await stream.close()
                        raise StreamBroken(reason)
                case other:
                    raise MalformedMessage(f"{self.peer} sent {type(other).__name__} to a driver")
            self._changed()

    async def _beat_often(self, stream: Stream) -> None:
        self._heard_at = anyio.current_time()
        while True:
            now = anyio.current_time()
            if now - self._heard_at > SILENCE_S:
                self.drop(f"nothing was heard of it for {SILENCE_S:.0f} s")
            self._beat, self._beat_at = self._beat + 1, now
            try:
                await stream.send(messages.encode(Beat(self._beat)))
            except ShoalError as error:
                self.drop(str(error))
            await anyio.sleep(BEAT_S)
