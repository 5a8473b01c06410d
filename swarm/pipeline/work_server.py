"""The receiving side of work: microbatches that come in on others' streams, each answered with what became of it."""

from collections.abc import Awaitable, Callable

import anyio
import anyio.abc
import structlog

from shoal.swarm.errors import BadActivation, MalformedMessage, Refused, ShoalError, StreamBroken
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.handshake import Gate, receive_greeting
from shoal.swarm.transport import Stream, Transport

from .messages import Away, Done, Enter, Entered, Undone, Work
from .work_frames import DamagedTensor, WorkFrames, checked, checksum
from .work_links import NotFinite, WorkUndone

log = structlog.get_logger(__name__)
Handle = Callable[[Work, bytes], Awaitable[tuple[float, bytes]]]  # raises: WorkUndone, BadActivation
TOO_MANY = 1024  # microbatches at once from one peer


async def serve_work(frames: WorkFrames, me: PeerId, max_bytes: int, handle: Handle) -> None:
    """Until the peer's stream ends; what it has asked for is given up then. raises: MalformedMessage"""
    under_way = 0

    async def answered(work: Work, tensor: bytes) -> None:
        nonlocal under_way
        try:
            try:
                loss, gradient = await handle(work, checked(work, tensor))
                answer: Done | Undone = Done(work.request, loss, len(gradient), checksum(gradient))
            except WorkUndone as undone:
                gradient, answer = b"", Undone(work.request, undone.kind, str(undone)[:300], undone.culprit)
            except (DamagedTensor, BadActivation) as error:
                gradient, answer = b"", Undone(work.request, "damaged", str(error)[:300], frames.stream.peer)
            except NotFinite as error:
                gradient, answer = b"", Undone(work.request, "broken", str(error)[:300], me)
            except ShoalError as error:
                log.warning("microbatch_failed", step=work.step, microbatch=work.microbatch, reason=str(error))
                gradient, answer = b"", Undone(work.request, "failed", str(error)[:300], me)
            await frames.send(answer, gradient)
        except StreamBroken:
            tasks.cancel_scope.cancel()
        finally:
            under_way -= 1

    await frames.send(Entered())
    async with anyio.create_task_group() as tasks:
        try:
            while True:
                message, tensor = await frames.receive(max_bytes)
                if not isinstance(message, Work) or under_way >= TOO_MANY:
                    raise MalformedMessage(f"{frames.stream.peer} sent {type(message).__name__} for work")
                under_way += 1
                tasks.start_soon(answered, message, tensor)
        except StreamBroken:
            pass
        finally:
            tasks.cancel_scope.cancel()


async def serve_home(
    transport: Transport, gate: Gate, protocol: str, pipeline: str, max_bytes: int, handle: Handle
) -> None:
    """For a driver with the head at home: what the last stage computes comes back to it as work."""

    async def listen(stream: Stream) -> None:
        await receive_greeting(stream, gate)
        frames = WorkFrames(stream)
        first, _ = await frames.receive(0)
        if not isinstance(first, Enter) or first.pipeline != pipeline:
            await frames.send(Away("this is a driver, of another pipeline perhaps", True))
            await stream.close()
            raise Refused(f"{stream.peer} wants something else than to bring microbatches home")
        await serve_work(frames, transport.me, max_bytes, handle)

    await transport.serve(protocol, listen)
