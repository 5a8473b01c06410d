"""What is asked in an audit, over a stream of its own: frames as large as those of sessions, one question each.

Evidence of a long session does not fit a unary call. Nothing here needs a tensor library, so that a client may audit.
"""

from collections.abc import Sequence

import anyio
import msgspec

from shoal.incentives.bodies import Hash
from shoal.swarm.errors import MalformedMessage, Refused, RemoteFault, StreamBroken, TimedOut
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.members.handshake import Gate, greet, read_welcome
from shoal.swarm.transport import Stream, Transport

PROTOCOL = "/shoal/audit/1"


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    pass


class AskStatement(_Message, frozen=True):
    """To the server, as all about its own work: answered by a WorkStatement."""

    session: SessionId
    draw: Hash


class AskEvidence(_Message, frozen=True):
    session: SessionId
    index: int


class AskLink(_Message, frozen=True):
    """Answered by a ChunkLink."""

    session: SessionId
    index: int


class AskReplay(_Message, frozen=True):
    """To a holder of the class: answered by an AuditReport."""

    evidence: bytes


class AskCase(_Message, frozen=True):
    """To whoever wrote a VERDICT: answered by an AuditCase."""

    hash: Hash


class Answer(_Message, frozen=True):
    data: bytes


class No(_Message, frozen=True):
    text: str


Question = AskStatement | AskEvidence | AskLink | AskReplay | AskCase
_encoder = msgspec.msgpack.Encoder()
_questions: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
_answers: msgspec.msgpack.Decoder[Answer | No] = msgspec.msgpack.Decoder(Answer | No)


def question_of(frame: bytes) -> Question:
    """raises: MalformedMessage, whatever the bytes are"""
    try:
        return _questions.decode(frame)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedMessage(f"not a question of an audit: {error}") from error


async def answer(stream: Stream, said: Answer | No) -> None:
    await stream.send(_encoder.encode(said))


async def ask(
    transport: Transport,
    gate: Gate,
    peer: PeerId,
    question: Question,
    patience_s: float,
    addresses: Sequence[str] = (),
) -> bytes:
    """addresses: to reach the peer at, when it may not be connected

    raises: Refused with the peer's reason, Unavailable, RemoteFault
    """
    with anyio.move_on_after(patience_s):
        if addresses:
            await transport.connect(peer, addresses)
        return await _ask(transport, gate, peer, question)
    raise TimedOut(f"{peer} did not answer within {patience_s:.0f} s")


async def _ask(transport: Transport, gate: Gate, peer: PeerId, question: Question) -> bytes:
    stream = await transport.open(peer, PROTOCOL)
    try:
        await greet(stream, gate)
        await stream.send(_encoder.encode(question))
        await read_welcome(stream, gate)
        frame = await stream.receive()
    except BaseException:
        stream.abort()
        raise
    await stream.close()
    if frame is None:
        raise StreamBroken(f"{peer} gave no answer")
    try:
        said = _answers.decode(frame)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteFault(f"{peer} sent no answer of an audit") from error
    if isinstance(said, No):
        raise Refused(said.text)
    return said.data
