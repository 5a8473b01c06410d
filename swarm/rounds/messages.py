"""Every message of the outer round. Decoding is the only place where bytes become types; any may be lost or repeated.

First words of a stream: `Enter`, answered by `Entered` or `Mismatch`. Then one way: whoever has something to say opens
a stream of its own.
"""

from typing import Annotated

import msgspec

from shoal.swarm.identifiers import PeerId
from shoal.swarm.message_codec import MessageCodec

from .audit_messages import Accusation, AskResidual, Residual, Verdict
from .ballots import Ballot
from .decisions import Basis, Bits, Count, Hash, Roster, Tokens, Value
from .exchange import RunSpec
from .message import Message, Path, Reason

PROTOCOL = "/shoal/rounds/1"


class Enter(Message, frozen=True):
    """bulk: whether this stream carries payloads, which must not hold up what decides."""

    spec: RunSpec
    bulk: bool


class Entered(Message, frozen=True):
    pass


class Mismatch(Message, frozen=True):
    """The other end trains another run of the same name."""

    spec: RunSpec


class Ready(Message, frozen=True):
    """To the leader and the next in line: here is my part; attempt: the how manieth leader I believe in."""

    round: Count
    fragment: Count
    state: Hash
    basis: Basis
    attempt: Count
    nonce: Count
    tokens: Tokens
    root: Hash


class Coming(Message, frozen=True):
    """To the leader and the next in line: I have no vote yet, but I am working on this round; wait a little for me."""

    round: Count
    basis: Basis


class Gathering(Message, frozen=True):
    """The leader is alive: how many are ready, how many it takes, or how far the reducing is."""

    round: Count
    ballot: Ballot
    ready: Count
    needed: Count
    stage: Annotated[str, msgspec.Meta(max_length=16)]


class Group(Message, frozen=True):
    """Members and commitments are fixed; now upload each shard to its owner. A higher version has other owners."""

    ballot: Ballot
    version: Count
    basis: Basis
    roster: Roster
    owners: tuple[Count, ...]  # per shard, index of a member


class Upload(Message, frozen=True):
    round: Count
    shard: Count
    contributor: PeerId
    payload: bytes
    path: Path


class Want(Message, frozen=True):
    """Send these shards' payloads (again): your own, or those that you hold of the contributors named."""

    round: Count
    shards: tuple[Count, ...]
    contributors: tuple[PeerId, ...]


class Reduced(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    shard: Count
    aggregate: Hash
    residual: Hash
    arrived: Bits
    refused: Bits


class Progress(Message, frozen=True):
    """Owner to leader. failed: shards that it cannot reduce."""

    round: Count
    roster: Hash
    reduced: tuple[Reduced, ...]
    failed: tuple[Count, ...]


class Aggregate(Message, frozen=True):
    round: Count
    shard: Count
    payload: bytes


class Prepare(Message, frozen=True):
    round: Count
    ballot: Ballot
    basis: Basis


class AcceptedBefore(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    ballot: Ballot
    value: Value
    roster: Roster | None


class Promise(Message, frozen=True):
    """listed: how many peers of the run the sender knows; counts only before the first round that happens."""

    round: Count
    ballot: Ballot
    accepted: AcceptedBefore | None
    listed: Count


class Nack(Message, frozen=True):
    """A higher ballot was promised."""

    round: Count
    promised: Ballot


class Propose(Message, frozen=True):
    """roster: left out where `Group` brought it"""

    round: Count
    ballot: Ballot
    value: Value
    roster: Roster | None


class Accept(Message, frozen=True):
    """Says too that the sender holds every aggregate of the value."""

    round: Count
    ballot: Ballot


class Decided(Message, frozen=True):
    round: Count
    value: Hash


class Ask(Message, frozen=True):
    """What became of this round? basis: the last that happened, as far as we know"""

    round: Count
    basis: Basis


class Settled(Message, frozen=True):
    value: Value
    roster: Roster | None


class Latest(Message, frozen=True):
    """The last round that happened, and the highest one that is decided."""

    settled: Count
    value: Value
    roster: Roster


class Astray(Message, frozen=True):
    """Your state is not the group's."""

    round: Count
    holders: tuple[PeerId, ...]


class Barred(Message, frozen=True):
    round: Count
    reason: Reason


class Fetch(Message, frozen=True):
    hashes: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=4096)]


class Data(Message, frozen=True):
    payload: bytes


AnyMessage = (
    Enter
    | Entered
    | Mismatch
    | Ready
    | Coming
    | Gathering
    | Group
    | Upload
    | Want
    | Progress
    | Aggregate
    | Prepare
    | Promise
    | Nack
    | Propose
    | Accept
    | Decided
    | Ask
    | Settled
    | Latest
    | Astray
    | Barred
    | Fetch
    | Data
    | AskResidual
    | Residual
    | Accusation
    | Verdict
)
BULK = (Upload, Aggregate, Data, Residual, Accusation)

_codec: MessageCodec[AnyMessage] = MessageCodec(AnyMessage, "a message of a round")
encode, decode = _codec.encode, _codec.decode  # decode raises MalformedMessage, whatever the bytes are


def payload_bytes(message: AnyMessage) -> int:
    """What of a message is compressed update; the rest is overhead."""
    match message:
        case Upload(payload=payload) | Aggregate(payload=payload) | Data(payload=payload):
            return len(payload)
        case _:
            return 0
