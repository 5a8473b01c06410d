"""What all messages of the outer round have in common."""

from typing import Annotated

import msgspec

from shoal.swarm.message_codec import TaggedMessage

from .decisions import Hash

Path = Annotated[tuple[Hash, ...], msgspec.Meta(max_length=64)]  # of a hash tree
Reason = Annotated[str, msgspec.Meta(max_length=500)]


class Message(TaggedMessage, frozen=True):
    """Base of the wire types."""
