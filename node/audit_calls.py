"""What is asked in an audit, over a stream of its own: frames as large as those of sessions, one question each.

Evidence of a long session does not fit a unary call. Nothing here needs a tensor library, so that a client may audit.
"""

from collections.abc import Sequence

import anyio

from shoal.incentives.bodies import Hash
from shoal.swarm.errors import Refused, StreamBroken, TimedOut
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.members.handshake import Gate, greet, read_welcome
from shoal.swarm.message_codec import MessageCodec, TaggedMessage
from shoal.swarm.transport import Transport

PROTOCOL = "/shoal/audit/1"


class AskStatement(TaggedMessage, frozen=True):
    """To the server, as all about its own work: answered by a WorkStatement."""

    session: SessionId
    draw: Hash


class AskEvidence(TaggedMessage, frozen=True):
    session: SessionId
    index: int


class AskLink(TaggedMessage, frozen=True):
    """Answered by a ChunkLink."""

    session: SessionId
    index: int


class AskReplay(TaggedMessage, frozen=True):
    """To a holder of the class: answered by an AuditReport."""

    evidence: bytes


class AskCase(TaggedMessage, frozen=True):
    """To whoever wrote a VERDICT: answered by an AuditCase."""

    hash: Hash


class Answer(TaggedMessage, frozen=True):
    data: bytes


class No(TaggedMessage, frozen=True):
    text: str


Question = AskStatement | AskEvidence | AskLink | AskReplay | AskCase
questions: MessageCodec[Question] = MessageCodec(Question, "a question of an audit")
answers: MessageCodec[Answer | No] = MessageCodec(Answer | No, "an answer of an audit")


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
        await stream.send(questions.encode(question))
        await read_welcome(stream, gate)
        frame = await stream.receive()
    except BaseException:
        stream.abort()
        raise
    await stream.close()
    if frame is None:
        raise StreamBroken(f"{peer} gave no answer")
    said = answers.decode(frame)
    if isinstance(said, No):
        raise Refused(said.text)
    return said.data
