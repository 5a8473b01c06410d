"""Chunks between peers: one stream for one prefix, questions one way, answers in their order the other.

The stream begins with the handshake of every stream (`handshake`), which shows that both are members.
"""

from shoal.swarm.errors import MalformedMessage
from shoal.swarm.message_codec import MessageCodec, TaggedMessage

from .prefix_chain import LINK_BYTES

PROTOCOL = "/shoal/kv/2"


class Want(TaggedMessage, frozen=True):
    address: bytes
    level: str


class Given(TaggedMessage, frozen=True):
    """data: `kv_chunks.KvChunk`"""

    address: bytes
    level: str
    data: bytes


class Missing(TaggedMessage, frozen=True):
    address: bytes


class Declined(TaggedMessage, frozen=True):
    """The last answer of a stream, also before any question: nothing more is given now. reason: one line"""

    reason: str


AnyAnswer = Given | Missing | Declined
_wants: MessageCodec[Want] = MessageCodec(Want, "a question for a chunk")
_answers: MessageCodec[AnyAnswer] = MessageCodec(AnyAnswer, "an answer with a chunk")
read_answer = _answers.decode  # raises: MalformedMessage, whatever the bytes are


def encode(message: Want | AnyAnswer) -> bytes:
    return _wants.encode(message) if isinstance(message, Want) else _answers.encode(message)


def read_want(data: bytes) -> Want:
    """raises: MalformedMessage"""
    want = _wants.decode(data)
    if len(want.address) != LINK_BYTES:
        raise MalformedMessage("a question for a chunk with a wrong address")
    return want
