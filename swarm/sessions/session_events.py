"""What goes into a session's machine and what comes out of it.

Events are what the shell saw happen; effects are what it has to do, in the order in which they come.
"""

from dataclasses import dataclass
from typing import Literal

from shoal.swarm.errors import ShoalError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.units import Span

from .compute import Choice
from .messages import FailureKind

HopKey = int  # one opening of one hop; a peer that is opened again gets a new key


@dataclass(frozen=True, slots=True)
class Planned:
    """A chain for the span that the `Plan` of this number asked for, in order."""

    number: int
    hops: tuple[tuple[PeerId, Span], ...]


@dataclass(frozen=True, slots=True)
class PlanFailed:
    number: int
    error: ShoalError


@dataclass(frozen=True, slots=True)
class HopOpened:
    hop: HopKey


@dataclass(frozen=True, slots=True)
class HopFailed:
    """A hop said so itself, or blames another peer."""

    hop: HopKey
    kind: FailureKind
    text: str
    culprit: PeerId | None = None


@dataclass(frozen=True, slots=True)
class HopLost:
    """The control stream of a hop broke, or it could not be reached. ours: as our own daemon is gone"""

    hop: HopKey
    reason: str
    ours: bool = False


@dataclass(frozen=True, slots=True)
class PeerSought:
    """The answer to `SeekPeer`. peer None: there is nobody, and `reason` says why"""

    hop: HopKey
    peer: PeerId | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CacheKept:
    """A standby keeps so many positions."""

    hold: HopKey
    held: int


@dataclass(frozen=True, slots=True)
class CacheCame:
    """A hop has taken in the cache that was to come, and has so many positions."""

    hop: HopKey
    held: int


@dataclass(frozen=True, slots=True)
class CacheFailed:
    """A hop could not send its cache to the holder of that key, or could not use what came (then it is its own)."""

    hop: HopKey
    to: HopKey
    reason: str


@dataclass(frozen=True, slots=True)
class HopLeaves:
    """A hop asks for a successor, and is gone after so many seconds."""

    hop: HopKey
    within_s: float


@dataclass(frozen=True, slots=True)
class HopHanded:
    """A leaving hop has given all away and computes no more."""

    hop: HopKey
    held: int


@dataclass(frozen=True, slots=True)
class TokenCame:
    position: int
    choice: Choice


@dataclass(frozen=True, slots=True)
class ProgressCame:
    hop: HopKey
    held: int


@dataclass(frozen=True, slots=True)
class Ticked:
    """The time asked for by `WakeAt` has come."""


Event = (
    Planned
    | PlanFailed
    | HopOpened
    | HopFailed
    | HopLost
    | PeerSought
    | CacheKept
    | CacheCame
    | CacheFailed
    | HopLeaves
    | HopHanded
    | TokenCame
    | ProgressCame
    | Ticked
)


@dataclass(frozen=True, slots=True)
class Plan:
    """After `after_s` seconds, choose peers for `span`, between the neighbours that stay (None: the driver).

    number: the answer bears it; a later `Plan` makes the answers to earlier ones worthless
    """

    number: int
    span: Span
    exclude: frozenset[PeerId]
    before: PeerId | None
    after: PeerId | None
    hops_left: int  # of the chain, for this span
    after_s: float
    whole: bool = False  # a chain that begins with nothing, for all of the session's span
    slice_tokens: int | None = None  # of a prompt that is paid piece by piece; the shell knows


@dataclass(frozen=True, slots=True)
class Restore:
    """Whose cache a hop begins with. sender None: the driver's"""

    sender: PeerId | None


@dataclass(frozen=True, slots=True)
class OpenHop:
    hop: HopKey
    peer: PeerId
    span: Span
    upstream: PeerId | None  # None: the driver
    downstream: HopKey | None
    restore: Restore | None = None  # `CacheCame` tells when it is done


