"""The envelope of what is published: its sender's signature, bound to one topic, in one canonical encoding.

A gossip relays what it does not understand, and a relay could put anybody's name on it; a message that carries its
own proof may be kept, relayed by other means and checked later by a third party.
"""

import msgspec

from .canonical import Canonical
from .errors import FrameTooLarge, MalformedMessage
from .identifiers import PeerId
from .identity import Identity, verify
from .topics import MAX_TOPIC_BYTES

DOMAIN = "topic"
MAX_BODY_BYTES = MAX_TOPIC_BYTES - 256


class _Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    sender: PeerId
    body: bytes
    signature: bytes  # over the topic and the body


_codec = Canonical(_Envelope, "a published message", MAX_TOPIC_BYTES)


def seal(identity: Identity, topic: str, body: bytes) -> bytes:
    """raises: FrameTooLarge (ours)"""
    if len(body) > MAX_BODY_BYTES:
        raise FrameTooLarge(f"a message of {len(body)} bytes for {topic}; the limit is {MAX_BODY_BYTES}")
    return _codec.encode(_Envelope(identity.peer_id, body, identity.sign(DOMAIN, _signed(topic, body))))


def open_sealed(topic: str, origin: PeerId | None, data: bytes) -> tuple[PeerId, bytes]:
    """The sender and the body.

    origin: who published it by the transport's word; None when it came by another way
    raises: MalformedMessage, whatever the bytes are
    """
    envelope = _codec.decode(data)
    if origin is not None and envelope.sender != origin:
        raise MalformedMessage("a message that another peer published than the one that signed it")
    if not verify(envelope.sender, DOMAIN, _signed(topic, envelope.body), envelope.signature):
        raise MalformedMessage("a published message that its sender did not sign")
    return envelope.sender, envelope.body


def _signed(topic: str, body: bytes) -> bytes:
    return topic.encode() + b"\0" + body
