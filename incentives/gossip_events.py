"""What happens to the gossip of the ledger, and what it wants done."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from shoal.swarm.identifiers import PeerId

from .bodies import ForkProof
from .entry import Entry
from .gossip_messages import Answer, EntriesWanted, ProofWanted, TipsWanted
from .quotas import Allowance

_MESSAGES = Allowance(burst=40, per_s=2.5)
_STRANGERS = Allowance(burst=80, per_s=5.0)
_ENTRIES = Allowance(burst=256, per_s=4.0)
_PAGES = Allowance(burst=24, per_s=0.5)

Asked = EntriesWanted | TipsWanted | ProofWanted


@dataclass(frozen=True, slots=True)
class Heard:
    """Published by `origin`, by the transport's word; nothing about the bytes is checked."""

    origin: PeerId
    data: bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """Entries that stand in the book now and that others shall hear of: our own, or those that their author showed us,
    such as the OPEN of a session."""

    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class Caught:
    """Somebody showed us, first hand, an entry that forks his chain."""

    proof: ForkProof


@dataclass(frozen=True, slots=True)
class Answered:
    peer: PeerId
    question: Asked
    answer: Answer


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Not reachable, too late, refused, or not what was asked for."""

    peer: PeerId
    question: Asked


@dataclass(frozen=True, slots=True)
class Listed:
    """The members that live, by what the directory says now."""

    peers: Collection[PeerId]


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed: to be sent every `GossipOptions.beat_s`."""


Event = Heard | Kept | Caught | Answered | Unanswered | Listed | Ticked


@dataclass(frozen=True, slots=True)
class Publish:
    """Seal and publish these bytes."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """By member call; report `Answered` or `Unanswered`."""

    peer: PeerId
    question: Asked


@dataclass(frozen=True, slots=True)
class Convict:
    """Append a FORKPROOF with this to our own chain, and report `Kept`: nobody else seems to have."""

    proof: ForkProof


@dataclass(frozen=True, slots=True)
class Adopted:
    """Entries of others that came and stand in the book now."""

    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class Forger:
    """The author has lost its standing here. first_hand: we hold both entries and were not told"""

    author: bytes
    proof: ForkProof
    first_hand: bool


@dataclass(frozen=True, slots=True)
class Muted:
    """Nothing that the peer publishes is looked at for a while."""

    peer: PeerId
    reason: str


Fact = Adopted | Forger | Muted


@dataclass(frozen=True, slots=True)
class Report:
    fact: Fact


Effect = Publish | Ask | Convict | Report


@dataclass(frozen=True, slots=True)
class GossipOptions:
    """One peer's patience and generosity; peers may differ in it."""

    beat_s: float = 0.5  # how often the clock is looked at; news are gathered for so long
    shown_s: float = 1.5  # an entry that its author showed us is published by us, unless it was by him
    sync_s: float = 30.0  # how often another peer is asked what it knows
    tell_s: float = 4.0  # a fork that we found is told by then, if nobody else did
    mute_s: float = 600.0
    faults: int = 3  # messages that no honest peer publishes, until it is muted
    messages: Allowance = _MESSAGES  # published by one peer
    strangers: Allowance = _STRANGERS  # published by all that are not listed
    entries: Allowance = _ENTRIES  # heard of one author
    pages: Allowance = _PAGES  # asked of one peer, up to 256 entries each
