"""Messages with exactly one encoding: what does not re-encode to the same bytes is refused.

msgpack decoders accept non-minimal integers, float32 and duplicate keys, so one value has many encodings.
Whoever signs, hashes or compares bytes wants one.
"""

from types import UnionType
from typing import Generic, TypeVar

import msgspec

from .errors import MalformedMessage

Message = TypeVar("Message")


class Canonical(Generic[Message]):
    """The codec of one message type.

    kind: a frozen msgspec Struct (or a union of tagged ones)
    what: how errors call it, e.g. "a certificate"
    """

    def __init__(self, kind: type[Message] | UnionType, what: str, max_bytes: int) -> None:
        self.what = what
        self.max_bytes = max_bytes
        self._encoder = msgspec.msgpack.Encoder(order="deterministic")
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(kind)

    def encode(self, message: Message) -> bytes:
        return self._encoder.encode(message)

    def decode(self, data: bytes) -> Message:
        """raises: MalformedMessage, whatever the bytes are"""
        if len(data) > self.max_bytes:
            raise MalformedMessage(f"{len(data)} bytes are too many for {self.what} (at most {self.max_bytes})")
        try:
            message = self._decoder.decode(data)
            again = self._encoder.encode(message)
        except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
            raise MalformedMessage(f"not {self.what}: {error}") from error
        if again != data:
            raise MalformedMessage(f"not {self.what} in canonical form")
        return message