@dataclass(frozen=True, slots=True)
class SeekPeer:
    """After `after_s` seconds, find one peer for all of `span`, as standby or successor of a hop."""

    hop: HopKey
    span: Span
    exclude: frozenset[PeerId]
    before: PeerId | None
    after: PeerId | None
    after_s: float


@dataclass(frozen=True, slots=True)
class OpenHold:
    """Have a standby keep what `sender` will send."""

    hold: HopKey
    peer: PeerId
    span: Span
    sender: HopKey


@dataclass(frozen=True, slots=True)
class PrepareLink:
    """Have a push stream ready from one hop or standby to another, should positions have to go there.

    source None: the driver
    """

    source: HopKey | None
    to: HopKey


@dataclass(frozen=True, slots=True)
class PromoteHold:
    """A standby becomes the hop that it stands by for, under the key of the hold. `CacheCame` tells with how much.

    below: it begins with positions before this one, which whoever is behind it holds too
    """

    hold: HopKey
    peer: PeerId
    span: Span
    upstream: PeerId | None  # None: the driver
    downstream: HopKey | None
    below: int


@dataclass(frozen=True, slots=True)
class KeepHere:
    """Keep what `sender` will send in this process."""

    hold: HopKey
    sender: HopKey


@dataclass(frozen=True, slots=True)
class SendSnapshots:
    """Have a hop send its cache to a hold, chunk by chunk as it fills."""

    hop: HopKey
    hold: HopKey


@dataclass(frozen=True, slots=True)
class SendKept:
    """Send what is kept in this process of positions below `below` to a hop that waits for it."""

    hold: HopKey
    hop: HopKey
    below: int


@dataclass(frozen=True, slots=True)
class HandOver:
    """Have a leaving hop send all it has to its successor, and stop computing."""

    hop: HopKey
    successor: HopKey


@dataclass(frozen=True, slots=True)
class KeepOn:
    """A leaving hop hands over to nobody, for now."""

    hop: HopKey


@dataclass(frozen=True, slots=True)
class TellStranded:
    """A leaving hop has no successor."""

    hop: HopKey
    reason: str


@dataclass(frozen=True, slots=True)
class CloseHop:
    hop: HopKey


@dataclass(frozen=True, slots=True)
class AdoptUpstream:
    hop: HopKey
    upstream: PeerId | None


@dataclass(frozen=True, slots=True)
class RewireHop:
    hop: HopKey
    downstream: HopKey
    start: int = 0  # positions before are there already


@dataclass(frozen=True, slots=True)
class ConnectFirst:
    """Push from the driver into this hop from now on, and feed it everything from position `start` on."""

    hop: HopKey
    start: int = 0


@dataclass(frozen=True, slots=True)
class FeedToken:
    """Push all tokens before index `stop` that were not pushed yet."""

    stop: int


@dataclass(frozen=True, slots=True)
class SendProbe:
    hop: HopKey


@dataclass(frozen=True, slots=True)
class WakeAt:
    when_s: float


@dataclass(frozen=True, slots=True)
class Emit:
    choice: Choice


@dataclass(frozen=True, slots=True)
class Repaired:
    """For the route: who was lost, why, for how long, and who stands in."""

    peer: PeerId
    span: Span
    reason: str
    pause_s: float
    replaced_by: tuple[PeerId, ...]
    loaded: int = 0  # positions that were taken over and not computed again
    planned: bool = False  # it left of its own accord


@dataclass(frozen=True, slots=True)
class Finished:
    reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Broke:
    error: ShoalError


Effect = (
    Plan
    | SeekPeer
    | OpenHop
    | OpenHold
    | PrepareLink
    | PromoteHold
    | KeepHere
    | SendSnapshots
    | SendKept
    | HandOver
    | KeepOn
    | TellStranded
    | CloseHop
    | AdoptUpstream
    | RewireHop
    | ConnectFirst
    | FeedToken
    | SendProbe
    | WakeAt
    | Emit
    | Repaired
    | Finished
    | Broke
)
