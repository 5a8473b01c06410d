"""Asking the next hop: one stream to each peer, many microbatches on it at once, each with its own deadline."""

from dataclasses import dataclass, field
from itertools import count

import anyio
import anyio.abc
import msgspec

from shoal.swarm.errors import Refused, ShoalError, StreamBroken
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.handshake import Gate, greet, read_welcome
from shoal.swarm.transport import Transport

from . import messages
from .messages import Done, Enter, Entered, Hop, Undone, UndoneKind, Work
from .work_frames import DamagedTensor, WorkFrames, checked

DIAL_TIMEOUT_S = 8.0


class WorkUndone(ShoalError):
    """A microbatch that came to nothing; culprit: who is to be left out of another try."""

    def __init__(self, kind: UndoneKind, text: str, culprit: PeerId) -> None:
        super().__init__(text)
        self.kind, self.culprit = kind, culprit


class NotFinite(ShoalError):
    """What a stage computed is NaN or infinite: the training has come apart."""


@dataclass(slots=True, eq=False)
class _Question:
    answered: anyio.Event = field(default_factory=anyio.Event)
    answer: tuple[Done | Undone, bytes] | None = None  # None: the stream broke


@dataclass(slots=True, eq=False)
class _Link:
    frames: WorkFrames | None = None
    ready: anyio.Event = field(default_factory=anyio.Event)
    failure: str = ""
    open: dict[int, _Question] = field(default_factory=dict)


class WorkLinks:
    """protocol: of the pipeline's streams; max_bytes: of a gradient; tasks: where streams are read"""

    def __init__(
        self,
        transport: Transport,
        gate: Gate,
        protocol: str,
        pipeline: str,
        max_bytes: int,
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self._transport, self._gate, self._protocol = transport, gate, protocol
        self._pipeline, self._max_bytes, self._tasks = pipeline, max_bytes, tasks
        self._links: dict[PeerId, _Link] = {}
        self._numbers = count(1)

    async def ask(self, hop: Hop, work: Work, tensor: bytes) -> tuple[float, bytes]:
        """The loss and the gradient of the tensor. `work.request` is set here. raises: WorkUndone, DaemonDied"""
        peer = hop.peer
        link = self._links.get(peer)
        if link is None:
            link = self._links[peer] = _Link()
            self._tasks.start_soon(self._carry, hop, link)
        number, question = next(self._numbers), _Question()
        link.open[number] = question
        try:
            with anyio.fail_after(work.patience_s):
                await link.ready.wait()
                if link.frames is None:
                    raise WorkUndone("lost", f"{peer} cannot be reached: {link.failure}", peer)
                await link.frames.send(msgspec.structs.replace(work, request=number), tensor)
                await question.answered.wait()
        except TimeoutError as error:
            raise WorkUndone("lost", f"{peer} gave no answer within {work.patience_s:.0f} s", peer) from error
        except StreamBroken as error:
            raise WorkUndone("lost", f"{peer} is gone: {error}", peer) from error
        finally:
            link.open.pop(number, None)
        if question.answer is None:
            raise WorkUndone("lost", f"{peer} is gone: {link.failure}", peer)
        answer, gradient = question.answer
        if isinstance(answer, Undone):
            raise WorkUndone(answer.kind, answer.text, answer.culprit)
        try:
            return answer.loss, checked(answer, gradient)
        except DamagedTensor as error:
            raise WorkUndone("damaged", str(error), peer) from error

    async def _carry(self, hop: Hop, link: _Link) -> None:
        """The life of one stream."""
        frames: WorkFrames | None = None
        try:
            frames = link.frames = await self._dial(hop)
            link.ready.set()
            while True:
                message, tensor = await frames.receive(self._max_bytes)
                if not isinstance(message, Done | Undone):
                    raise Refused(f"it answered with {type(message).__name__}")
                question = link.open.get(message.request)
                if question is not None:  # else nobody waits for it any more
                    question.answer = message, tensor
                    question.answered.set()
        except ShoalError as error:
            link.failure = str(error)
        finally:
            if self._links.get(hop.peer) is link:
                del self._links[hop.peer]
            if frames is not None:
                frames.stream.abort()
            link.frames = None
            link.ready.set()
            for question in link.open.values():
                question.answered.set()

    async def _dial(self, hop: Hop) -> WorkFrames:
        """raises: ShoalError"""
        try:
            with anyio.fail_after(DIAL_TIMEOUT_S):
                if hop.addresses:
                    await self._transport.connect(hop.peer, hop.addresses, DIAL_TIMEOUT_S)
                stream = await self._transport.open(hop.peer, self._protocol, DIAL_TIMEOUT_S)
                frames = WorkFrames(stream)
                await greet(stream, self._gate)
                await frames.send(Enter(self._pipeline))
                await read_welcome(stream, self._gate)
                answer, _ = await frames.receive(0)
        except TimeoutError as error:
            raise StreamBroken(f"{hop.peer} did not answer the greeting") from error
        if not isinstance(answer, Entered):
            stream.abort()
            text = answer.reason if isinstance(answer, messages.Away) else f"it answered {type(answer).__name__}"
            raise Refused(text)
        return frames


def next_work(work: Work, share: float, size_bytes: int, checksum: int) -> tuple[Hop, Work]:
    """What the hop after this one is asked. share: of the patience, so that each hop gives up before the one before"""
    hop, *rest = work.route
    after = msgspec.structs.replace(
        work,
        route=tuple(rest),
        patience_s=work.patience_s * share,
        size_bytes=size_bytes,
        checksum=checksum,
    )
    return hop, after
