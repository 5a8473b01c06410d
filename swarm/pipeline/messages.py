"""What the peers of a pipeline say to one another. Decoding is the only place where bytes become types.

A *driver* is a replica of stage 0: it has the data. It keeps a control stream to every replica of the other stages, on
which an inner step begins and ends. Work goes from stage to stage on streams of its own: activations there, their
gradient back as the answer.

Step t at a replica: microbatches come in; `Finish` from every driver that has joined; `Weighed` tells how large the
gradient is; the first `Move` takes the step, with the norm over all stages; `Opened` begins t + 1.
"""

from typing import Literal

import msgspec

from shoal.swarm.identifiers import PeerId
from shoal.swarm.message_codec import MessageCodec, TaggedMessage
from shoal.swarm.rounds.run_identity import run_key

PROTOCOL = "/shoal/pipeline/1"  # and the run's key: see `protocol_of`
PIECE_BYTES = 1 << 20  # tensors travel in frames of this size, so that none is too large for the transport


def protocol_of(run: str) -> str:
    """Of all streams of a run's pipeline. run: its name"""
    return f"{PROTOCOL}/{run_key(run)[:16]}"


class Attach(TaggedMessage, frozen=True):
    """Driver to replica, first on a control stream. pipeline: hash of all that both must agree on"""

    pipeline: str
    stage: int  # that the driver takes the replica for


class Enter(TaggedMessage, frozen=True):
    """First on a stream for work."""

    pipeline: str


class Entered(TaggedMessage, frozen=True):
    """The answer to `Enter`."""


class Opened(TaggedMessage, frozen=True):
    """Replica to driver: step `step` takes microbatches, or (ready: False) it will as soon as a round is over."""

    step: int
    ready: bool


class Begin(TaggedMessage, frozen=True):
    """Driver to replica: it takes part from this step on, until its stream ends. Answered by Begun."""

    step: int


class Begun(TaggedMessage, frozen=True):
    """step: where the replica is; a later one than asked for says that the driver came too late for that."""

    step: int


class Finish(TaggedMessage, frozen=True):
    """Driver to replica: all its microbatches of the step are done. counted: those whose gradient counts here

    square: of the driver's own gradient's norm; sequences: behind it
    """

    step: int
    counted: tuple[int, ...]
    square: float
    sequences: int


class Weighed(TaggedMessage, frozen=True):
    """Replica to driver: every driver has finished. square: of this replica's gradient's norm, over `sequences`

    first_square: mean of the drivers' own, the same for all of them
    """

    step: int
    square: float
    sequences: int
    first_square: float


class Move(TaggedMessage, frozen=True):
    """Driver to replica: follow the gradient. loss: the mean

    norm: over all stages; one that is not finite says to leave the step out
    """

    step: int
    norm: float
    loss: float


class Ended(TaggedMessage, frozen=True):
    """Driver to replica: the run is over."""

    reason: str


class Beat(TaggedMessage, frozen=True):
    """Both ways, answered by the replica with the same number: I am here."""

    number: int


class Away(TaggedMessage, frozen=True):
    """Replica to driver: it takes no work before it says `Opened` again; final: never, the stream ends."""

    reason: str
    final: bool


class Hop(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    peer: PeerId
    addresses: tuple[str, ...]


class Work(TaggedMessage, frozen=True):
    """One microbatch for a stage; its tensor follows in pieces. Answered by Done or Undone with the same `request`.

    route: the hops after this one; learns: False asks for the loss alone
    targets: (B, S) int32 little endian, for the stage with the head; positions: the same or empty
    patience_s: how long an answer may take; size_bytes, checksum: of the tensor
    """

    request: int
    driver: PeerId
    step: int
    microbatch: int
    sequences: int
    learns: bool
    route: tuple[Hop, ...]
    patience_s: float
    targets: bytes
    positions: bytes
    size_bytes: int
    checksum: int  # crc32c


class Done(TaggedMessage, frozen=True):
    """The loss, and the gradient of what came in, in pieces; none when nothing was to be learned."""

    request: int
    loss: float
    size_bytes: int
    checksum: int


UndoneKind = Literal[
    "lost",  # the next hop is gone or does not answer
    "late",  # the replica is at another step, or takes no work now
    "failed",  # its own machine
    "broken",  # the numbers are not finite any more: no other try helps
    "damaged",  # what came in is not what was sent, or not of the agreed shape
]


class Undone(TaggedMessage, frozen=True):
    """culprit: who is to be left out of another try"""

    request: int
    kind: UndoneKind
    text: str
    culprit: PeerId


AnyMessage = (
    Attach
    | Enter
    | Entered
    | Opened
    | Begin
    | Begun
    | Finish
    | Weighed
    | Move
    | Ended
    | Beat
    | Away
    | Work
    | Done
    | Undone
)

_codec: MessageCodec[AnyMessage] = MessageCodec(AnyMessage, "a message of a pipeline")
encode, decode = _codec.encode, _codec.decode  # decode raises MalformedMessage, whatever the bytes are
