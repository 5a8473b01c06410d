"""Every message of a session. Decoding is the only place where bytes become types.

Three streams carry them. The *control* stream joins the driver with each hop: it opens, repairs, probes, and brings
results back; its end closes the session at that hop. The *push* stream carries positions downstream: driver to first
hop, hop to hop. The *cache* stream carries a session's KV cache from one holder of its layers to another. Each stream
begins with `Hello`, answered by `Welcome` or `Failed`.
"""

from typing import Literal

import msgspec

from shoal.compression import activations
from shoal.compression.kv_levels import KvLevel
from shoal.swarm.identifiers import ModelId, PeerId, SessionId, SwarmId
from shoal.swarm.message_codec import MessageCodec
from shoal.swarm.sampling import Sampling
from shoal.swarm.units import Span

CONTROL_PROTOCOL = "/shoal/session/2"
PUSH_PROTOCOL = "/shoal/push/2"
CACHE_PROTOCOL = "/shoal/cache/1"


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of the wire types; an array whose first element is the number of the type."""


class Hello(Message, frozen=True, tag=0):
    protocol: int
    swarm: SwarmId
    certificate: bytes  # b"" in public swarms


class Welcome(Message, frozen=True, tag=1):
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


class Prefill(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Another peer computes the first `positions` of a session, and their KV comes to this hop meanwhile.

    exact: nothing may be lost on the way. Expected, in seconds: until the first chunk comes, from one to the next, and
    what this chain would take to compute one itself; 0: nobody knows
    """

    sender: PeerId
    positions: int
    exact: bool
    first_s: float = 0.0
    chunk_s: float = 0.0
    own_chunk_s: float = 0.0


class Open(Message, frozen=True, tag=2):
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
    cache_from: PeerId | None = None  # who sends the cache before positions come; this hop itself: from what it keeps
    kept_as: SessionId | None = None  # what it keeps it as
    cache_below: int = 0  # of what it keeps, positions below this only: whoever is behind it holds those too
    prefix: Prefix | None = None
    prefill: Prefill | None = None
    for_others: bool = False  # only the cache is wanted, by others: what the last hop computes goes nowhere


class Opened(Message, frozen=True, tag=3):
    session: SessionId


class Hold(Message, frozen=True, tag=19):
    """Driver to a standby, first on a control stream: keep what a hop sends of its cache. Answered as `Open`."""

    session: SessionId
    model: ModelId
    dtype: str
    span: Span
    sender: PeerId
    max_tokens: int = 0  # of the session; room for so many stands ready here as long as nobody else needs it


class Kept(Message, frozen=True, tag=36):
    """Standby to driver, and to the hop that sends it a cache: positions that it keeps.

    An `Open` on the driver's stream makes a hop of it.
    """

    held: int


class Prepare(Message, frozen=True, tag=37):
    """Driver to a hop or a standby: have a push stream ready to a peer to which positions may have to go one day."""

    peer: PeerId
    session: SessionId
    addresses: tuple[str, ...]


class Attach(Message, frozen=True, tag=4):
    """First message after Hello on a push stream or a cache stream."""

    session: SessionId
    early: bool = False  # nothing comes before the driver says so, perhaps never


class Timing(msgspec.Struct, frozen=True, array_like=True):
    queue_ms: float
    compute_ms: float


class Feed(Message, frozen=True, tag=5):
    """`count` positions from `start`, as ids or as hidden states. A replay may repeat positions the receiver holds."""

    start: int
    count: int
    ids: tuple[int, ...]
    hidden: bytes  # compression.activations
    wants_token: bool
    replay: bool
    trace: tuple[Timing, ...]  # of the hops before, in order


class PaidFeed(Feed, frozen=True, tag=6):
    """A feed that brings the word for positions before it; every hop takes it and passes it on."""

    tick: bytes


class Slice(Message, frozen=True, tag=7):
    """A piece of a paid prompt as ids, after which more comes; tick: as in `PaidFeed`, None for the first."""

    start: int
    ids: tuple[int, ...]
    tick: bytes | None


class HiddenSlice(Message, frozen=True, tag=8):
    """The same as hidden states: `compression.activations` without its header."""

    start: int
    count: int
    dtype: int
    body: bytes
    tick: bytes | None


def with_word(feed: Feed, tick: bytes) -> Feed:
    """tick: b"" when no word is due"""
    if not tick:
        return feed
    return PaidFeed(feed.start, feed.count, feed.ids, feed.hidden, feed.wants_token, feed.replay, feed.trace, tick)


Pushed = Feed | Slice | HiddenSlice


def slice_of(feed: Feed, tick: bytes) -> Slice | HiddenSlice:
    """For a feed that wants no token. raises: MalformedPayload"""
    if feed.ids:
        return Slice(feed.start, feed.ids, tick or None)
    code, body = activations.undress(feed.hidden)
    return HiddenSlice(feed.start, feed.count, code, body, tick or None)


def unpacked(pushed: Pushed) -> tuple[Feed, bytes]:
    """The positions, and the word that came with them or b"". raises: MalformedPayload"""
    match pushed:
        case PaidFeed():
            return pushed, pushed.tick
        case Feed():
            return pushed, b""
        case Slice(start, ids, tick):
            return Feed(start, len(ids), ids, b"", False, False, ()), tick or b""
        case HiddenSlice(start, count, code, body, tick):
            return Feed(start, count, (), activations.dress(code, count, body), False, False, ()), tick or b""


