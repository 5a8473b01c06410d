"""What a group decides about a round: that it happened, with whom and with which bytes, or that it did not.

A decision names the one before it that happened (`basis`), so decisions form a chain; whoever knows the newest knows
who votes on the next.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import msgspec

from shoal.swarm.identifiers import PeerId

Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Basis = Annotated[bytes, msgspec.Meta(max_length=32)]  # empty before the first round that happened
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
Tokens = Annotated[int, msgspec.Meta(ge=1, lt=1 << 53)]
Bits = Annotated[bytes, msgspec.Meta(max_length=8192)]
MAX_MEMBERS = 4096


class Member(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """nonce: drawn at the start of a process; a peer that was restarted is another member, without memory of votes."""

    peer: PeerId
    nonce: Count
    tokens: Tokens
    root: Hash  # of the payloads that it committed to


class Roster(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, dict=True):
    """Who takes part in a round, sorted by peer, all at the same state, and what each committed to."""

    round: Count
    fragment: Count
    state: Hash  # before the round
    members: Annotated[tuple[Member, ...], msgspec.Meta(min_length=1, max_length=MAX_MEMBERS)]

    @cached_property
    def peers(self) -> tuple[PeerId, ...]:
        return tuple(member.peer for member in self.members)

    @cached_property
    def index(self) -> dict[PeerId, int]:
        return {peer: at for at, peer in enumerate(self.peers)}

    @cached_property
    def name(self) -> bytes:
        """Hash of the roster: what a decision calls it."""
        return _digest(self)


class ShardResult(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """owner: index of a member; arrived, refused: bit i speaks of member i; residual: root of the owner's after it"""

    owner: Count
    aggregate: Hash
    residual: Hash
    arrived: Bits
    refused: Bits


class Done(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """excluded: peers that were found lying, for good; disowned: those that no longer own shards"""

    round: Count
    basis: Basis
    roster: Hash
    shards: Annotated[tuple[ShardResult, ...], msgspec.Meta(min_length=1, max_length=4096)]
    excluded: tuple[PeerId, ...]
    disowned: tuple[PeerId, ...]


class Skip(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    round: Count
    basis: Basis


Value = Done | Skip
_encoder = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True)
class Decision:
    """roster: None for a round that was skipped"""

    value: Value
    roster: Roster | None


def digest(value: Value) -> bytes:
    return _digest(value)


def _digest(part: msgspec.Struct) -> bytes:
    return hashlib.sha256(b"shoal decision 1\0" + _encoder.encode(part)).digest()


def bits(indices: Iterable[int], count: int) -> bytes:
    """One bit for each of `count` members, in whole bytes."""
    number = 0
    for index in indices:
        number |= 1 << index
    return number.to_bytes(-(-count // 8), "little")


def indices(mask: bytes, count: int) -> list[int]:
    """Bits beyond `count` say nothing."""
    number = int.from_bytes(mask, "little")
    return [index for index in range(count) if number >> index & 1]


def problem(value: Done, roster: Roster, shards: int) -> str:
    """What is wrong with a value that claims to speak of this roster, or an empty string."""
    members = len(roster.members)
    width = -(-members // 8)
    if value.roster != roster.name or value.round != roster.round:
        return "another roster"
    if len(value.shards) != shards:
        return f"{len(value.shards)} shards instead of {shards}"
    if list(roster.peers) != sorted(set(roster.peers)):
        return "members that are not sorted or appear twice"
    for result in value.shards:
        if result.owner >= members or (len(result.arrived), len(result.refused)) != (width, width):
            return "an owner or a count that does not fit the members"
    return ""


def contributors(decision: Decision) -> tuple[tuple[PeerId, int], ...]:
    """Members whose update counted in at least one shard, with their tokens, sorted."""
    assert isinstance(decision.value, Done)
    assert decision.roster is not None
    counted = 0
    for result in decision.value.shards:
        counted |= int.from_bytes(result.arrived, "little") & ~int.from_bytes(result.refused, "little")
    members = decision.roster.members
    return tuple((member.peer, member.tokens) for index, member in enumerate(members) if counted >> index & 1)
