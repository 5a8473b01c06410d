"""Chunks between peers: one stream for one prefix, questions one way, answers in their order the other.

The stream begins with the handshake of every stream (`handshake`), which shows that both are members.
"""

import msgspec

from shoal.swarm.errors import MalformedMessage

from .prefix_chain import LINK_BYTES

PROTOCOL = "/shoal/kv/2"


class Want(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    address: bytes
    level: str


class Given(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """data: `kv_chunks.KvChunk`"""

    address: bytes
    level: str
    data: bytes


class Missing(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    address: bytes


class Declined(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """The last answer of a stream, also before any question: nothing more is given now. reason: one line"""

    reason: str


AnyAnswer = Given | Missing | Declined
_encoder = msgspec.msgpack.Encoder()
_wants = msgspec.msgpack.Decoder(Want)
_answers: msgspec.msgpack.Decoder[AnyAnswer] = msgspec.msgpack.Decoder(AnyAnswer)


def encode(message: Want | AnyAnswer) -> bytes:
    return _encoder.encode(message)


def read_want(data: bytes) -> Want:
    """raises: MalformedMessage"""
    try:
        want = _wants.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise MalformedMessage(f"not a question for a chunk: {error}") from error
    if len(want.address) != LINK_BYTES:
        raise MalformedMessage("a question for a chunk with a wrong address")
    return want


def read_answer(data: bytes) -> AnyAnswer:
    """raises: MalformedMessage"""
    try:
        return _answers.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise MalformedMessage(f"not an answer with a chunk: {error}") from error
