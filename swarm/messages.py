"""Every message of a session. Decoding is the only place where bytes become types.

Two streams carry them. The *control* stream joins the driver with each hop: it opens, repairs, probes, and brings
results back; its end closes the session at that hop. The *push* stream carries positions downstream: driver to first
hop, hop to hop. Each stream begins with `Hello`, answered by `Welcome` or `Failed`.
"""

from typing import Literal

import msgspec

from .errors import MalformedMessage
from .identifiers import ModelId, PeerId, SessionId, SwarmId
from .sampling import Sampling
from .units import Span

CONTROL_PROTOCOL = "/shoal/session/1"
PUSH_PROTOCOL = "/shoal/push/1"


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """Base of the wire types; an array whose first element is the class name."""


class Hello(Message, frozen=True):
    protocol: int
    swarm: SwarmId
    certificate: bytes  # b"" in public swarms


class Welcome(Message, frozen=True):
    protocol: int
    certificate: bytes


class Prefix(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a hop may do with the KV of a prompt besides computing it, see `prefix_chain`.

    links: of the chunks that need not be computed; shared: their KV may be given to others and taken from them; exact:
    only such as was computed from the ids and lost nothing since
    """

    links: tuple[bytes, ...]
    shared: bool
    exact: bool


class Open(Message, frozen=True):
    """Driver to hop: reserve room and get ready. Answered by Opened or Failed."""

    session: SessionId
    model: ModelId
    dtype: str
    span: Span
    max_tokens: int
    upstream: PeerId  # who will push to this hop; the driver itself for the first
    downstream: PeerId | None  # whom this hop pushes to; None: results go to the driver
    downstream_session: SessionId | None
    downstream_addresses: tuple[str, ...]
    sampling: Sampling
    history: tuple[int, ...]  # only when the sampling has penalties and this hop has the head
    payment: bytes = b""  # see `metering`; b"": nothing is offered
    stamp: bytes = b""  # a newcomer's proof of work, see `lanes`
    prefix: Prefix | None = None


class Opened(Message, frozen=True):
    session: SessionId


class Attach(Message, frozen=True):
    """First message after Hello on a push stream."""

    session: SessionId


class Timing(msgspec.Struct, frozen=True, array_like=True):
    queue_ms: float
    compute_ms: float


class Feed(Message, frozen=True):
    """`count` positions from `start`, as ids or as hidden states. A replay may repeat positions the receiver holds."""

    start: int
    count: int
    ids: tuple[int, ...]
    hidden: bytes  # compression.activations
    wants_token: bool
    replay: bool
    trace: tuple[Timing, ...]  # of the hops before, in order


class PaidFeed(Feed, frozen=True, tag="Paid"):
    """A feed that brings the word for positions before it; every hop takes it and passes it on."""

    tick: bytes


def with_word(feed: Feed, tick: bytes) -> Feed:
    """tick: b"" when no word is due"""
    if not tick:
        return feed
    return PaidFeed(feed.start, feed.count, feed.ids, feed.hidden, feed.wants_token, feed.replay, feed.trace, tick)


class Token(Message, frozen=True):
    """Last hop to driver: the token at index `position`."""

    position: int
    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    trace: tuple[Timing, ...]


class Output(Message, frozen=True):
    """Last hop to a driver that keeps the head."""

    start: int
    count: int
    hidden: bytes
    wants_token: bool
    trace: tuple[Timing, ...]


FailureKind = Literal[
    "version",  # another protocol version
    "refused",  # not a member, revoked, unknown session, wrong upstream
    "not_hosted",  # the model, span or dtype is not served here (any more)
    "no_room",  # KV cache full or too many sessions
    "too_long",  # beyond the model's context
    "bad_input",  # upstream sent NaN, a wrong shape, or a gap
    "cannot_replay",  # kept outputs were dropped
    "downstream_lost",  # the push stream downstream broke
    "local",  # this hop's own fault
]


class Failed(Message, frozen=True):
    kind: FailureKind
    text: str
    culprit: PeerId | None  # whom the sender blames, when not itself


class Adopt(Message, frozen=True):
    """Driver to the hop after a lost one: take positions from another peer from now on."""

    upstream: PeerId


class Rewire(Message, frozen=True):
    """Driver to the hop before a lost one: push to another peer, and send it everything from position 0 again."""

    downstream: PeerId
    downstream_session: SessionId
    downstream_addresses: tuple[str, ...]


class Probe(Message, frozen=True):
    nonce: int


class Progress(Message, frozen=True):
    nonce: int  # of the probe; 0 when none asked, from the last hop of a paid session
    held: int  # positions computed


class Tick(Message, frozen=True):
    """Driver to hop: the word for all positions so far, where no feed goes that could bring it."""

    word: bytes


class Staged(Message, frozen=True):
    """Hop to driver: the chunks of the prefix that it holds, in ranges [first, stop); `fetched`: one came just now."""

    chunks: tuple[tuple[int, int], ...]
    fetched: bool


class Skippable(Message, frozen=True):
    """Driver to first hop: the chunks that all others hold; from them on, it need not feed them."""

    chunks: tuple[tuple[int, int], ...]
    fetched: bool


class Keep(Message, frozen=True):
    """Driver to hop: links of the chunks that have been generated, from number `first` on; their KV may be kept."""

    first: int
    links: tuple[bytes, ...]


class Reused(Message, frozen=True):
    """Hop to driver: so many positions were not computed, but lay there or came from donors."""

    stored: int
    fetched: int


AnyMessage = (
    Hello
    | Welcome
    | Open
    | Opened
    | Attach
    | Feed
    | PaidFeed
    | Token
    | Output
    | Failed
    | Adopt
    | Rewire
    | Probe
    | Progress
    | Tick
    | Staged
    | Skippable
    | Keep
    | Reused
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: AnyMessage) -> bytes:
    return _encoder.encode(message)


def decode(data: bytes) -> AnyMessage:
    """raises: MalformedMessage, whatever the bytes are"""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError) as error:
        raise MalformedMessage(f"not a message of ours: {error}") from error
