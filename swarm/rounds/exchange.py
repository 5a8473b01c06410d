"""The seam between training and the network: one exchange of compressed updates a round.

A trainer offers the bytes of its update, shard by shard; every peer that took part gets the same aggregate bytes back
and applies exactly those. How peers meet, who reduces what and what happens when one of them dies is the business of
what stands behind `Exchange`: the real transport, the simulator, or a single process in tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import msgspec

from shoal.compression.presets import preset
from shoal.compression.update_codec import Codec
from shoal.swarm.errors import ShoalError, Unavailable
from shoal.swarm.identifiers import PeerId

CHUNK = 4096  # the sparsifiers' chunk: shards are cut between chunks


@dataclass(frozen=True, slots=True)
class Sharding:
    """A vector of `count` values cut into `shards` ranges, as even as whole chunks allow; the last may be shorter.

    A vector of fewer chunks than shards has as many shards as chunks.
    """

    count: int
    shards: int

    def bounds(self) -> list[tuple[int, int]]:
        """[start, stop) of every shard. raises: ValueError"""
        if self.count < 1 or self.shards < 1:
            raise ValueError(f"{self.count} values in {self.shards} shards")
        chunks = -(-self.count // CHUNK)
        shards = min(self.shards, chunks)
        edges = [min(self.count, chunks * i // shards * CHUNK) for i in range(shards + 1)]
        return list(pairwise(edges))


class RunSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all peers of a run must agree on; its hash is the run's id, so peers with another one never meet."""

    name: str
    model: str  # hash of the model's config and initial parameters
    data: str  # hash of the data order's rules
    strategy: str  # name and settings in canonical form
    fragments: tuple[int, ...]  # values in each fragment; one fragment unless streaming
    preset: str  # of `compression.presets`
    shards: int = 16
    quorum: int = 2
    grace_s: float = 10.0  # how long a round waits for stragglers once it has a quorum
    deadline_s: float = 120.0  # after which the round is skipped
    reducer_decay: float = 1.0  # of the reducers' error feedback
    robust: str = "mean"  # mean | trimmed | clipped

    def codec(self) -> Codec:
        """raises: ValueError"""
        return preset(self.preset)

    def sharding(self, fragment: int) -> Sharding:
        return Sharding(self.fragments[fragment], self.shards)


@dataclass(frozen=True, slots=True)
class Offer:
    """One peer's part in a round.

    payloads: one for each shard of the fragment, encoded with `seed_of(round, fragment, shard)`
    tokens: the weight, above zero
    state: 32 bytes, the hash of the outer parameters before this round
    """

    round: int
    fragment: int
    payloads: tuple[bytes, ...]
    tokens: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """aggregates: one payload for each shard; the same bytes at every peer of the round."""

    round: int
    fragment: int
    aggregates: tuple[bytes, ...]
    contributors: tuple[tuple[PeerId, int], ...]  # with their tokens, sorted


class RoundSkipped(Unavailable):
    """The round had no quorum in time or was lost; nobody applies anything, local work goes on into the next one."""


class OutOfStep(ShoalError):
    """The group is at another state than we are: catch up from the delta log or a checkpoint first.

    round: the round the group is at; holders: who can give what is missing
    """

    def __init__(self, message: str, round_: int, holders: Sequence[PeerId]) -> None:
        super().__init__(message)
        self.round = round_
        self.holders = tuple(holders)


class Exchange(Protocol):
    async def exchange(self, offer: Offer) -> Outcome:
        """raises: RoundSkipped, OutOfStep; ValueError for an offer that does not fit the run"""


def seed_of(round_: int, fragment: int, shard: int) -> int:
    """The codec's seed: the same at all peers, another one for every use."""
    return (round_ * 1_000_003 + fragment * 1009 + shard) & 0x7FFFFFFF