class Token(Message, frozen=True, tag=9):
    """Last hop to driver: the token at index `position`."""

    position: int
    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    trace: tuple[Timing, ...]


class Output(Message, frozen=True, tag=10):
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


class Failed(Message, frozen=True, tag=11):
    kind: FailureKind
    text: str
    culprit: PeerId | None  # whom the sender blames, when not itself


class Adopt(Message, frozen=True, tag=12):
    """Driver to the hop after a lost one: take positions from another peer from now on."""

    upstream: PeerId


class Rewire(Message, frozen=True, tag=13):
    """Driver to the hop before a lost one: push to another peer, and send it everything from `start` on again."""

    downstream: PeerId
    downstream_session: SessionId
    downstream_addresses: tuple[str, ...]
    start: int = 0


class SendCache(Message, frozen=True, tag=20):
    """Driver to hop: send this session's cache, in whole chunks as they fill, to a peer that waits for it.

    level: the lowest that is allowed
    hands_over: all of it, and compute nothing any more: the peer takes this hop's place. Answered by Handed.
    span: of these units only, to several peers at once; until: so many positions
    """

    peer: PeerId
    session: SessionId
    addresses: tuple[str, ...]
    level: KvLevel
    hands_over: bool
    span: Span | None = None
    until: int = 0


class CacheLost(Message, frozen=True, tag=21):
    """Hop to driver: the cache did not get to where it was to go, or what came could not be used."""

    session: SessionId  # the receiver's name for it
    text: str


class Chunk(Message, frozen=True, tag=22):
    """On a cache stream."""

    data: bytes  # kv_chunks


class CacheEnd(Message, frozen=True, tag=23):
    """Last on a cache stream whose sender hands over."""

    held: int  # positions
    history: tuple[int, ...]  # only when the sampling has penalties and the sender has the head


class Restored(Message, frozen=True, tag=24):
    """Hop to driver: the cache that was to come is in; positions from `held` on are due."""

    held: int


class Leaving(Message, frozen=True, tag=25):
    """Hop to driver: this node is about to leave; name a successor."""

    within_s: float


class NoSuccessor(Message, frozen=True, tag=26):
    """Driver to a hop that is about to leave."""

    text: str


class Stay(Message, frozen=True, tag=27):
    """Driver to a hop that hands over: its successor is gone; compute on."""


class Handed(Message, frozen=True, tag=28):
    """Hop to driver: the successor has all of the cache, and everybody downstream all that came of it."""

    held: int


class Probe(Message, frozen=True, tag=14):
    nonce: int


class Progress(Message, frozen=True, tag=15):
    nonce: int  # of the probe
    held: int  # positions computed


class Computed(Message, frozen=True, tag=16):
    """Last hop to the driver of a paid session: positions that gave no token, so that they can be paid."""

    held: int


class Tick(Message, frozen=True, tag=17):
    """Driver to hop: the word for all positions so far, where no feed goes that could bring it."""

    word: bytes


class Pay(Message, frozen=True, tag=18):
    """Driver to hop: what else stands in `Open.payment`, for a session that is open already and costs nothing."""

    payment: bytes


class Staged(Message, frozen=True, tag=29):
    """Hop to driver: the chunks of the prefix that it holds, in ranges [first, stop); `fetched`: one came just now."""

    chunks: tuple[tuple[int, int], ...]
    fetched: bool


class Skippable(Message, frozen=True, tag=30):
    """Driver to first hop: the chunks that all others hold; from them on, it need not feed them."""

    chunks: tuple[tuple[int, int], ...]
    fetched: bool


class Keep(Message, frozen=True, tag=31):
    """Driver to hop: links of the chunks that have been generated, from number `first` on; their KV may be kept."""

    first: int
    links: tuple[bytes, ...]


class Reused(Message, frozen=True, tag=32):
    """Hop to driver: so many positions were not computed, but lay there or came from donors."""

    stored: int
    fetched: int


class Streamed(Message, frozen=True, tag=33):
    """Hop to driver: so many positions have come from who computes them for this hop. over: no more will come; fault:
    what came is not what an honest peer sends, and some of it may be in use"""

    held: int
    over: bool
    fault: str = ""


class Ahead(Message, frozen=True, tag=34):
    """Driver to first hop: the positions that have come to all others. over: to one of them, not all will come"""

    held: int
    over: bool


class NoPrefill(Message, frozen=True, tag=35):
    """Driver to hop: nobody computes the prompt for it any more."""

    text: str


AnyMessage = (
    Hello
    | Welcome
    | Open
    | Hold
    | Kept
    | Prepare
    | Opened
    | Attach
    | SendCache
    | CacheLost
    | Chunk
    | CacheEnd
    | Restored
    | Leaving
    | NoSuccessor
    | Stay
    | Handed
    | Feed
    | PaidFeed
    | Slice
    | HiddenSlice
    | Token
    | Output
    | Failed
    | Adopt
    | Rewire
    | Probe
    | Progress
    | Computed
    | Tick
    | Pay
    | Staged
    | Skippable
    | Keep
    | Reused
    | Streamed
    | Ahead
    | NoPrefill
)

_codec: MessageCodec[AnyMessage] = MessageCodec(AnyMessage, "a message of ours")
encode, decode = _codec.encode, _codec.decode  # decode raises MalformedMessage, whatever the bytes are
