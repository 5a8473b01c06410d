"""Messages that are told apart by the name of their type, and the codec of a union of them.

Decoding is the only place where bytes become types. Where bytes are signed or hashed, `canonical` is what is wanted.
"""

from types import UnionType
from typing import Generic, TypeVar

import msgspec

from .errors import MalformedMessage

Message = TypeVar("Message")


class TaggedMessage(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """Base of such messages."""


class MessageCodec(Generic[Message]):
    """kind: a union of tagged messages; what: how errors call one, e.g. "a message of a round"."""

    def __init__(self, kind: type[Message] | UnionType, what: str) -> None:
        self.what = what
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(kind)

    def encode(self, message: Message) -> bytes:
        return self._encoder.encode(message)

    def decode(self, data: bytes) -> Message:
        """raises: MalformedMessage, whatever the bytes are"""
        try:
            return self._decoder.decode(data)
        except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError) as error:
            raise MalformedMessage(f"not {self.what}: {error}") from error
